"""Dumps of a wiki: `ruwiki-latest-pages-articles.xml.bz2`, also as many members (multistream), and plain XML.

Of its pages the articles are taken (namespace 0), in the text of `wikitext`, the title as their first line. Redirects
and pages of other namespaces are no records of interest and passed over; pages that only list meanings are counted.
The layout is MediaWiki's export format (https://www.mediawiki.org/wiki/Help:Export), of any version. A dump is one XML
text: where it breaks, nothing after it is read.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import quote

from yalm.corpus.document import Document, Reject
from yalm.corpus.sources.records import iso_time, language_code
from yalm.corpus.sources.source import Source
from yalm.corpus.sources.streams import BrokenFile, open_bytes, sample
from yalm.corpus.sources.wikitext import is_disambiguation, is_redirect, plain_text


class Wikipedia(Source):
    """Dumps of Wikipedia and its kindred; the language and the source are those of the database's name."""

    suffixes: ClassVar[tuple[str, ...]] = (".xml.bz2", ".xml", ".xml.gz", ".xml.zst")

    kind: Literal["wikipedia"] = "wikipedia"

    def read(self, file: Path, advance: Callable[[int], None]) -> Iterator[Document | Reject]:
        from lxml import etree

        wiki, address, last = "", "", "start"
        try:
            with open_bytes(file, advance) as stream:
                elements = etree.iterparse(
                    stream,
                    tag=("{*}siteinfo", "{*}page"),
                    resolve_entities=False,
                    no_network=True,
                    load_dtd=False,
                    remove_comments=True,
                    remove_pis=True,
                )
                for _, element in elements:
                    if element.tag.endswith("siteinfo"):
                        wiki = element.findtext("{*}dbname") or ""
                        base = element.findtext("{*}base") or ""
                        address = base[: base.rfind("/") + 1]
                    else:
                        last = f"page {element.findtext('{*}id')}"
                        item = _article(element, f"{file}:{last}", wiki, address)
                        if item is not None:
                            yield item
                    _forget(element)
                stream.read(1)  # what is broken at the very end shows only here
        except BrokenFile as error:
            yield Reject(f"{file}:after {last}", error.reason)
        except etree.XMLSyntaxError as error:
            yield Reject(f"{file}:after {last}", "broken XML", sample(str(error)))


def _article(page: Any, where: str, wiki: str, address: str) -> Document | Reject | None:
    """The document of a page; None where it is no article."""
    if page.findtext("{*}ns", "0") != "0" or page.find("{*}redirect") is not None:
        return None
    identity, title = page.findtext("{*}id"), page.findtext("{*}title")
    source = page.findtext("{*}revision/{*}text")
    if not identity or not title or source is None:
        return Reject(where, "page without id, title or text", sample(title or ""))
    if page.findtext("{*}revision/{*}model", "wikitext") != "wikitext":
        return Reject(where, "no wikitext", sample(title), broken=False)
    if is_redirect(source):  # of dumps before redirects were elements
        return None
    if is_disambiguation(source):
        return Reject(where, "disambiguation", sample(title), broken=False)
    text = plain_text(source)
    if not text:
        return Reject(where, "no text", sample(title), broken=False)
    return Document(
        f"{title}\n{text}",
        identity,
        wiki,
        _language(wiki),
        address + quote(title.replace(" ", "_"), safe="/:,;@$!*()'") if address else "",
        iso_time(page.findtext("{*}revision/{*}timestamp")),
    )


def _language(wiki: str) -> str:
    """`ru` of `ruwiki` or `ruwiktionary`."""
    name = re.match(r"([a-z]+?)_?(?:wik|$)", wiki)
    return language_code("en" if name and name[1] == "simple" else name[1]) if name else ""


def _forget(element: Any) -> None:
    """Frees an element and all before it."""
    element.clear()
    parent = element.getparent()
    while parent is not None and element.getprevious() is not None:
        del parent[0]
