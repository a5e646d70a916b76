"""Taiga's collections and networks in folders and archives, whole and damaged."""

import io
import random
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yalm.corpus.document import Document, Reject
from yalm.corpus.sources.archives import members
from yalm.corpus.sources.taiga import Taiga
from yalm.errors import YalmError
from yalm.streams import BrokenFile

TABLE = "\n".join(
    [
        "segment\ttextname\ttextid\tdate\tauthor\ttextrubric\ttags",
        'Fontanka\t"Дождь и ""ветер"""\tn1\t31.12.2009\tАнна\tПогода\tдождь, ветер, http://fontanka.ru/1\t',
        'Fontanka\t"Снег\tn2\t2010, 3',
        "Fontanka\tбез номера\t\t1.1.2010",
        "Fontanka\tслиш\tком\tмного\tя\tче\tе\tк\tздесь",
        "Fontanka\tплохой день\tn3\t45.01.2010",
    ]
)
FILES = {  # in the order of the archive: the table comes last, and the other collection's has a text of the same name
    "home/Fontanka/texts/2009/n1.txt": "Шёл дождь.".encode(),
    "home/Fontanka/texts/n2.txt": b"\xef\xbb\xbf" + "Шёл снег.".encode(),
    "home/Fontanka/texts/n3.txt": "Опять дождь и ветер, и холодно на улице.".encode("cp1251"),
    "home/Fontanka/texts/empty.txt": b" \n",
    "home/Fontanka/tagged_texts/n1.txt": b"1\tShel",
    "home/Fontanka/about.txt": b"About",
    "home/proza/texts/2011/05/n1.txt": "Проза.".encode(),
    "home/proza/metatable_texts.txt": "textid\tURL\ttitle\tgenre\nn1\thttp://proza.ru/1\tРассказ\tпроза".encode(),
    "home/Fontanka/metatable.csv": TABLE.encode("utf-8-sig"),
}
FORMS = ["folder", "a.tar", "a.tar.gz", "a.zip"]


def packed(folder: Path, form: str, files: Mapping[str, bytes] = FILES) -> Path:
    path = folder / form
    if form == "folder":
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    elif form.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz" if form.endswith("gz") else "w") as tar:
            for name, data in files.items():
                header = tarfile.TarInfo(name)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    return path


def read(path: Path, layout: str = "texts") -> tuple[list[Document], list[Reject]]:
    source = Taiga.parse({"paths": (str(path),), "layout": layout}, "test")
    sizes: list[int] = []
    files = source.files()
    found = [item for file in files for item in source.read(file, sizes.append)]
    if path.is_file() and not any(isinstance(item, Reject) and "broken" in item.reason for item in found):
        assert sum(sizes) == path.stat().st_size
    return [item for item in found if isinstance(item, Document)], [item for item in found if isinstance(item, Reject)]


@pytest.mark.parametrize("form", FORMS)
def test_texts_are_joined_with_the_table_of_their_collection(tmp_path: Path, form: str) -> None:
    documents, rejects = read(packed(tmp_path, form))
    weather = {"title": 'Дождь и "ветер"', "author": "Анна", "rubric": "Погода", "tags": "дождь, ветер"}
    assert sorted(documents, key=lambda document: document.text) == sorted(
        [
            Document("Шёл дождь.", "n1", "Fontanka", "ru", "http://fontanka.ru/1", "2009-12-31", weather),
            Document("Шёл снег.", "n2", "Fontanka", "ru", "", "2010-03", {"title": '"Снег'}),
            Document(
                "Опять дождь и ветер, и холодно на улице.", "n3", "Fontanka", "ru", "", "", {"title": "плохой день"}
            ),
            Document(
                "Проза.", "n1", "proza", "ru", "http://proza.ru/1", "2011-05", {"title": "Рассказ", "genre": "проза"}
            ),
        ],
        key=lambda document: document.text,
    )
    assert sorted((reject.reason, reject.broken) for reject in rejects) == [
        ("broken row of the table", True),
        ("broken row of the table", True),
        ("no text", False),
    ]
    assert all("metatable.csv" in reject.where for reject in rejects if reject.broken)


@pytest.mark.parametrize("form", ["folder", "a.tar"])
def test_only_russian_subtitles(tmp_path: Path, form: str) -> None:
    table = "id\tfilepath\ttitle\tlanguages\n1\ttexts/A/A - 1x01.txt\tA\ten\n2\ttexts/A/A - 1x02.txt\tA\tru\n"
    files = {
        f"Subtitles/texts/A/A - {name}.txt": b"text" for name in ("1x01", "1x02", "1x03.VER.ru", "1x04.VER.en", "1x05")
    }
    documents, rejects = read(packed(tmp_path, form, files | {"Subtitles/metatable.csv": table.encode()}))
    assert {document.id: document.meta for document in documents} == {
        "A - 1x02": {"title": "A"},
        "A - 1x03.VER.ru": {},
        "A - 1x05": {},
    }
    assert [(reject.reason, reject.sample, reject.broken) for reject in rejects] == [
        ("other language", "en", False),
        ("other language", "en", False),
    ]


@pytest.mark.parametrize("form", ["a.tar", "a.tar.gz", "a.zip"])
def test_a_cut_archive_gives_what_stands_before_the_cut(tmp_path: Path, form: str) -> None:
    files = {"metatable.csv": b"textid\ttitle\n0\tzero"} | {
        f"texts/{n}.txt": random.Random(n).randbytes(3000).hex().encode() for n in range(9)
    }
    path = packed(tmp_path, form, files)
    data = path.read_bytes()
    counts = set()
    for end in (1, 2000, len(data) // 3, len(data) // 3 + 512, 1024 + 2 * (512 + 6144), len(data) * 2 // 3):
        path.write_bytes(data[:end])
        documents, rejects = read(path)
        assert rejects[-1].where == str(path)
        assert rejects[-1].broken
        assert len({reject.where for reject in rejects}) == len(rejects)
        for number, document in enumerate(documents):
            assert (document.text.encode(), document.id) == (files[f"texts/{number}.txt"], str(number))
            assert document.meta == ({} if number else {"title": "zero"})
            assert document.source == "a"
        counts.add(len(documents))
    assert max(counts) == 0 if form == "a.zip" else max(counts) > 3  # the list of a zip's files is at its end


def test_one_broken_member_of_a_zip_costs_itself(tmp_path: Path) -> None:
    files = {f"texts/{n}.txt": random.Random(n).randbytes(3000).hex().encode() for n in range(5)}
    path = packed(tmp_path, "a.zip", files)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("texts/2.txt").header_offset
    data = bytearray(path.read_bytes())
    data[start + 1000 : start + 1100] = bytes(100)
    path.write_bytes(data)
    documents, rejects = read(path)
    assert [document.id for document in documents] == ["0", "1", "3", "4"]
    assert [(reject.where, reject.reason) for reject in rejects] == [(f"{path}/texts/2.txt", "broken archive")]


def test_links_and_devices_are_no_members_and_nothing_is_written(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    tar, archive = tmp_path / "a.tar", tmp_path / "a.zip"
    with tarfile.open(tar, "w") as out:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            header = tarfile.TarInfo("texts/link.txt")
            header.type, header.linkname = kind, str(secret)
            out.addfile(header)
        header = tarfile.TarInfo("../../texts/up.txt")
        header.size = 2
        out.addfile(header, io.BytesIO(b"up"))
    with zipfile.ZipFile(archive, "w") as zipped:
        link = zipfile.ZipInfo("texts/link.txt")
        link.external_attr = 0o120777 << 16
        zipped.writestr(link, str(secret))
        zipped.writestr("../../texts/up.txt", "up")
    before = sorted(tmp_path.rglob("*"))
    for path in (tar, archive):
        documents, rejects = read(path)
        assert [(document.id, document.text) for document in documents] == [("up", "up")]
        assert not rejects
    assert sorted(tmp_path.rglob("*")) == before


@given(st.lists(st.tuples(st.text("абв \t", max_size=9), st.booleans()), max_size=5), st.sampled_from(FORMS))
def test_records_of_a_network(
    tmp_path_factory: pytest.TempPathFactory, records: list[tuple[str, bool]], form: str
) -> None:
    folder = tmp_path_factory.mktemp("social")
    text = "".join(
        f"DataBaseItem: {n}\r\n{said}\n" + (f"\n{said}\n" if twice else "") for n, (said, twice) in enumerate(records)
    )
    lines = "".join(f"{said}\n" for said, _ in records)
    files = {"social/vktexts.txt": text.encode("utf-8-sig"), "social/lj.txt": lines.encode("utf-8-sig")}
    documents, rejects = read(packed(folder, form, files), "social")
    network = [document for document in documents if document.source == "vktexts"]
    assert [(document.id, document.text) for document in network] == [
        (f"vktexts:{n}", (f"{said}\n\n{said}" if twice else said).strip())
        for n, (said, twice) in enumerate(records)
        if said.strip()
    ]
    blog = [document for document in documents if document.source == "lj"]
    assert [(document.id, document.text) for document in blog] == [
        (f"lj:{n}", said.strip()) for n, (said, _) in enumerate(records, start=1) if said.strip()
    ]
    assert len(rejects) == len(records) - len(network)
    assert not any(reject.broken for reject in rejects)


def test_what_is_no_archive_or_not_there(tmp_path: Path) -> None:
    for name in ("a.tar", "a.tar.gz", "a.zip"):
        (tmp_path / name).write_bytes(b"no archive" * 99)
        with pytest.raises(BrokenFile):
            list(members(tmp_path / name, lambda size: None))
        with pytest.raises(YalmError, match="cannot read the file"):
            list(members(tmp_path / "gone" / name, lambda size: None))
