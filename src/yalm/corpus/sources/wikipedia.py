"""Wikipedia: the pages of a `pages-articles.xml` dump, of any language and schema, as plain text under their titles.

The dump is streamed through a parser that is fed piece by piece and forgets every page it has shown, so a multistream
file (thousands of bz2 members in a row) is read like any other, and a dump cut in the middle loses only what is cut.
One process reads one file; the parts into which Wikimedia splits the large dumps are what many processes share.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple
from urllib.parse import quote

from yalm.corpus.document import Document, Reject
from yalm.corpus.sources.records import language_code
from yalm.corpus.sources.source import Source
from yalm.corpus.sources.wikitext import TangledMarkup, plain_text
from yalm.streams import BrokenFile, open_bytes, sample

_PIECE = 1 << 16  # bytes
_DISAMBIGUATION = re.compile(
    r"__DISAMBIG__|\{\{\s*(?:неоднозначность|многозначность|disambig\w*|disamb|dab|hndis|geodis|numberdis"
    r"|(?:human|place|school|airport|hospital|mathematical|number) name disambiguation"
    r"|список однофамильцев|однофамильцы|surname|set index article|sia)\s*(?:[|}/-]|\n)",
    re.IGNORECASE,
)
_DISAMBIGUATION_TITLE = re.compile(r".+\((?:значения|disambiguation)\)")
_PLAIN = ":/,;@()!*'"  # what Wikipedia leaves unquoted in its addresses
_EDITION = re.compile(r"([a-z]+)(?:_[a-z_]+?)?wik")


class Wikipedia(Source):
    """Articles of Wikipedia: pages of the main namespace in wikitext that are neither redirects nor disambiguations."""

    suffixes: ClassVar[tuple[str, ...]] = (".xml", ".xml.bz2", ".xml.gz", ".xml.zst")

    kind: Literal["wikipedia"] = "wikipedia"

    def read(self, file: Path, advance: Callable[[int], None]) -> Iterator[Document | Reject]:
        site = _Site("", "")
        last = "start"
        for element in _elements(file, advance):
            if isinstance(element, str):
                yield Reject(f"{file}:after {last}", element)
            elif element.tag.endswith("siteinfo"):
                site = _Site.of(element)
            else:
                last = element.findtext("{*}id") or "a page without an id"
                item = _article(element, site, f"{file}:{last}")
                if item is not None:
                    yield item


class _Site(NamedTuple):
    """What the head of a dump says of all its pages: their language and where they stand."""

    language: str
    root: str

    @classmethod
    def of(cls, siteinfo: Any) -> "_Site":
        base = siteinfo.findtext("{*}base") or ""
        edition = _EDITION.match(siteinfo.findtext("{*}dbname") or "")
        name = edition[1] if edition else base.partition("://")[2].partition(".")[0]
        return cls("en" if name == "simple" else language_code(name), base.rpartition("/")[0])


def _article(page: Any, site: _Site, where: str) -> Document | Reject | None:
    """The document of a `<page>`; None for pages that are no articles."""
    title = page.findtext("{*}title") or ""
    revision = page.find("{*}revision[last()]")
    if revision is None or page.findtext("{*}ns") != "0" or page.find("{*}redirect") is not None:
        return None
    source = revision.findtext("{*}text") or ""
    if (revision.findtext("{*}model") or "wikitext") != "wikitext" or _is_disambiguation(title, source):
        return None
    try:
        text = plain_text(source)
    except TangledMarkup:
        return Reject(where, "tangled markup", sample(source))
    if not text:
        return Reject(where, "no text", sample(source))
    return Document(
        f"{title}\n\n{text}",
        page.findtext("{*}id") or title,
        "wikipedia",
        site.language,
        f"{site.root}/{quote(title.replace(' ', '_'), safe=_PLAIN)}" if site.root else "",
        revision.findtext("{*}timestamp") or "",
        {"title": title, "revision": revision.findtext("{*}id") or ""},
    )


def _is_disambiguation(title: str, source: str) -> bool:
    return bool(_DISAMBIGUATION_TITLE.fullmatch(title) or _DISAMBIGUATION.search(source))


def _elements(file: Path, advance: Callable[[int], None]) -> Iterator[Any]:
    """The `<siteinfo>` and `<page>` elements; at the end, if the file is broken, a few words of how.

    The parser takes nothing from the dump but its own elements: no entities are resolved, nothing is loaded, and
    without `huge_tree` a text beyond 10 MB, five times what MediaWiki saves, ends the reading.
    """
    from lxml import etree

    parser = etree.XMLPullParser(
        events=("end",),
        tag=("{*}siteinfo", "{*}page"),
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    fault, data = "", b""
    with open_bytes(file, advance) as stream:
        while not fault:
            try:
                data = stream.read(_PIECE)
                if data:
                    parser.feed(data)
                else:
                    parser.close()
            except BrokenFile as error:
                fault = error.reason
            except etree.XMLSyntaxError:
                fault = "broken XML"
            for _, element in parser.read_events():
                yield element
                element.clear()
                while element.getprevious() is not None:
                    del element.getparent()[0]
            if not data:
                break
    if fault:
        yield fault
