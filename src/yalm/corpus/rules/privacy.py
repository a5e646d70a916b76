"""Privacy: e-mail addresses, telephone numbers, IP addresses and bank cards, put out of sight.

Off by default. One pass of one Python expression over a text finds all kinds, and a little code after it rules out what
only looks like them: cards by their check digit, addresses that are not of the public Internet, version numbers. Python
is slow, so only texts that pass a coarser expression of Arrow, which has all they need, are looked at. Patterns do not
know what a number means: some order numbers will be taken for cards (one in ten of 16 digits has the right check
digit), and a telephone number without its country is let alone, being like too many other things.
"""

import ipaddress
import re
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from yalm.corpus.rules.rule import Batch, Rule, Verdict, untouched

Kind = Literal["email", "phone", "ip", "card"]

_SPACE = "[ \u00a0-]"
_GAP = "[ \u00a0()-]{0,3}"
# In the order in which they are tried at a place: the sixteen digits of a card might be a telephone number as well.
_PATTERNS: dict[Kind, str] = {
    "email": r"(?<!\w)\w[\w.+-]{0,63}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}\b",
    "card": rf"(?<![\w.,])[2-6][0-9]{{3}}(?P<space>{_SPACE}?)[0-9]{{4}}(?P=space)[0-9]{{4}}(?P=space)[0-9]{{4}}(?!\w)",
    "ip": r"(?<![\w.])(?<![^\W\d]-)[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?!\w|\.[0-9]|-[^\W\d])",
    # +7 or 8, then ten digits of which the first three, or up to five in brackets, are a region or a network; or + and
    # ten to fifteen digits (ITU-T E.164).
    "phone": (
        rf"(?<![\w+-])(?<![0-9][.,])(?:(?:\+7|8){_GAP}"
        rf"(?:[3-9][0-9]{{2}}(?:{_GAP}[0-9]){{7}}|[3-9][0-9]{{3}}\)(?:{_GAP}[0-9]){{6}}"
        rf"|[3-9][0-9]{{4}}\)(?:{_GAP}[0-9]){{5}})|\+[1-9](?:{_GAP}[0-9]){{9,14}})(?![0-9])"
    ),
}
# What every match of the above has inside, for an engine without look-around (RE2).
_COARSE: dict[Kind, str] = {
    "email": "@",
    "card": rf"[2-6][0-9]{{3}}{_SPACE}?[0-9]{{4}}{_SPACE}?[0-9]{{4}}",
    "ip": r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]",
    "phone": "[+8](?:[ \u00a0()-]{0,4}[0-9]){10}",  # four, for a bracket may stand before a gap
}
_VERSION = re.compile(r"\b(?:v|ver|version|release|верс\w+|выпуск\w*)[.:]?\s*$", re.IGNORECASE)


class Privacy(Rule):
    """Puts placeholders in the place of what identifies people; drops nothing.

    email, phone  addresses; numbers in the Russian form, +7 or 8 and ten digits, or international with a plus sign
    ip            IPv4 addresses of the public Internet, one of whose numbers has three digits
    card          sixteen digits, together or in fours, with the check digit of Luhn (ISO/IEC 7812-1)
    """

    name: ClassVar[str] = "privacy"

    mask: tuple[Kind, ...] = Field(default=(), description="which kinds are masked")
    email: str = Field(default="[email]", description="the placeholder of e-mail addresses")
    phone: str = Field(default="[phone]", description="the placeholder of telephone numbers")
    ip: str = Field(default="[ip]", description="the placeholder of IP addresses")
    card: str = Field(default="[card]", description="the placeholder of bank cards")

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(f"(?P<{kind}>{text})" for kind, text in _PATTERNS.items() if kind in self.mask))

    def masked(self, text: str) -> tuple[str, int]:
        """The text with placeholders, and how many there are; nothing is searched if `mask` is empty."""
        if not self.mask:
            return text, 0
        count = 0

        def replace(match: re.Match[str]) -> str:
            nonlocal count
            kind = next(kind for kind in self.mask if match[kind] is not None)
            if (kind == "card" and not _luhn(match[0])) or (kind == "ip" and not _is_public(match)):
                return match[0]
            count += 1
            return str(getattr(self, kind))

        return self._pattern.sub(replace, text), count

    def judge(self, batch: Batch) -> Verdict:
        """Measures `privacy.masked`, the placeholders put in; the column text if any were."""
        if not self.mask:
            return untouched(batch)
        counts = np.zeros(len(batch))
        coarse = "|".join(_COARSE[kind] for kind in self.mask)
        rows = np.flatnonzero(pc.match_substring_regex(batch.texts, coarse).to_numpy(zero_copy_only=False))
        texts = []
        for row in rows:
            text, counts[row] = self.masked(batch.texts[row].as_py())
            if counts[row]:
                texts.append(text)
        measures = {"privacy.masked": counts}
        if not texts:
            return untouched(batch, measures)
        changed = pc.replace_with_mask(batch.texts, pa.array(counts > 0), pa.array(texts, pa.large_string()))
        return untouched(batch, measures, {"text": changed})


def _luhn(number: str) -> bool:
    """Whether the last digit is the check digit of the others."""
    digits = [int(character) for character in reversed(number) if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _is_public(match: re.Match[str]) -> bool:
    """Whether four numbers are an address of the public Internet, and no version by the word before them.

    Of those without a number of three digits, one address in forty, most are sections of books and versions.
    """
    if all(len(number) < 3 for number in match[0].split(".")):
        return False
    try:
        address = ipaddress.IPv4Address(match[0])
    except ValueError:
        return False
    if not address.is_global or address.is_multicast:
        return False
    return not _VERSION.search(match.string, max(0, match.start() - 16), match.start())
