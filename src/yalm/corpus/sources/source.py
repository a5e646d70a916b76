"""What all sources have in common: files to read, and documents out of each.

A source is a frozen group of settings (where its files are, what its layout leaves open). `read` streams: memory is one
record, whatever the size of the file. What is broken in a record is a `Reject`; what is broken in the file itself, so
that nothing after it can be trusted, is a last `Reject` where documents came before, for they are good.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

from yalm.config import Settings
from yalm.corpus.document import Document, Reject
from yalm.errors import YalmError


class Source(Settings):
    """Files of one layout. `paths` are files, or folders that are searched below for what `suffixes` names."""

    suffixes: ClassVar[tuple[str, ...]] = ()

    paths: tuple[str, ...]

    def files(self) -> list[Path]:
        """All files, those named in the order given and those of a folder sorted; YalmError if there are none."""
        files: list[Path] = []
        for path in map(Path, self.paths):
            if path.is_file():
                files.append(path)
            elif path.is_dir():
                files += sorted(
                    file for file in path.rglob("*") if file.name.endswith(self.suffixes) and file.is_file()
                )
            else:
                raise YalmError(f"{path}: no such file or folder; mend the path of this source")
        if not files:
            wanted = ", ".join(self.suffixes)
            raise YalmError(f"{', '.join(self.paths) or 'paths'}: no files to read here; looked for {wanted}")
        return files

    def read(self, file: Path, advance: Callable[[int], None]) -> Iterator[Document | Reject]:
        """The documents of one file; `advance` hears how many of its bytes (as they lie on disk) have been read."""
        raise NotImplementedError
