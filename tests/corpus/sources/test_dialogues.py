"""Dialogues of the three layouts from small files; scattered threads against threads in a row; injected damage."""

import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from yalm.corpus.document import Document, Reject
from yalm.corpus.sources.dialogues import Dialogues
from yalm.corpus.sources.groups import Groups
from yalm.errors import YalmError

Rows = list[dict[str, Any]]


def lines(rows: Iterable[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def written(file: Path, rows: Iterable[Any]) -> Path:
    data = lines(rows)
    file.write_bytes(zstandard.compress(data) if file.suffix == ".zst" else data)
    return file


def read(file: Path, layout: str, **settings: Any) -> tuple[dict[str, Document], list[Reject]]:
    source = Dialogues.parse({"paths": (str(file),), "layout": layout, **settings}, "test")
    sizes: list[int] = []
    found = [item for path in source.files() for item in source.read(path, sizes.append)]
    if file.is_file():
        assert sum(sizes) == file.stat().st_size
    documents = [item for item in found if isinstance(item, Document)]
    assert len({document.id for document in documents}) == len(documents)
    return {document.id: document for document in documents}, [item for item in found if isinstance(item, Reject)]


def said(name: str, parent: str, body: str, author: str = "anna", link: str = "p") -> dict[str, Any]:
    return {"id": name, "parent_id": parent, "link_id": f"t3_{link}", "body": body, "author": author}


POST = {
    "id": "p",
    "title": "Tea &amp; &lt;3",
    "selftext": "Green\n\nor black?",
    "author": "op",
    "created_utc": "1263171782",
}
COMMENTS = [
    said("a", "t3_p", "Green."),
    said("b", "t1_a", "/u/anna, why?", "boris"),
    said("c", "t1_b", "[deleted]", "[deleted]"),
    said("d", "t1_c", "Lost below."),
    said("e", "t3_p", "Black.", "clara"),
    said("f", "t1_gone", "Nobody knows before.", "dora"),
]


def test_reddit_chains_with_the_submission_beside(tmp_path: Path) -> None:
    written(tmp_path / "RC_2010-01.zst", COMMENTS)
    written(tmp_path / "RS_2010-01.zst", [POST])
    documents, rejects = read(tmp_path, "reddit", authors="mask")
    assert {name: document.text for name, document in documents.items()} == {
        "p:b": "A: Tea & <3\nGreen\nor black?\n\nB: Green.\n\nC: why?",
        "p:e": "A: Tea & <3\nGreen\nor black?\n\nB: Black.",
    }
    assert documents["p:b"].time == "2010-01-11T01:03:02Z"
    assert documents["p:b"].url == "https://www.reddit.com/comments/p"
    assert documents["p:b"].meta == {"turns": 3}
    assert [(reject.reason, reject.broken) for reject in rejects] == [("no text", False)]
    longest, _ = read(tmp_path, "reddit", chains="longest", authors="keep", separator=" | ")
    assert [document.text for document in longest.values()] == [
        "op: Tea & <3\nGreen\nor black? | anna: Green. | boris: why?"
    ]


def test_reddit_comments_alone_and_how_many_turns(tmp_path: Path) -> None:
    file = written(tmp_path / "RC.jsonl", [*COMMENTS, said("z", "t3_q", "Alone.", link="q")])
    documents, rejects = read(file, "reddit")
    assert {name: document.text for name, document in documents.items()} == {"p:b": "Green.\n\nwhy?"}
    assert [reject.reason for reject in rejects if "thread q" in reject.where] == ["too few turns"]
    assert set(read(file, "reddit", min_turns=1)[0]) == {"p:b", "p:e", "p:f", "q:z"}
    assert set(read(file, "reddit", min_turns=1, max_turns=1)[0]) == {"p:a", "p:e", "p:f", "q:z"}
    with pytest.raises(YalmError, match="max_turns 2 is less than min_turns 3"):
        read(file, "reddit", min_turns=3, max_turns=2)


def test_scattered_comments_come_together_in_their_order(tmp_path: Path) -> None:
    threads = [
        [{"id": f"p{number}", "title": f"Post {number}"}]
        + [
            said(
                f"c{number}-{i}", f"t1_c{number}-{i // 2 - 1}" if i > 1 else f"t3_p{number}", f"{i}", link=f"p{number}"
            )
            for i in range(12)
        ]
        for number in range(30)
    ]
    together = [row for thread in threads for row in thread]
    expected, _ = read(written(tmp_path / "a.jsonl", together), "reddit")
    queue = random.Random(0)
    scattered = []
    left = [thread for thread in threads if thread]
    while left := [thread for thread in left if thread]:
        scattered.append(queue.choice(left).pop(0))
    found, _ = read(written(tmp_path / "b.jsonl", scattered), "reddit")
    assert list(found.items()) == list(expected.items())
    assert len(found) > 100


def test_groups_are_the_same_in_memory_and_on_disk() -> None:
    choice = random.Random(1)
    rows = [
        (choice.choice(["a", "b", "я", "\ud800", ""]) + str(choice.randrange(40)), ["\udc00т" * 200, n])
        for n in range(9000)
    ]
    naive: dict[str, list[Any]] = {}
    for key, value in rows:
        naive.setdefault(key, []).append(value)
    for memory in (1 << 15, 1 << 27):
        with Groups(memory) as groups:
            for key, value in rows:
                groups.add(key, value)
            if sys.platform == "linux":
                spilled = sum(
                    link.stat().st_size for link in Path("/proc/self/fd").iterdir() if "etilqs" in str(link.resolve())
                )
                assert (spilled > 1 << 20) == (memory == 1 << 15)
            found = list(groups)
        assert [key for key, _ in found] == sorted(naive, key=lambda key: key.encode("utf-8", "surrogatepass"))
        assert dict(found) == naive


def pikabu(comments: Any, **fields: Any) -> dict[str, Any]:
    return {"id": 7, "title": "Чай", "text_markdown": "Зелёный?", "username": "op", "timestamp": 1263171782,
            "url": "https://pikabu.ru/story/7", "comments": comments} | fields  # fmt: skip


REPLIES = [
    {"id": 1, "parent_id": 0, "text_markdown": "Да", "username": "anna", "timestamp": 1},
    {"id": 2, "parent_id": 1, "text_markdown": "Почему?", "username": "op", "timestamp": 2},
    {"id": 3, "parent_id": 0, "text_markdown": "", "username": "pics", "timestamp": 3},
]
COLUMNS = {name: [reply[name] for reply in REPLIES] for name in REPLIES[0]}


@pytest.mark.parametrize("comments", [COLUMNS, COLUMNS | {"images": []}, REPLIES])
def test_pikabu_comments_by_column_or_by_record(tmp_path: Path, comments: Any) -> None:
    documents, rejects = read(written(tmp_path / "00.jsonl.zst", [pikabu(comments)]), "pikabu", authors="mask")
    assert documents == {
        "7:2": Document("A: Чай\nЗелёный?\n\nB: Да\n\nA: Почему?", "7:2", "pikabu", "ru",
                        "https://pikabu.ru/story/7", "2010-01-11T01:03:02Z", {"turns": 3})
    }  # fmt: skip
    assert not rejects


def test_damage_costs_what_is_damaged(tmp_path: Path) -> None:
    rows = [
        pikabu(COLUMNS | {"id": [1]}),
        pikabu(5),
        pikabu(COLUMNS, id=None),
        [1],
        pikabu(None),
        pikabu(REPLIES, id=8),
    ]
    documents, rejects = read(written(tmp_path / "a.jsonl", rows), "pikabu")
    assert set(documents) == {"8:2"}
    reasons = ["broken comments", "broken comments", "no id", "no JSON object", "too few turns"]
    assert [reject.reason for reject in rejects] == reasons
    assert [reject.broken for reject in rejects] == [True, True, True, True, False]
    # A cut file of scattered comments gives the threads of what stands before the cut.
    bulk = [said(f"n{n}", "t3_x", random.Random(n).randbytes(40).hex(), link="x") for n in range(9000)]
    cut = tmp_path / "RC.zst"
    cut.write_bytes(zstandard.compress(lines([*COMMENTS, {"id": "?"}, *bulk]))[:-1000])
    documents, rejects = read(cut, "reddit")
    assert documents["p:b"].text == "Green.\n\nwhy?"
    assert {"no post or comment", "compressed data ends early"} <= {
        reject.reason for reject in rejects if reject.broken
    }


VK: Rows = [
    {"id": 10, "owner_id": -5, "from_id": -5, "text": "Какой чай?", "date": 1263171782},
    {"id": 11, "owner_id": -5, "post_id": 10, "from_id": 1, "text": "Зелёный", "reply_to_comment": 0},
    {"id": 12, "owner_id": -5, "post_id": 10, "from_id": 2, "text": "[id1|Анна], почему?", "reply_to_comment": 11},
    {"id": 13, "owner_id": -5, "post_id": 10, "from_id": 3, "text": "Чёрный", "parents_stack": [11]},
    {"id": 11, "owner_id": -6, "post_id": 10, "from_id": 9, "text": "Другая стена"},
    {"id": 14, "owner_id": -5, "from_id": -5, "text": "", "date": 1},
    {"id": 15, "owner_id": -5, "post_id": 14, "from_id": 1, "text": "Красиво"},
    {"id": 16, "owner_id": -5, "post_id": 14, "from_id": 2, "text": "[id1|Анна], да", "reply_to_comment": 15},
]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_vk_posts_and_comments(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"wall{ending}"
    if ending == ".parquet":
        pq.write_table(
            pa.Table.from_pylist([dict.fromkeys(key for row in VK for key in row) | row for row in VK]), file
        )
    else:
        written(file, VK)
    documents, rejects = read(file, "vk", authors="mask")
    assert {name: document.text for name, document in documents.items()} == {
        "-5_10:12": "A: Какой чай?\n\nB: Зелёный\n\nC: почему?",
        "-5_10:13": "A: Какой чай?\n\nB: Зелёный\n\nC: Чёрный",
        "-5_14:16": "A: Красиво\n\nB: да",
    }
    assert documents["-5_10:12"].url == "https://vk.com/wall-5_10"
    assert documents["-5_10:12"].time == "2010-01-11T01:03:02Z"
    assert sorted(reject.reason for reject in rejects) == ["no text", "too few turns"]


def test_posts_beside_comments_are_not_read_twice(tmp_path: Path) -> None:
    posts = written(tmp_path / "posts.jsonl", [row for row in VK if "post_id" not in row])
    written(tmp_path / "comments.jsonl", [row for row in VK if "post_id" in row])
    assert set(read(tmp_path, "vk")[0]) == {"-5_10:12", "-5_10:13", "-5_14:16"}
    assert set(read(posts, "vk", min_turns=1)[0]) == {"-5_10:-"}
