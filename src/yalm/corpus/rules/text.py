"""Unicode repaired and brought to one form, remnants of HTML removed; what stays broken falls.

The order matters: wrong encodings first, for their traces are control characters and odd spaces, then HTML, then
characters and spaces. Every step is one pass of RE2 over the whole batch, or Python over the few texts such a pass
found; text that needs nothing costs a look.
"""

import html
import re
import unicodedata
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from yalm.corpus.rules import mojibake
from yalm.corpus.rules.rule import Batch, Rule, Verdict, decide

_TAGS = (
    "a|abbr|article|aside|b|big|blockquote|body|br|button|center|code|dd|del|div|dl|dt|em|embed|fieldset|figcaption|"
    "figure|font|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|ins|label|li|link|main|map|meta|nav|"
    "noscript|object|ol|option|p|param|path|pre|s|script|section|select|small|source|span|strike|strong|style|sub|sup|"
    "svg|table|tbody|td|textarea|tfoot|th|thead|title|tr|tt|u|ul|video|wbr|!doctype"
)
_TAG = rf"(?i:</?(?:{_TAGS})(?:\s[^<>]*)?/?>)|<!--"
_ENTITY = r"&(?:[a-zA-Z]{2,8}|#\d{2,6}|#x[0-9a-fA-F]{2,5});"
_MARKUP = f"{_TAG}|{_ENTITY}"
_HIDDEN = re.compile(r"(?is)<!--.*?-->|<(script|style|noscript|svg)\b[^<>]*>.*?</\1\s*>")
_BLOCK = re.compile(
    r"(?i)</?(?:article|aside|blockquote|body|br|center|dd|div|dl|dt|fieldset|figcaption|figure|footer|form|h[1-6]|"
    r"head|header|hr|html|li|main|nav|ol|option|p|pre|section|select|table|tbody|tfoot|thead|title|tr|ul)(?:\s[^<>]*)?/?>"
)
_INLINE = re.compile(_TAG)

# What stands in no text: controls but tab and line feed, soft hyphens, zero-width spaces and joins of words, marks of
# direction, byte order marks, private-use characters, characters that are none. Joiners stay, emoji are made with them.
_USELESS = (
    r"[\x{0000}-\x{0008}\x{000E}-\x{001F}\x{007F}-\x{0084}\x{0086}-\x{009F}\x{00AD}\x{200B}\x{200E}\x{200F}"
    r"\x{202A}-\x{202E}\x{2060}-\x{206F}\x{E000}-\x{F8FF}\x{FEFF}\x{FFF0}-\x{FFFB}\x{FFFE}\x{FFFF}"
    r"\x{F0000}-\x{10FFFF}]"
)
_MEND = (
    (r"\r\n?|[\x{000B}\x{000C}\x{0085}\x{2028}\x{2029}]", "\n"),
    (_USELESS, ""),
    (r"[\x{00A0}\x{1680}\x{2000}-\x{200A}\x{202F}\x{205F}\x{3000}]", " "),
    (r"[ \t]+(\n|\z)", r"\1"),
    (r"([^\s]) {2,}", r"\1 "),  # not at the start of a line: there they are the indentation of code and verse
    (r"\n{3,}", "\n\n"),
    (r"\A\n+|\n+\z", ""),
)
_FOLD = (
    ("[«»“”„‟]", '"'),
    ("[‘’‚‛]", "'"),
    ("[‐‑‒–—―−]", "-"),
    ("…", "..."),
    ("№", "N"),
)


class Unicode(Rule):
    """Mends encodings, characters, spaces and remnants of HTML; drops texts in which too much cannot be mended.

    Of the Russian and English texts the defaults were set on, 99.9 % have no U+FFFD and no mojibake after repair, and
    99 % have less than 0.2 % of tags and entities, which is what speaks of HTML rather than is it; pages of raw HTML
    have 30 to 80 %. The thresholds are the same for all languages.
    """

    name: ClassVar[str] = "unicode"

    repair: bool = Field(
        default=True, description="read text back that was read in a wrong encoding, where that is sure"
    )
    fold: bool = Field(default=False, description="typographic quotes, dashes and ellipses become ASCII ones")
    max_replacement: float = Field(default=0.001, ge=0, le=1, description="largest share of characters that are U+FFFD")
    max_mojibake: float = Field(
        default=0.02, ge=0, le=1, description="largest share of characters in mojibake after repair"
    )
    strip_markup: float = Field(
        default=0.005, ge=0, le=1, description="share of characters in HTML above which it is removed"
    )
    max_markup: float = Field(
        default=0.3, ge=0, le=1, description="largest share of characters in HTML tags and entities"
    )

    def judge(self, batch: Batch) -> Verdict:
        """Measures unicode.replacement, unicode.mojibake and unicode.markup; changes the texts."""
        texts = batch.texts
        if self.repair:
            texts = _change(texts, _matches(texts, mojibake.MIXED_UP), mojibake.repair_russian)
            texts = _change(texts, _matches(texts, mojibake.MISREAD), mojibake.repair_utf8)
        length = np.maximum(pc.utf8_length(texts).to_numpy(zero_copy_only=False), 1)
        markup = _share(texts, _MARKUP, length)
        texts = _change(texts, markup > self.strip_markup, strip_html)
        measures = {
            "unicode.replacement": _share(texts, "\ufffd", length),
            "unicode.mojibake": _share(texts, mojibake.MISREAD, length),
            "unicode.markup": markup,
        }
        steps = _MEND + (_FOLD if self.fold else ())
        wanted = _matches(texts, "|".join(pattern for pattern, _ in steps))
        mended = texts.filter(pa.array(wanted))
        for pattern, replacement in steps:
            mended = pc.replace_substring_regex(mended, pattern, replacement)
        texts = pc.replace_with_mask(texts, pa.array(wanted), mended)
        composed = [unicodedata.is_normalized("NFC", text) for text in texts.to_pylist()]
        texts = _change(texts, ~np.array(composed, bool), partial(unicodedata.normalize, "NFC"))
        limits = {
            "unicode.replacement": (None, self.max_replacement),
            "unicode.mojibake": (None, self.max_mojibake),
            "unicode.markup": (None, self.max_markup),
        }
        return decide(measures, limits, {"text": texts})


def strip_html(text: str) -> str:
    """`text` without tags, comments and scripts, entities resolved; blocks end lines."""
    return html.unescape(_INLINE.sub("", _BLOCK.sub("\n", _HIDDEN.sub("\n", text))))


def _share(texts: pa.Array, pattern: str, length: NDArray[np.int64]) -> NDArray[np.float64]:
    """The share of each text's characters that lie in matches of `pattern`."""
    found = np.flatnonzero(_matches(texts, pattern))
    share = np.zeros(len(texts))
    rest = pc.utf8_length(pc.replace_substring_regex(texts.take(found), pattern, "")).to_numpy(zero_copy_only=False)
    whole = pc.utf8_length(texts.take(found)).to_numpy(zero_copy_only=False)
    share[found] = (whole - rest) / length[found]
    return share


def _matches(texts: pa.Array, pattern: str) -> NDArray[np.bool_]:
    return np.asarray(pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False), bool)


def _change(texts: pa.Array, wanted: NDArray[np.bool_], change: Callable[[str], str]) -> pa.Array:
    """`texts` with the `wanted` ones changed."""
    if not wanted.any():
        return texts
    mask = pa.array(wanted)
    changed = [change(text) for text in texts.filter(mask).to_pylist()]
    return pc.replace_with_mask(texts, mask, pa.array(changed, pa.large_string()))
