"""Ids of one continuation to its text, as they arrive, up to a stop text.

A stop text may begin in one token and end in another. So whatever could still become one is held back: the longest
end of the text that begins a stop text. Nothing of a stop text is ever shown, and nothing shown is taken back. Of
several stop texts the one that is complete first counts, however the text is cut into tokens.
"""

from collections.abc import Sequence

from yalm.tokens.tokenizer import StreamDecoder, Tokenizer


class Continuation:
    """The text after a prompt; all pieces together are the whole. `stopped` tells whether a stop text has come."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stop: Sequence[str]) -> None:
        self._decoder = StreamDecoder(tokenizer, prompt_ids)
        self._stop = [text for text in stop if text]
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take the next id; return the text that is now certain."""
        return self._release(self._decoder.push(token), last=False)

    def finish(self) -> str:
        """The text held back, now that nothing follows; empty after a stop text."""
        return "" if self.stopped else self._release(self._decoder.finish(), last=True)

    def _release(self, text: str, last: bool) -> str:
        text = self._held + text
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stop if stop in text]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        certain = len(text) if last else len(text) - self._unsettled(text)
        self._held = text[certain:]
        return text[:certain]

    def _unsettled(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop text."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stop):
                return size
        return 0
