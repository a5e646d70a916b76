"""JSON lines in, JSON lines out: every record's `prefix` is continued in a new field, `suffix`.

Finished records are appended in order to a file beside the output, which takes the output's name when it is whole. A
run that was killed, at any moment, finds that file and goes on after its last whole line; since draws are numbered by
record, it makes the same texts as a run that was never killed. The first line of that file identifies the run: input,
options and model; it is not continued with others.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yalm.atomic import atomic_file
from yalm.errors import YalmError
from yalm.inference.language_model import Generation, LanguageModel
from yalm.inference.sampling import SamplingSettings


@dataclass(frozen=True)
class Done:
    """State of a run over a file: records written of `total`, and the tokens made since it was started."""

    records: int
    total: int
    tokens: int


def complete_file(
    lm: LanguageModel, source: Path, output: Path, *, batch_size: int, identity: str, **options: Any
) -> Iterator[Done]:
    """Continue each record's `prefix` in `source`; write all fields and `suffix` to `output`, in order.

    Yields the state at the start and after every finished record; the output exists once the iterator is exhausted.
    `identity` names the model in the partial file. YalmError, before anything is generated, for a line that is no
    JSON object with a string `prefix`, or whose prefix leaves no room; each names file and line.
    """
    settings = SamplingSettings.parse(options, source="generate")
    if settings.num_samples != 1:
        raise YalmError("num_samples: a record has one suffix; repeat the record to have several")
    records = read_records(source)
    for number, record in records:
        try:
            lm.check_prompt(record["prefix"])
        except YalmError as error:
            raise YalmError(f"{source}:{number}: {error}") from None
    total = len(records)
    partial = _Partial(output, _fingerprint(source, identity, settings))
    with partial as done:
        yield Done(done, total, 0)
        rest = [record for _, record in records[done:]]
        waiting: dict[int, Generation] = {}  # finished before a record that stands before it
        tokens = 0
        prefixes = [record["prefix"] for record in rest]
        for place, generation in lm.generate_each(prefixes, batch_size=batch_size, first_prompt=done, **options):
            waiting[place] = generation
            tokens += len(generation.ids)
            while partial.records - done in waiting:
                at = partial.records - done
                partial.append(rest[at] | {"suffix": waiting.pop(at).text})
            yield Done(partial.records, total, tokens)
        partial.publish()


def read_records(source: Path) -> list[tuple[int, dict[str, Any]]]:
    """The records of a JSON-lines file with their line numbers, blank lines left out; YalmError for a bad line."""
    records = []
    try:
        lines = source.read_bytes().split(b"\n")
    except OSError as error:
        raise YalmError(f"{source}: cannot read the input ({error.strerror}); check the path") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise YalmError(f"{source}:{number}: not JSON ({error}); mend or remove that line") from None
        if not isinstance(record, dict) or not isinstance(record.get("prefix"), str):
            raise YalmError(
                f'{source}:{number}: expected an object like {{"prefix": "text"}}; mend or remove that line'
            )
        records.append((number, record))
    return records


class _Partial:
    """The unfinished output; as a context it gives the number of records that an earlier run has left in it."""

    def __init__(self, output: Path, fingerprint: str) -> None:
        self.output, self.fingerprint = output, fingerprint
        self.path = output.with_name(f".{output.name}.partial")
        self.records = 0

    def __enter__(self) -> int:
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.stream = self.path.open("a+b")
        self.stream.seek(0)
        content = self.stream.read()
        whole = content[: content.rfind(b"\n") + 1]  # a kill may have torn the last line
        self.stream.truncate(len(whole))
        if not whole:
            self._write({"run": self.fingerprint})
            return 0
        header, *records = whole.splitlines()
        if header != json.dumps({"run": self.fingerprint}).encode():
            self.stream.close()
            raise YalmError(
                f"{self.path}: belongs to a run with other input, model or options; "
                "give the same again to continue it, or remove the file to start over"
            )
        self.records = len(records)
        return self.records

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def append(self, record: Mapping[str, Any]) -> None:
        """Write the next record; it survives the process being killed."""
        self._write(record)
        self.records += 1

    def publish(self) -> None:
        """Give the output its name."""
        with atomic_file(self.output) as temporary, temporary.open("wb") as target:
            self.stream.seek(0)
            self.stream.readline()
            while block := self.stream.read(1 << 20):
                target.write(block)
        self.path.unlink()

    def _write(self, record: Mapping[str, Any]) -> None:
        try:
            line = json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # a lone surrogate, which JSON can spell and UTF-8 cannot
            line = json.dumps(record).encode()
        self.stream.write(line + b"\n")
        self.stream.flush()


def _fingerprint(source: Path, identity: str, settings: SamplingSettings) -> str:
    """A digest of all that the output depends on."""
    digest = hashlib.sha256(source.read_bytes())
    digest.update(json.dumps([identity, settings.model_dump(mode="json")]).encode())
    return digest.hexdigest()
