"""Token folders for the training benchmarks, from one JSON-lines file a language.

    python bench/prepare.py ru=train.ru.jsonl.zst en=train.en.jsonl.zst --output runs/corpus --vocab-size 16384

Documents go to validation or training by a hash of their text (about 1 in 100), exact copies are dropped, one tokenizer
is trained on both languages, and OUTPUT/{ru,en}/{train,validation} are token folders for `yalm train`.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from yalm.atomic import atomic_file
from yalm.tokens.build import build_shards
from yalm.tokens.documents import read_texts
from yalm.tokens.tokenizer import Tokenizer, train_tokenizer

VALIDATION_SHARE = 0.01


def split(source: Path, folder: Path) -> None:
    """Write FOLDER/train.jsonl and FOLDER/validation.jsonl, unless they are there."""
    if (folder / "train.jsonl").exists():
        return
    seen: set[bytes] = set()
    with (
        atomic_file(folder / "train.jsonl") as train,
        atomic_file(folder / "validation.jsonl") as validation,
        train.open("w") as train_file,
        validation.open("w") as validation_file,
    ):
        for text in read_texts([source]):
            digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
            if digest not in seen:
                seen.add(digest)
                held_out = int.from_bytes(digest, "little") < VALIDATION_SHARE * 2**64
                (validation_file if held_out else train_file).write(
                    json.dumps({"text": text}, ensure_ascii=False) + "\n"
                )


def alternate(folders: list[Path]) -> Iterator[str]:
    """Training texts of all languages."""
    for folder in folders:
        yield from read_texts([folder / "train.jsonl"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("inputs", nargs="+", metavar="LANGUAGE=FILE")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--vocab-size", type=int, default=16_384)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    sources = dict(item.split("=", 1) for item in arguments.inputs)
    folders = [arguments.output / language for language in sources]
    for language, file in sources.items():
        split(Path(file), arguments.output / language)
    file = arguments.output / f"tokenizer-{arguments.vocab_size}.model"
    if not file.exists():
        train_tokenizer(alternate(folders), file, vocab_size=arguments.vocab_size, threads=arguments.workers)
    for language, folder in zip(sources, folders, strict=True):
        for name in ("train", "validation"):
            build_shards(
                [folder / f"{name}.jsonl"],
                Tokenizer(file),
                folder / name,
                workers=arguments.workers,
                language=language,
            )


if __name__ == "__main__":
    main()
