"""Threads of comments as dialogues: which turns follow each other, and how a chain of them is written as text.

A thread is a tree. A language model wants sequences: either every way from a root to a leaf, which repeats the upper
turns once for each leaf below them, or one way only, which leaves most of the thread unread. All is pure functions of
turns; where they come from is the business of `dialogues`.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

Chains = Literal["all", "longest"]
Authors = Literal["omit", "mask", "keep"]

NOBODY = ("", "[deleted]", "[removed]")  # names of authors that are none


class Turn(NamedTuple):
    """A post or a comment. `parent` is the id of what it answers; a `text` that is empty ends the chain before it."""

    id: str
    parent: str
    author: str
    text: str
    time: str = ""


def chains(turns: Sequence[Turn], which: Chains, max_turns: int) -> Iterator[list[Turn]]:
    """The chains of one thread, in the order of its turns, none longer than `max_turns`: what is deeper is left out.

    A root is a turn whose parent is not in the thread. `all` gives every path from a root to a leaf once; `longest`
    one chain, from the root with the most live turns below it on to the answer with the most, the first one of equals.
    Of turns with one id the first counts. Turns that answer each other in a circle have no root and are left out.
    """
    known: dict[str, Turn] = {}
    for turn in turns:
        known.setdefault(turn.id, turn)
    answers: dict[str, list[Turn]] = {}
    roots = []
    for turn in known.values():
        if not turn.text:
            continue
        if turn.parent in known:
            answers.setdefault(turn.parent, []).append(turn)
        else:
            roots.append(turn)
    if which == "all":
        yield from _paths(roots, answers, max_turns)
    elif roots:
        yield _main_path(roots, answers, max_turns)


def _paths(roots: list[Turn], answers: dict[str, list[Turn]], max_turns: int) -> Iterator[list[Turn]]:
    """Depth first, without recursion: threads are thousands of turns deep."""
    path: list[Turn] = []
    waiting = [(turn, 0) for turn in reversed(roots)]
    while waiting:
        turn, depth = waiting.pop()
        path[depth:] = [turn]
        below = answers.get(turn.id, []) if depth + 1 < max_turns else []
        if below:
            waiting.extend((answer, depth + 1) for answer in reversed(below))
        else:
            yield path.copy()


def _main_path(roots: list[Turn], answers: dict[str, list[Turn]], max_turns: int) -> list[Turn]:
    order = list(roots)  # every turn after its parent
    for turn in order:
        order.extend(answers.get(turn.id, ()))
    sizes: dict[str, int] = {}
    for turn in reversed(order):
        sizes[turn.id] = 1 + sum(sizes[answer.id] for answer in answers.get(turn.id, ()))
    path: list[Turn] = []
    below = roots
    while below and len(path) < max_turns:
        path.append(max(below, key=lambda turn: sizes[turn.id]))
        below = answers.get(path[-1].id, [])
    return path


def write(chain: Sequence[Turn], authors: Authors, separator: str) -> str:
    """A chain as text: one paragraph a turn, so that blank lines inside a turn are left out.

    `keep` puts "<name>: " before a turn whose author is known, `mask` "A: ", "B: " and so on by first appearance in
    the chain; a turn of nobody known has a letter of its own, for two of them need not be one person.
    """
    paragraphs = ["\n".join(filter(None, map(str.strip, turn.text.splitlines()))) for turn in chain]
    if authors == "omit":
        return separator.join(paragraphs)
    names = [turn.author for turn in chain]
    if authors == "mask":
        letters: dict[str | int, str] = {}
        keys = [number if name in NOBODY else name for number, name in enumerate(names)]
        names = [letters.setdefault(key, _letters(len(letters))) for key in keys]
    return separator.join(
        paragraph if name in NOBODY else f"{name}: {paragraph}"
        for name, paragraph in zip(names, paragraphs, strict=True)
    )


def _letters(number: int) -> str:
    """A, B, …, Z, AA, AB, …"""
    more, last = divmod(number, 26)
    return (_letters(more - 1) if more else "") + chr(ord("A") + last)


# A name that is followed by more of the sentence ("u/name's") is no address.
_REDDIT_MENTIONS = re.compile(r"\s*(?:/?u/[\w-]{1,40}(?:[,:]+\s*|\s+|$))+")
_VK_MENTIONS = re.compile(r"\s*(?:\[(?:id|club|public|event)\d+(?::[\w-]*)?\|[^\]\n]*\][,:]?\s*)+")


def without_mentions(text: str, site: Literal["reddit", "pikabu", "vk"]) -> str:
    """A turn without the names it is addressed to at its start: `u/name` on Reddit, `[id1|Name], ` on VK."""
    pattern = {"reddit": _REDDIT_MENTIONS, "vk": _VK_MENTIONS}.get(site)
    match = pattern.match(text) if pattern is not None else None
    return text[match.end() :] if match else text
