"""Web pages: WARC archives, the extracted texts of Common Crawl (WET), and folders of HTML.

Of a page only the main text is taken (resiliparse's rules for navigation, advertising and footers: fast, and wrong now
and then, as all are). Its encoding is judged by what the server says, by what the page says, and by its letters. Pages
come from anybody: their size, their nesting and what they unfold to are bounded.
"""

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from yalm.corpus.document import Document, Reject
from yalm.corpus.sources.encodings import decode
from yalm.corpus.sources.records import language_code
from yalm.corpus.sources.source import Source
from yalm.streams import BrokenFile, open_bytes, sample, stem

PAGE_LIMIT = 1 << 24  # bytes
_NESTING_LIMIT = 1000  # elements in each other; the time of extraction grows with its square
_FLAT = frozenset(
    ("br", "dd", "dt", "hr", "img", "input", "li", "link", "meta", "option", "p", "td", "th", "tr", "wbr")
)
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)")
_META_CHARSET = re.compile(rb"""<meta[^>]{1,500}charset\s*=\s*["']?([\w.:-]+)""", re.IGNORECASE)
_HTTP_CHARSET = re.compile(r"""charset\s*=\s*["']?([\w.:-]+)""", re.IGNORECASE)
_HTML_TYPES = ("", "text/html", "application/xhtml+xml")


class Warc(Source):
    """WARC archives: the main text of every HTML page that was answered with status 200."""

    suffixes: ClassVar[tuple[str, ...]] = (".warc", ".warc.gz", ".warc.zst")

    kind: Literal["warc"] = "warc"

    def read(self, file: Path, advance: Callable[[int], None]) -> Iterator[Document | Reject]:
        for record in _records(file, advance, "response"):
            yield record if isinstance(record, Reject) else _page_of_response(file, *record)


class Wet(Source):
    """WET archives: the texts that Common Crawl extracted, with the language it found first."""

    suffixes: ClassVar[tuple[str, ...]] = (".warc.wet", ".warc.wet.gz", ".wet", ".wet.gz")

    kind: Literal["wet"] = "wet"

    def read(self, file: Path, advance: Callable[[int], None]) -> Iterator[Document | Reject]:
        for item in _records(file, advance, "conversion"):
            if isinstance(item, Reject):
                yield item
                continue
            record, data = item
            identity = _identity(record)
            text, _ = decode(data)
            if not text or text.isspace():
                yield Reject(f"{file}:{identity}", "no text", broken=False)
                continue
            language = (record.headers.get("WARC-Identified-Content-Language") or "").split(",")[0]
            yield Document(text, identity, "", language_code(language), *_url_and_time(record))


class Html(Source):
    """HTML files, one page a file; the address is that of `<link rel="canonical">`."""

    suffixes: ClassVar[tuple[str, ...]] = tuple(
        f"{kind}{ending}" for kind in (".html", ".htm", ".xhtml") for ending in ("", ".gz", ".zst", ".bz2")
    )

    kind: Literal["html"] = "html"

    def read(self, file: Path, advance: Callable[[int], None]) -> Iterator[Document | Reject]:
        try:
            with open_bytes(file, advance) as stream:
                data = stream.read(PAGE_LIMIT + 1)
                if len(data) <= PAGE_LIMIT:
                    stream.read(1)  # what is broken at the very end shows only here
        except BrokenFile as error:
            yield Reject(str(file), error.reason)
            return
        page = main_text(data, None)
        if isinstance(page, str):
            yield Reject(str(file), page, sample(data), broken=False)
        else:
            yield Document(page[0], stem(file), "", url=page[1])


def main_text(data: bytes, declared: str | None) -> tuple[str, str] | str:
    """The main text of an HTML page and its canonical address (or ""); a few words if the page cannot be used.

    `declared` is the encoding the server says.
    """
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    if len(data) > PAGE_LIMIT:
        return "page too long"
    if declared is None and (said := _META_CHARSET.search(data, 0, 4096)):
        declared = said[1].decode("ascii", "replace")
    html, _ = decode(data, declared)
    if _is_nested_too_deep(html):
        return "page nested too deep"
    tree = HTMLTree.parse(html)
    text = extract_plain_text(tree, main_content=True, alt_texts=False, comments=False)
    if not text or text.isspace():
        return "no main text"
    link = tree.document.query_selector('link[rel="canonical"]') if tree.document is not None else None
    return text, (link.getattr("href") or "").strip() if link is not None else ""


def _page_of_response(file: Path, record: Any, data: bytes) -> Document | Reject:
    identity, headers = _identity(record), record.http_headers
    where = f"{file}:{identity}"
    if headers is None or headers.status_code is None:
        return Reject(where, "no HTTP response", sample(data), broken=False)
    if headers.status_code != 200:
        return Reject(where, "HTTP status not 200", str(headers.status_code), broken=False)
    content_type = headers.get("Content-Type") or ""
    if content_type.partition(";")[0].strip().lower() not in _HTML_TYPES:
        return Reject(where, "not HTML", sample(content_type), broken=False)
    body = _body(data, headers)
    if body is None:
        return Reject(where, "broken content encoding", sample(data))
    charset = _HTTP_CHARSET.search(content_type)
    page = main_text(body, charset[1] if charset else None)
    if isinstance(page, str):
        return Reject(where, page, sample(body), broken=False)
    url, time = _url_and_time(record)
    return Document(page[0], identity, "", url=url, time=time)


def _records(
    file: Path, advance: Callable[[int], None], kind: Literal["response", "conversion"]
) -> Iterator[tuple[Any, bytes] | Reject]:
    """The records of one kind with their content (after the HTTP headers, if there are any)."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    last = "start"
    try:
        with open_bytes(file, advance) as stream:
            archive = ArchiveIterator(
                stream, record_types=getattr(WarcRecordType, kind), parse_http=kind == "response", stream_detect=False
            )
            for record in archive:
                last = _identity(record)
                size = record.content_length
                if size > PAGE_LIMIT:
                    yield Reject(f"{file}:{last}", "page too long")
                    continue
                data = record.reader.read(PAGE_LIMIT)
                if len(data) < size:
                    yield Reject(f"{file}:{last}", "record ends early", sample(data))
                else:
                    yield record, data
    except BrokenFile as error:
        yield Reject(f"{file}:after {last}", error.reason)
    except OSError as error:
        yield Reject(f"{file}:after {last}", "broken WARC record", sample(str(error)))


def _identity(record: Any) -> str:
    return (record.record_id or "").strip("<>") or f"byte {record.stream_pos}"


def _url_and_time(record: Any) -> tuple[str, str]:
    time = record.record_date
    url = (record.headers.get("WARC-Target-URI") or "").strip("<>")
    return url, time.strftime("%Y-%m-%dT%H:%M:%SZ") if time is not None else ""


def _body(data: bytes, headers: Any) -> bytes | None:
    """A page without its transfer and content encodings, also where headers claim some that are long undone."""
    from fastwarc.stream_io import BrotliReader, ChunkedReader, GzipReader

    transfer, content = ((headers.get(f"{name}-Encoding") or "").lower() for name in ("Transfer", "Content"))
    try:
        if "chunked" in transfer and re.match(rb"[0-9a-fA-F]{1,8}[^\r\n]{0,40}\r\n", data):
            data = bytes(ChunkedReader(io.BytesIO(data)).read(PAGE_LIMIT + 1))
        if data.startswith(b"\x1f\x8b"):
            return bytes(GzipReader(io.BytesIO(data)).read(PAGE_LIMIT + 1))
        if "br" in content and not data.lstrip().startswith(b"<"):
            return bytes(BrotliReader(io.BytesIO(data)).read(PAGE_LIMIT + 1))
    except (OSError, EOFError):
        return None
    return data


def _is_nested_too_deep(html: str) -> bool:
    """Whether tags are opened, and not closed, beyond the limit; those that cannot nest do not count."""
    if html.count("<") <= _NESTING_LIMIT:
        return False
    depth = 0
    opened: Counter[str] = Counter()
    for tag in _TAG.finditer(html):
        name = tag[2].lower()
        if name in _FLAT:
            continue
        if not tag[1]:
            opened[name] += 1
            depth += 1
            if depth > _NESTING_LIMIT:
                return True
        elif opened[name]:
            opened[name] -= 1
            depth -= 1
    return False
