"""Discussions as dialogues: Reddit as Pushshift dumps it, Pikabu's posts with their comments, posts and comments of VK.

Each document is one chain of replies (see `threads`). Pikabu has a thread in a record and streams; on Reddit and VK the
comments of a thread lie scattered over a file, and are brought together on disk first (see `groups`). Files are not
joined with each other, but for submissions beside their comments, so a thread that runs into the next month is two.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from yalm.corpus.document import Document, Reject
from yalm.corpus.sources.groups import Groups
from yalm.corpus.sources.parquet import Parquet
from yalm.corpus.sources.records import Row, iso_time, json_rows
from yalm.corpus.sources.source import Source
from yalm.corpus.sources.threads import NOBODY, Authors, Chains, Turn, chains, without_mentions, write
from yalm.streams import sample

# A name with the first in it is a file of comments; that with the second instead has the posts they belong to.
_PAIRS = (("RC_", "RS_"), ("comments", "submissions"), ("comments", "posts"))

_POST = "-"  # the id of the turn a thread begins with, which no comment has


class _Found(NamedTuple):
    """A turn and the thread it belongs to."""

    thread: str
    turn: Turn


class Dialogues(Source):
    """Files of threads. A chain has `min_turns` to `max_turns` turns, the post included; deeper turns are left out.

    Fields by layout, others are not looked at:
    - `reddit`: submissions with id, title, selftext; comments with id, link_id, parent_id, body; both with author and
      created_utc.
    - `pikabu`: id, title, text_markdown, username, timestamp, url, comments (lists by column, or a list of records)
      with id, parent_id, text_markdown, username, timestamp.
    - `vk`: as in VK's own interface: id, owner_id, from_id, date, text; a row with post_id is a comment, and answers
      reply_to_comment, or the last of parents_stack, or else the post.

    The posts of `RC_2015-01.zst` are looked for in `RS_2015-01.zst` beside it, those of `…comments….jsonl` in
    `…submissions….jsonl` or `…posts….jsonl`; such a file is not read by itself. Without its post a thread begins with
    the comments. A comment that was deleted, or has no text, ends its chain.
    """

    suffixes: ClassVar[tuple[str, ...]] = (
        *(f"{kind}{ending}" for kind in (".jsonl", ".ndjson") for ending in ("", ".gz", ".zst", ".bz2")),
        ".zst",
        ".parquet",
    )

    kind: Literal["dialogues"] = "dialogues"
    layout: Literal["reddit", "pikabu", "vk"]
    chains: Chains = "all"
    authors: Authors = "omit"
    separator: str = "\n\n"
    min_turns: int = Field(default=2, ge=1)
    max_turns: int = Field(default=100, ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.max_turns < self.min_turns:
            raise ValueError(f"max_turns {self.max_turns} is less than min_turns {self.min_turns}")
        return self

    def files(self) -> list[Path]:
        found = super().files()
        posts = {beside for file in found if (beside := _posts_of(file)) is not None}
        return [file for file in found if file not in posts]

    def read(self, file: Path, advance: Callable[[int], None]) -> Iterator[Document | Reject]:
        if self.layout == "pikabu":
            for number, row in _rows(file, advance):
                yield from [row] if isinstance(row, Reject) else self._pikabu_post(f"{file}:{number}", row)
            return
        with Groups() as threads:
            for place, row in self._places(file, advance):
                found = row if isinstance(row, Reject) else self._turn(place, row)
                if isinstance(found, Reject):
                    yield found
                    continue
                if not found.turn.text:
                    yield Reject(place, "no text", broken=False)
                if found.turn.text or found.turn.id != _POST:  # where there is no post, comments may begin the thread
                    threads.add(found.thread, list(found.turn))
            for thread, turns in threads:
                yield from self._dialogues(str(file), thread, [Turn(*turn) for turn in turns], self._url(thread))

    def _places(self, file: Path, advance: Callable[[int], None]) -> Iterator[tuple[str, Mapping[str, Any] | Reject]]:
        """The rows of a file and of the one with its posts, each with where it stands."""
        posts = _posts_of(file)
        if posts is not None:
            for number, row in _rows(posts, lambda size: None):
                yield f"{posts}:{number}", row
        for number, row in _rows(file, advance):
            yield f"{file}:{number}", row

    def _turn(self, where: str, row: Mapping[str, Any]) -> _Found | Reject:
        """A row of Reddit or VK."""
        found = self._reddit_turn(row) if self.layout == "reddit" else self._vk_turn(row)
        return Reject(where, "no post or comment", sample(", ".join(map(str, row)))) if found is None else found

    def _reddit_turn(self, row: Mapping[str, Any]) -> _Found | None:
        name, author, time = _string(row.get("id")), _string(row.get("author")), _seconds(row.get("created_utc"))
        if "body" not in row:
            post = Turn(_POST, "", author, self._said(row, "title", "selftext"), time)
            return _Found(name, post) if name and "title" in row else None
        thread, above = _string(row.get("link_id")).removeprefix("t3_"), _string(row.get("parent_id"))
        parent = _POST if above == f"t3_{thread}" else above.removeprefix("t1_")
        return _Found(thread, Turn(name, parent, author, self._said(row, "body"), time)) if name and thread else None

    def _vk_turn(self, row: Mapping[str, Any]) -> _Found | None:
        name, owner, author = _string(row.get("id")), _string(row.get("owner_id")), _string(row.get("from_id"))
        if not name or "text" not in row:
            return None
        text, time = self._said(row, "text"), iso_time(row.get("date"))
        post = _string(row.get("post_id") or None)  # zero is none
        if not post:
            return _Found(f"{owner}_{name}", Turn(_POST, "", author, text, time))
        stack = row.get("parents_stack")
        above = row.get("reply_to_comment") or (stack[-1] if isinstance(stack, list) and stack else None)
        return _Found(f"{owner}_{post}", Turn(name, _string(above) or _POST, author, text, time))

    def _pikabu_post(self, where: str, row: Mapping[str, Any]) -> Iterator[Document | Reject]:
        thread, comments = _string(row.get("id")), _records(row.get("comments"))
        if not thread or comments is None:
            yield Reject(where, "broken comments" if thread else "no id", sample(", ".join(map(str, row))))
            return
        text = self._said(row, "title", "text_markdown")
        post = Turn(_POST, "", _string(row.get("username")), text, iso_time(row.get("timestamp")))
        turns = [post] if text else []
        for comment in comments:
            name, parent = _string(comment.get("id")), _string(comment.get("parent_id"))
            if name:
                author, text = _string(comment.get("username")), self._said(comment, "text_markdown")
                parent = _POST if parent in ("", "0") else parent
                turns.append(Turn(name, parent, author, text, iso_time(comment.get("timestamp"))))
        yield from self._dialogues(where, thread, turns, _string(row.get("url")))

    def _dialogues(self, where: str, thread: str, turns: list[Turn], url: str) -> Iterator[Document | Reject]:
        found = False
        for chain in chains(turns, self.chains, self.max_turns):
            if len(chain) >= self.min_turns:
                found = True
                text = write(chain, self.authors, self.separator)
                name, language = f"{thread}:{chain[-1].id}", "ru" if self.layout == "pikabu" else ""
                yield Document(text, name, self.layout, language, url, chain[0].time, {"turns": len(chain)})
        if not found:
            begin = next((turn.text for turn in turns if turn.text), "")
            yield Reject(f"{where}, thread {thread}", "too few turns", sample(begin), broken=False)

    def _said(self, row: Mapping[str, Any], *fields: str) -> str:
        """The text of a turn, empty where it was deleted."""
        texts = [value for field in fields if isinstance(value := row.get(field), str) and value.strip() not in NOBODY]
        if self.layout == "reddit":  # its texts come with these three signs written as in HTML
            texts = [text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for text in texts]
        return without_mentions("\n".join(texts), self.layout).strip()

    def _url(self, thread: str) -> str:
        return (
            f"https://www.reddit.com/comments/{thread}" if self.layout == "reddit" else f"https://vk.com/wall{thread}"
        )


def _rows(file: Path, advance: Callable[[int], None]) -> Iterator[Row]:
    if file.name.endswith(".parquet"):  # all columns; what is there in every layout stands for the text
        yield from Parquet(paths=(str(file),), text_field="id", keep_meta=True).rows(file, advance)
    else:
        yield from json_rows(file, advance)


def _posts_of(file: Path) -> Path | None:
    """The file beside a file of comments that has their posts."""
    for comments, posts in _PAIRS:
        beside = file.with_name(file.name.replace(comments, posts, 1))
        if beside != file and beside.is_file():
            return beside
    return None


def _records(value: Any) -> list[Mapping[str, Any]] | None:
    """Comments as records; None if they are none. Lists of records become lists by column in the `datasets` package."""
    if isinstance(value, dict) and all(isinstance(column, list) for column in value.values()):
        if len({len(column) for column in value.values()} - {0}) > 1:
            return None
        rows = range(max(map(len, value.values()), default=0))
        return [{name: column[row] for name, column in value.items() if column} for row in rows]
    if isinstance(value, list) and all(isinstance(record, dict) for record in value):
        return value
    return [] if value is None else None


def _string(value: Any) -> str:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _seconds(value: Any) -> str:
    """Reddit's time, which early dumps have as a string."""
    return iso_time(int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value)
