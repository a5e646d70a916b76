"""A model and its tokenizer, ready to use: `yalm.load(folder).generate("…")` (see `loading`).

    lm = yalm.load("runs/demo/model")
    lm.generate("Сегодня", max_tokens=20, temperature=0)[0].text
    for piece in lm.stream("Сегодня"): print(piece, end="")
    lm.score(["Сегодня тепло."])[0].logprobs

Sampling options are keyword arguments, those of `SamplingSettings`. A model that is still being trained is used as it
is: `LanguageModel(model, tokenizer)`.

A model may be divided between processes. The first of them is asked; the others are told what was asked, do the same
in step, and throw the answers away: they `follow()` until the first one is closed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from yalm.errors import YalmError
from yalm.inference.engine import FinishReason, Limits, Piece, Request, check_prompt, run
from yalm.inference.parallel import PATIENCE, TIMEOUT, LostRankError, hearing
from yalm.inference.sampling import SamplingSettings
from yalm.model.network import CausalRuns, Yalm, causal_attention
from yalm.model.ops.cross_entropy import linear_cross_entropy
from yalm.tokens.tokenizer import Tokenizer

# Most tokens of one scoring pass (a longer text goes alone).
SCORING_TOKENS = 4096


@dataclass(frozen=True)
class Generation:
    """One continuation: its `text`, and its `ids` with the final `</s>`, if one came, which has no text.

    `finish_reason` is "stop" for `</s>` or a stop text (which is not part of `text`), "length" for `max_tokens` or
    the end of the model's positions. `prompt_tokens` counts `<s>` too.
    """

    prompt: str
    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int


@dataclass(frozen=True)
class Score:
    """A text's `ids`, beginning with `<s>`, and the `logprobs`, in nats, of all but the first, given those before."""

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def total(self) -> float:
        """Log-probability of the whole text, in nats; its end (`</s>`) is not counted."""
        return sum(self.logprobs)


class LanguageModel:
    """Generates and scores texts. `model` may be on any device and in any floating type; it is not changed.

    `limits` bound the memory beside the weights. `mesh` holds the processes that `model` is divided between.
    """

    def __init__(
        self,
        model: Yalm,
        tokenizer: Tokenizer,
        limits: Limits = Limits(),  # noqa: B008  frozen
        mesh: DeviceMesh | None = None,
    ) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise YalmError(
                f"the tokenizer has {tokenizer.vocab_size} ids and the model only {model.config.vocab_size}; "
                "they do not belong together, give the tokenizer the model was trained with"
            )
        self.model, self.tokenizer, self.limits, self.mesh = model, tokenizer, limits, mesh
        self._jobs: dist.ProcessGroup | None = None
        if mesh is not None:
            self._jobs = dist.new_group(timeout=TIMEOUT if self.leads else PATIENCE, backend="gloo")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is not None and issubclass(kind, LostRankError):
            self._leave()
        self.close()

    def close(self) -> None:
        """Leave the other processes of a divided model, the first letting all go; does nothing for a whole one."""
        if self.mesh is not None:
            if self.leads:
                self._tell(None)
            self._leave()

    def _leave(self) -> None:
        dist.destroy_process_group()
        self.mesh = self._jobs = None

    @property
    def leads(self) -> bool:
        """Whether this process is the one to ask."""
        return self.mesh is None or dist.get_rank() == 0

    def follow(self) -> None:
        """In all processes but the first: do what the first one is asked, until it is closed."""
        while (job := self._tell(None)) is not None:
            name, arguments = job
            try:
                for _ in getattr(self, name)(*arguments):
                    pass
            except LostRankError:
                raise
            except YalmError:  # what a person did wrong is said by the first process
                pass

    def _tell(self, job: Any) -> Any:
        """Give all processes what the first one has to do; returns it. Alone, do nothing."""
        if self._jobs is None:
            return job
        jobs = [job]
        with hearing(self._jobs):
            dist.broadcast_object_list(jobs, src=0, group=self._jobs)
        return jobs[0]

    def _together(self, name: str, *arguments: Any) -> Iterator[Any]:
        """What the method `name` yields; every process goes through it to the end, whoever stops listening here."""
        self._tell((name, arguments))
        results = getattr(self, name)(*arguments)
        try:
            for result in results:  # noqa: UP028  `yield from` would end them with the listener
                yield result
        finally:
            if self.mesh is not None:
                for _ in results:
                    pass

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.model.embed_tokens.tokens.weight.device

    def logits(self, ids: Tensor) -> Tensor:
        """Logits (batch, seq, vocab) in fp32 for ids (batch, seq) int64. YalmError beyond the model's positions."""
        self._check_length(ids.shape[1])
        logits: Tensor = next(self._together("_logits", ids))
        return logits

    def generate(
        self, prompts: str | Sequence[str], *, batch_size: int = 16, first_prompt: int = 0, **options: Any
    ) -> list[Generation]:
        """Continue each prompt; in order of prompts, `num_samples` each.

        `options` are those of `SamplingSettings`. At most `batch_size` texts are under way at a time; the texts do not
        depend on it. Draws are numbered by the prompt's place in the list, from `first_prompt` on: give it when a
        longer list is handed over in parts. YalmError for a wrong option or a prompt that leaves no room.
        """
        done = dict(self.generate_each(prompts, batch_size=batch_size, first_prompt=first_prompt, **options))
        return [done[number] for number in range(len(done))]

    def generate_each(
        self, prompts: str | Sequence[str], *, batch_size: int = 16, first_prompt: int = 0, **options: Any
    ) -> Iterator[tuple[int, Generation]]:
        """As `generate`, but each continuation comes as soon as it ends, with its place in the list before it."""
        settings = SamplingSettings.parse(options, source="generate")
        prompts = [prompts] if isinstance(prompts, str) else prompts
        requests = [
            Request(self.tokenizer.encode(prompt), first_prompt + number, sample)
            for number, prompt in enumerate(prompts)
            for sample in range(settings.num_samples)
        ]
        texts: list[list[str]] = [[] for _ in requests]
        tokens: list[list[int]] = [[] for _ in requests]
        for piece in self._together("_run", requests, settings, batch_size):
            texts[piece.request].append(piece.text)
            tokens[piece.request].append(piece.token)
            if piece.finish_reason:
                yield (
                    piece.request,
                    Generation(
                        prompt=prompts[piece.request // settings.num_samples],
                        text="".join(texts[piece.request]),
                        ids=tuple(tokens[piece.request]),
                        finish_reason=piece.finish_reason,
                        prompt_tokens=len(requests[piece.request].prompt_ids),
                    ),
                )

    def stream(self, prompt: str, *, first_prompt: int = 0, **options: Any) -> Iterator[str]:
        """The continuation of one prompt, piece by piece as it is made; together they are `generate`'s text."""
        settings = SamplingSettings.parse(options, source="generate")
        if settings.num_samples != 1:
            raise YalmError(f"num_samples = {settings.num_samples}: a stream is one text; use generate for more")
        requests = [Request(self.tokenizer.encode(prompt), first_prompt)]
        for piece in self._together("_run", requests, settings, 1):
            if piece.text:
                yield piece.text

    def check_prompt(self, prompt: str) -> None:
        """YalmError if `prompt` leaves no position to generate at."""
        check_prompt(self.tokenizer.encode(prompt), self.model.config.max_positions)

    def score(self, texts: str | Sequence[str]) -> list[Score]:
        """The log-probability of every token of each text, given `<s>` and those before it.

        Texts are packed into passes without padding, and the logits are never held whole, so memory is bounded
        whatever the vocabulary. YalmError for a text longer than the model's positions.
        """
        texts = [texts] if isinstance(texts, str) else texts
        ids = [self.tokenizer.encode(text) for text in texts]
        logprobs = self.score_ids(ids)
        return [Score(*row) for row in zip(texts, map(tuple, ids), map(tuple, logprobs), strict=True)]

    def score_ids(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """For each sequence of ids the log-probabilities, in nats, of all but the first."""
        for ids in sequences:
            self._check_length(len(ids) - 1)  # nothing follows the last id, so it needs no position
        scores: list[list[float]] = next(self._together("_score_ids", sequences))
        return scores

    def _run(self, requests: Sequence[Request], settings: SamplingSettings, batch_size: int) -> Iterator[Piece]:
        return run(self.model, self.tokenizer, requests, settings, batch_size, self.limits)

    @torch.inference_mode()
    def _logits(self, ids: Tensor) -> list[Tensor]:
        return [self.model(ids.to(self.device)).float()]

    @torch.inference_mode()
    def _score_ids(self, sequences: Sequence[Sequence[int]]) -> list[list[list[float]]]:
        table, bias = self.model.model.embed_tokens.tokens.weight, self.model.lm_head.bias
        results: list[list[float]] = []
        for group in _passes(sequences):
            counts = [max(0, len(ids) - 1) for ids in group]
            if not any(counts):
                results += [[] for _ in group]
                continue
            inputs = torch.tensor([token for ids in group for token in ids[:-1]], dtype=torch.long, device=self.device)
            targets = torch.tensor([token for ids in group for token in ids[1:]], dtype=torch.long, device=self.device)
            positions = torch.cat([torch.arange(count, device=self.device) for count in counts])
            hidden = self.model.model(inputs[None], positions, _Packed(counts, self.device))
            _, losses = linear_cross_entropy(hidden[0], table, bias, targets)
            logprobs = iter((-losses).tolist())
            results += [list(islice(logprobs, count)) for count in counts]
        return [results]

    def _check_length(self, length: int) -> None:
        limit = self.model.config.max_positions
        if length > limit:
            raise YalmError(f"the text needs {length} positions and the model has {limit}; shorten or split it")


class _Packed(CausalRuns):
    """Causal attention (1, A, N, D) over texts of `counts` tokens behind each other, none of which sees another."""

    def __init__(self, counts: Sequence[int], device: torch.device) -> None:
        ends = torch.tensor(counts).cumsum(0)
        self.starts = torch.repeat_interleave(ends - torch.tensor(counts), torch.tensor(counts))[None].to(device)
        self.texts = [slice(end - count, end) for count, end in zip(counts, accumulate(counts), strict=True) if count]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        context = torch.empty_like(query)
        for text in self.texts:
            context[:, :, text] = causal_attention(query[:, :, text], key[:, :, text], value[:, :, text], layer)
        return context


def _passes(sequences: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """The sequences in order, in groups of at most SCORING_TOKENS or of one."""
    group: list[Sequence[int]] = []
    for ids in sequences:
        if group and sum(map(len, group)) + len(ids) > SCORING_TOKENS:
            yield group
            group = []
        group.append(ids)
    if group:
        yield group
