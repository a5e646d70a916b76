"""Wikitext to plain text: what a reader of the page would read from top to bottom, without tables, notes and boxes.

The syntax is mwparserfromhell's business. What it need not see is cut before, since it is the slow part: comments,
notes, and the trailing sections of sources and links. Its time grows with the number of brackets that nothing closes
times the length of the page, and it recurses where they nest; pages beyond the bounds below, which no editor writes,
are a `TangledMarkup` instead of minutes. Templates are not expanded (their code is not in the page): a few that only
dress their text yield it, the rest are dropped.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

PAGE_LIMIT = 1 << 22  # characters; MediaWiki saves none of more than 2**21 bytes
_DEPTH_LIMIT = 60  # brackets in each other
_WORK_LIMIT = 20_000_000  # brackets left open, times characters: about two seconds

# MediaWiki ends each of these at the next closing tag of its name, whatever stands between.
_OPAQUE = re.compile(
    r"<!--|<(ref|references|gallery|timeline|score|imagemap|hiero|graph|mapframe|maplink|templatedata|templatestyles"
    r"|inputbox|categorytree|includeonly|indicator|style|section)\b[^<>]*>",
    re.IGNORECASE,
)
_BRACKETS = re.compile(
    r"(?P<template>\{\{)|(?P<template_>\}\})|(?P<link>\[\[)|(?P<link_>\]\])"
    r"|(?P<table>^[ \t:]*\{\|)|(?P<table_>^[ \t]*\|\})|(?P<url>\[(?=[a-z]+:|//))|(?P<url_>\])"
    r"|(?P<tag><(?!br\b|hr\b)[a-z][^<>]*(?<!/)(?:>|(?=<)|\Z))|(?P<tag_></)",
    re.MULTILINE | re.IGNORECASE,
)
_NESTING = ("template", "link", "table")
_HEADING = re.compile(r"^(={1,6})([^\n]+?)\1[ \t]*$", re.MULTILINE)
_TRAILING = frozenset(
    (
        *("примечания", "примечание", "комментарии", "сноски", "источники", "использованная литература", "литература"),
        *("библиография", "ссылки", "внешние ссылки", "см. также", "смотри также", "смотрите также", "галерея"),
        *("литература и ссылки", "ссылки и литература", "ссылки и примечания", "примечания и ссылки"),
        *("references", "notes", "notes and references", "references and notes", "footnotes", "citations", "sources"),
        *("works cited", "bibliography", "further reading", "external links", "see also", "explanatory notes"),
        "gallery",
    )
)
_DROPPED_LINKS = re.compile(
    r"\s*(?:(?i:file|image|media|category|файл|изображение|медиа|категория)|simple|[a-z]{2,3}(?:-[a-z-]+)?)\s*:"
)
_DROPPED_TAGS = frozenset(("table", "ref", "references", "gallery", "timeline", "score", "style", "imagemap", "hiero"))
_LIST_MARKS = {"*": "- ", "#": "- ", ":": "", ";": ""}

# The place of the text among a template's arguments, by the template's name; 0 is the last one.
_TEXT_PLACE: Mapping[str, int] = {
    **dict.fromkeys(("nobr", "nowrap", "nobold", "s", "small", "big", "em", "strong", "comment", "abbr", "tooltip"), 1),
    **dict.fromkeys(
        ("подсказка", "sub", "sup", "math", "mvar", "num", "formatnum", "число", "ударение", "iw", "ill"), 1
    ),
    **dict.fromkeys(("interlanguage link", "quote", "blockquote", "цитата", "кавычки", "sic", "not a typo", "vr"), 1),
    **dict.fromkeys(("lang", "нп", "нп2", "нп3", "нп4", "нп5", "не переведено", "не переведено 5", "color"), 2),
    **dict.fromkeys(("transl", "transliteration", "iast", "ipa"), 0),
}
_SIGNS = {
    "—": " — ",
    "-": " — ",
    "тире": " — ",
    "snd": " – ",
    "ndash": "–",
    "mdash": "—",
    "nbsp": " ",
    "!": "|",
    "ё": "ё",
}

_QUOTES = re.compile(r"'{2,5}")
_SWITCHES = re.compile(r"__[^\W\d_]{3,}(?:_[^\W\d_]+)*__")
_LEFT_OPEN = re.compile(r"\{\{+|\}\}+|\[\[+|\]\]+|\{\||^\|\}|^\|-.*$", re.MULTILINE)
_HOLLOW = re.compile(r"\([\s,;:–—-]*\)")
_HOLLOW_START = re.compile(r"\([ \t]*[,;:][ \t]*")
_SPACES = re.compile(r"[ \t]{2,}")
_SPACE_BEFORE = re.compile(r"[ \t](?=[,.;)](?:\s|$))")
_NESTED_ITEM = re.compile(r"^(?:- ){2,}", re.MULTILINE)
_MARKED_HEADING = re.compile(r"\x00(\d)(.*)")


class TangledMarkup(Exception):
    """The brackets of a page are too many, too deep, or too often left open to be parsed in reasonable time."""


def plain_text(wikitext: str) -> str:
    """The text of a page; empty if nothing is left of it. `TangledMarkup` if it is beyond the bounds of this module."""
    import mwparserfromhell

    if len(wikitext) > PAGE_LIMIT:
        raise TangledMarkup
    source = _without_trailing_sections(_without_opaque(wikitext.replace("\x00", "")))
    _check_brackets(source)
    try:
        code = mwparserfromhell.parse(source, skip_style_tags=True)
        text = "".join(_texts(code.nodes))
    except RecursionError:
        raise TangledMarkup from None
    return _tidy(text)


def _without_opaque(text: str) -> str:
    """The text without comments and without the tags whose content is not prose. Linear: a search that failed is not
    made again."""
    parts: list[str] = []
    unclosed: set[str] = set()
    position = 0
    lowered = text.lower() if len(text.lower()) == len(text) else text
    while found := _OPAQUE.search(text, position):
        parts.append(text[position : found.start()])
        position = found.end()
        closing = f"</{found[1].lower()}" if found[1] else "-->"
        if found[0].endswith("/>") or closing in unclosed:
            continue
        end = lowered.find(closing, position)
        if end < 0:
            unclosed.add(closing)
            continue
        position = end + len(closing)
        if found[1]:
            position = text.find(">", position) + 1 or len(text)
    parts.append(text[position:])
    return "".join(parts)


def _without_trailing_sections(text: str) -> str:
    """The text without the sections of notes, sources and links, each up to the next heading of its level or above."""
    parts: list[str] = []
    start, dropped = 0, 0
    for heading in _HEADING.finditer(text):
        level = len(heading[1])
        if not dropped or level <= dropped:
            if not dropped:
                parts.append(text[start : heading.start()])
            start = heading.start()
            dropped = level if heading[2].strip(" \t'.:").lower() in _TRAILING else 0
    if not dropped:
        parts.append(text[start:])
    return "".join(parts)


def _check_brackets(text: str) -> None:
    """`TangledMarkup` if brackets nest too deep, or so many are left open that parsing would take long."""
    depths: dict[str, int] = {}
    depth = 0
    for found in _BRACKETS.finditer(text):
        name = str(found.lastgroup)
        if not name.endswith("_"):
            depths[name] = depths.get(name, 0) + 1
            depth += name in _NESTING
        elif depths.get(name[:-1]):
            depths[name[:-1]] -= 1
            depth -= name[:-1] in _NESTING
        if depth > _DEPTH_LIMIT:
            raise TangledMarkup
    if sum(depths.values()) * len(text) > _WORK_LIMIT:
        raise TangledMarkup


def _texts(nodes: Iterable[Any]) -> Iterator[str]:
    for node in nodes:
        yield _WRITERS[type(node).__name__](node)


def _inside(code: Any) -> str:
    return "".join(_texts(code.nodes)) if code is not None else ""


def _wikilink(node: Any) -> str:
    title = str(node.title).strip()
    if _DROPPED_LINKS.match(title):
        return ""
    return _inside(node.text) if node.text is not None else title.removeprefix(":")


def _external_link(node: Any) -> str:
    return _inside(node.title) if node.brackets else str(node.url)


def _template(node: Any) -> str:
    name = str(node.name).strip().lower().replace("_", " ")
    if name in _SIGNS:
        return _SIGNS[name]
    if ":" in name:  # a function of the parser
        return str(node.name).partition(":")[2].strip() if name.startswith("formatnum:") else ""
    place = 0 if name.startswith("lang-") else _TEXT_PLACE.get(name)
    unnamed = [param for param in node.params if not param.showkey]
    if place is None or len(unnamed) < max(place, 1):
        return ""
    return _inside(unnamed[place - 1].value).strip()


def _tag(node: Any) -> str:
    name = str(node.tag).strip().lower()
    if node.wiki_markup in _LIST_MARKS:
        return _LIST_MARKS[str(node.wiki_markup)]
    if name in ("br", "hr"):
        return "\n"
    if name in _DROPPED_TAGS:
        return ""
    content = _inside(node.contents)
    if name in ("math", "chem", "ce"):
        return " ".join(content.split())
    return f"\n{content}\n" if name in ("p", "div", "blockquote", "center", "poem", "pre", "li", "dd") else content


def _heading(node: Any) -> str:
    return f"\n\n\x00{node.level}{' '.join(_inside(node.title).split())}\n\n"


def _entity(node: Any) -> str:
    character = str(node.normalize())
    return "" if unicodedata.category(character) in ("Cc", "Cs", "Cn") else character


_WRITERS: Mapping[str, Callable[[Any], str]] = {
    "Text": lambda node: str(node.value),
    "Wikilink": _wikilink,
    "ExternalLink": _external_link,
    "Template": _template,
    "Tag": _tag,
    "Heading": _heading,
    "HTMLEntity": _entity,
    "Comment": lambda node: "",
    "Argument": lambda node: _inside(node.default),
}


def _tidy(text: str) -> str:
    """Mends what dropping leaves: hollow brackets, spaces, blank lines in a row, headings of nothing."""
    for pattern, repair in (
        (_QUOTES, ""),
        (_SWITCHES, ""),
        (_LEFT_OPEN, ""),
        (_HOLLOW, ""),
        (_HOLLOW_START, "("),
        (_SPACES, " "),
        (_SPACE_BEFORE, ""),
        (_NESTED_ITEM, "- "),
    ):
        text = pattern.sub(repair, text)
    kept: list[str] = []
    below = 0  # level of the heading kept last, from the end; 7 is text
    for line in reversed(text.split("\n")):
        line = line.strip(" \t")
        if heading := _MARKED_HEADING.fullmatch(line):
            level = int(heading[1])
            if level >= below or not heading[2]:
                continue
            below, line = level, heading[2]
        elif line in ("", "-"):
            if kept and kept[-1]:
                kept.append("")
            continue
        else:
            below = 7
        kept.append(line)
    return "\n".join(reversed(kept)).strip()
