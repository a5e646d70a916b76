"""Wikitext as plain text: what a reader of the article reads, without tables, notes, pictures and boxes.

Templates are not expanded, for that takes the wiki's own; a few that only mark up their text keep it, the others go.
The parser (mwparserfromhell) follows MediaWiki closely, and its time on markup that opens and never closes grows with
the square of it. Pages longer or nested deeper than any article is are therefore stripped by expressions that take
linear time and know less: a table that never closes then takes the rest of its page with it.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

PARSED_LIMIT = 1 << 20  # characters
NESTING_LIMIT = 50  # braces, brackets and tags in each other
_STRIP_PASSES = 20

_MARK = re.compile(r"\{\{|\}\}|\{\||(?<=\n)\|\}(?!\})|\[|\]|</?[a-zA-Z]+|/?>")
_CLOSES = {"}}": "{{", "|}": "{|", "]": "[", ">": "<"}
_FLAT = frozenset(("<br", "<hr", "<wbr"))  # tags that have no end
_HIDDEN_TITLES = re.compile(
    r"\s*(?:file|image|media|category|файл|изображение|медиа|категория|[a-z]{2,3}(?:-[a-z]+)*)\s*:", re.IGNORECASE
)
_HIDDEN_TAGS = frozenset(
    (
        *("ref", "references", "table", "gallery", "math", "chem", "ce", "score", "timeline", "imagemap", "graph"),
        *("syntaxhighlight", "source", "mapframe", "maplink", "templatestyles", "templatedata", "inputbox"),
        *("categorytree", "includeonly", "indicator", "section", "hiero"),
    )
)
_TRAILING = frozenset(
    (
        *("примечания", "ссылки", "литература", "см. также", "источники", "комментарии", "сноски", "галерея"),
        *("references", "external links", "see also", "notes", "further reading", "bibliography", "sources"),
        *("notes and references", "citations", "footnotes", "gallery"),
    )
)
# The parameter that holds the text of a template.
_TEXT_TEMPLATES = {"lang": "2", "nobr": "1", "nowrap": "1", "s": "1", "abbr": "1", "comment": "1", "sfrac": "1"}
_LANGUAGE_TEMPLATE = re.compile(r"lang-[a-z-]+")
_DISAMBIGUATION = re.compile(
    r"\{\{\s*(?:disambig(?:uation)?|dab|hndis|geodis|неоднозначность|многозначность|disambig-[^{}|]*)\s*[|}]"
    r"|__disambig__",
    re.IGNORECASE,
)
_REDIRECT = re.compile(r"\s*#\s*(?:redirect|перенаправление)\b", re.IGNORECASE)


def is_disambiguation(source: str) -> bool:
    """Whether a page says that it only lists meanings of its title."""
    return _DISAMBIGUATION.search(source) is not None


def is_redirect(source: str) -> bool:
    """Whether a page only leads to another."""
    return _REDIRECT.match(source) is not None


def plain_text(source: str) -> str:
    """The text of a page: paragraphs, headings and items of lists as lines, at most one blank line between them."""
    source = _without(source, "<!--", "-->").partition("<!--")[0]
    if len(source) > PARSED_LIMIT or _nesting(source) > NESTING_LIMIT:
        return _tidy(_strip(source))
    import mwparserfromhell
    from mwparserfromhell.parser import ParserError

    try:
        code = mwparserfromhell.parse(source, skip_style_tags=True)
    except ParserError:  # a fault of its own, met once in a while
        return _tidy(_strip(source))
    return _tidy("".join(_article(code)))


def _article(code: Any) -> Iterator[str]:
    """The texts of all nodes outside of trailing sections."""
    from mwparserfromhell.nodes import Heading

    left_out = 0  # level of the heading whose section is left out
    for node in code.nodes:
        if isinstance(node, Heading):
            title = _text(node.title).strip()
            if not left_out or node.level <= left_out:
                left_out = node.level if title.casefold() in _TRAILING else 0
                if not left_out:
                    yield f"\n{title}\n"
        elif not left_out:
            yield _node_text(node)


def _text(code: Any) -> str:
    return "".join(map(_node_text, code.nodes))


def _node_text(node: Any) -> str:
    from mwparserfromhell import nodes

    match node:
        case nodes.Text():
            return str(node.value)
        case nodes.Wikilink():
            title = str(node.title)
            return "" if _HIDDEN_TITLES.match(title) else _text(node.text or node.title).lstrip(":")
        case nodes.ExternalLink():
            return _text(node.title) if node.title is not None else "" if node.brackets else str(node.url)
        case nodes.HTMLEntity():
            return str(node.normalize())
        case nodes.Template():
            return _template_text(node)
        case nodes.Heading():
            return f"\n{_text(node.title).strip()}\n"
        case nodes.Tag():
            name = str(node.tag).strip().lower()
            if name in ("br", "hr"):
                return "\n"
            return "" if name in _HIDDEN_TAGS or node.contents is None else _text(node.contents)
    return ""  # comments, arguments of templates


def _template_text(node: Any) -> str:
    name = str(node.name).strip().lower()
    wanted = "1" if _LANGUAGE_TEMPLATE.fullmatch(name) else _TEXT_TEMPLATES.get(name)
    return _text(node.get(wanted).value) if wanted and node.has(wanted) else ""


def _tidy(text: str) -> str:
    """Without what the parts taken out leave behind: quotes for bold, magic words, empty brackets, blanks."""
    text = re.sub(r"'{2,5}", "", text.replace("\xa0", " ").replace("\u200b", ""))
    text = re.sub(r"__[A-ZА-Я]{3,30}__", "", text)
    text = re.sub(r"\((?:[ ,;:]|—|–)*\)", "", text)
    text = re.sub(r"\( ?[,;] ?", "(", text)
    text = re.sub(r"[ ,;]+\)", ")", text)
    text = re.sub(r"[ \t]+", " ", text)
    text = re.sub(r" (?=[,.;:)\n])", "", text)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"\n +", "\n", text)).strip()


def _nesting(source: str) -> int:
    """How deep markup of one kind is nested at most, where what never closes counts as open to the end."""
    depths: Counter[str] = Counter()
    deepest = 0
    tag = ""
    for found in _MARK.finditer(source):
        mark = found[0].lower()
        opened = closed = ""
        if mark[0] == "<":
            depths["<"] += 1
            deepest = max(deepest, depths["<"])
            if mark[1] == "/":
                closed = "tag"
            else:
                tag = mark
                opened = "" if tag in _FLAT else "tag"
        elif mark == "/>":
            depths["<"] = max(0, depths["<"] - 1)
            closed = "" if tag in _FLAT else "tag"
        elif mark in _CLOSES:
            closed = _CLOSES[mark]
        else:
            opened = mark
        if opened:
            depths[opened] += 1
            deepest = max(deepest, depths[opened])
        elif depths[closed]:
            depths[closed] -= 1
    return deepest


def _strip(source: str) -> str:
    """The text of a page by expressions alone."""
    source = re.sub(r"<ref\b[^<>]*/>", "", source, flags=re.IGNORECASE)
    source = _without(source, "<ref", "</ref>")
    for _ in range(_STRIP_PASSES):  # from the innermost outwards
        source, count = re.subn(r"\{\{[^{}]*\}\}", "", source)
        if not count:
            break
    for _ in range(_STRIP_PASSES):
        source, count = re.subn(r"\[\[([^\[\]]*)\]\]", _link_text, source)
        if not count:
            break
    source = re.sub(r"\[https?://[^\s\[\]]* ?([^\[\]\n]*)\]", r"\1", source)
    source = re.sub(r"<br\b[^<>]*>", "\n", source, flags=re.IGNORECASE)
    source = re.sub(r"</?[a-zA-Z][^<>]*>", "", source)
    return re.sub(r"\{\{+|\}\}+|\[\[+|\]\]+", "", "".join(_lines(source)))


def _lines(source: str) -> Iterator[str]:
    """The lines outside of tables and trailing sections, without the marks of headings and lists."""
    tables = left_out = 0
    for line in source.splitlines():
        start = line.lstrip(" \t:")
        tables += start.startswith("{|")
        if tables:
            tables -= start.startswith("|}")
        elif (size := len(line) - len(line.lstrip("="))) and line.rstrip().endswith("="):
            title = line.strip("= \t")
            if not left_out or size <= left_out:
                left_out = size if title.casefold() in _TRAILING else 0
                if not left_out:
                    yield f"\n{title}\n"
        elif not left_out:
            yield line.lstrip("*#:;") + "\n"


def _link_text(link: re.Match[str]) -> str:
    return "" if _HIDDEN_TITLES.match(link[1]) else link[1].rpartition("|")[2].lstrip(":")


def _without(source: str, begin: str, end: str) -> str:
    """What stands outside of two marks; a mark that never ends is text."""
    parts = []
    start = 0
    while (found := source.find(begin, start)) >= 0 and (last := source.find(end, found)) >= 0:
        parts.append(source[start:found])
        start = last + len(end)
    return "".join(parts) + source[start:]
