"""Text that was read in the wrong encoding, read back: "РџСЂРёРІРµС‚", "Ïðèâåò", "â€™".

Two mistakes are undone. UTF-8 read as an encoding of one byte a character leaves sequences that spell valid UTF-8:
proof enough, so they are replaced wherever they stand, up to three times over. A Russian encoding read as another of
one byte a character proves nothing by itself, so such text is read back only if that turns letters of unlikely
frequency into Russian ones: the mean information of a letter, in bits, under the letter frequencies of Russian text.
Only lines that look suspicious are touched. Everything here is Python over single texts, so callers pass only what
`MISREAD` and `MIXED_UP` find: they are patterns of RE2 too, which looks through whole batches.

ftfy does the first half for more encodings; it is not used, for its codecs cannot be loaded beside packages that
register a codec of their own for any name, and because Russian mix-ups are beyond it.
"""

import codecs
import math
import re
from functools import partial
from itertools import islice
from typing import NamedTuple

_PER_MILLE = (  # of the letters of 47 MB of Russian dictionaries, manuals and fiction
    "о:104.2 е:84.4 а:79 и:77.1 н:64 т:65.6 с:51.8 р:50.9 в:44.1 л:40.9 к:36.1 м:32.9 д:29.4 п:29.8 у:25.3 я:20.5 "
    "ы:20.7 ь:16.9 г:14.8 з:17.8 б:16.3 ч:12.8 й:13.1 х:9.2 ж:10 ш:5.4 ю:7.5 ц:4.9 щ:4.9 э:3 ф:4.2 ъ:0.4 ё:2.2"
)
_FREQUENCIES = {entry[0]: float(entry[2:]) for entry in _PER_MILLE.split()}
_BITS = {letter: -math.log2(share / 1000) for letter, share in _FREQUENCIES.items()}
_BITS |= {letter.upper(): bits for letter, bits in _BITS.items()}
_FOREIGN = 12.0  # bits of a character that Russian does not have, or of a capital after a small letter
_NEUTRAL = frozenset("«»—–“”„‘’…№")
_INNER_CAPITAL = re.compile("(?<=[а-яё])[А-ЯЁ]")
_SAMPLE = 20  # suspicious places looked at
_SURE_LETTERS, _SURE_BITS, _SURE_GAIN = 16, 5.2, 0.8  # Russian has 4.45 bits a letter, its mix-ups above 5.5

_READ_AS = ("cp1252", "cp1251", "koi8_r", "cp866")
_PAIRS = (
    ("cp1252", "cp1251"),
    ("cp1252", "koi8_r"),
    ("cp1251", "koi8_r"),
    ("koi8_r", "cp1251"),
    ("cp1251", "cp866"),
    ("cp866", "cp1251"),
)


def _characters(encoding: str) -> list[str]:
    """What each byte reads as; a byte the encoding leaves open reads as the control character of that number."""
    return [bytes([byte]).decode(encoding, "ignore") or chr(byte) for byte in range(256)]


class _Reading(NamedTuple):
    """One encoding: the byte of each character, what proves UTF-8 read in it, and what such UTF-8 is made of."""

    to_byte: dict[int, int]
    proof: str
    sequence: str


def _reading(encoding: str) -> _Reading:
    to_byte = {ord(character): byte for byte, character in enumerate(_characters(encoding))}
    if encoding == "cp1252":  # and Latin-1, which differs only here
        to_byte |= {byte: byte for byte in range(0x80, 0xA0)}

    def one_of(*ranges: tuple[int, int]) -> str:
        held = (chr(c) for c, byte in to_byte.items() if any(first <= byte <= last for first, last in ranges))
        return "[" + "".join(map(re.escape, held)) + "]"

    tail = one_of((0x80, 0xBF))
    letter = one_of((0xC2, 0xC5), (0xCC, 0xD3)) + tail  # Latin, accents, Greek, Cyrillic
    russian = one_of((0xC2, 0xC2), (0xD0, 0xD1)) + tail
    dash = one_of((0xE2, 0xE2)) + one_of((0x80, 0x80)) + one_of((0x90, 0x9F), (0xA2, 0xA2), (0xA6, 0xA6))  # quotes, …
    wide = f"{letter}|{one_of((0xE1, 0xEF))}{tail}{{2}}|{one_of((0xF0, 0xF3))}{tail}{{3}}"
    if encoding == "cp1252":  # one sequence is proof; ƒ ˆ ˜ are characters of cp1252 itself, misread twice
        return _Reading(to_byte, f"Æ’|Ë†|Ëœ|{wide}", f"Æ’|Ë†|Ëœ|{wide}")
    # In Cyrillic "В»" and "С…" are honest text, three in a row are not. The tails of cp866 are common letters: there a
    # dash looks like a missing space ("форматАвто") and proves nothing.
    if encoding == "cp866":
        return _Reading(to_byte, f"(?:{russian}){{3}}", f"{russian}|{dash}")
    return _Reading(to_byte, f"(?:{russian}){{3}}|{dash}", wide)


_READINGS = {encoding: _reading(encoding) for encoding in {*_READ_AS, *(wrong for wrong, _ in _PAIRS)}}
_SEQUENCES = {encoding: re.compile(f"(?:{_READINGS[encoding].sequence})+") for encoding in _READ_AS}
_PROOFS = {encoding: re.compile(_READINGS[encoding].proof) for encoding in _READ_AS}

_GARBLED_LETTERS = "ЎўҐЄЇ¤¦§Ё©¬®"
MIXED_UP = "|".join(
    (
        "[À-ÖØ-öø-ÿ]{4}",  # cp1251 or KOI8 as Latin-1
        "[а-яё][А-ЯЁ]{2}",  # KOI8 and cp1251 swap the cases of letters
        "[А-ЯЁ]{3}[^а-яё\n]{40}",
        f"[{_GARBLED_LETTERS}][а-п{_GARBLED_LETTERS}]{{3}}",  # cp866 as cp1251
        "[р-яЁё]{2}[ЄєЇїЎў°∙√№¤■][р-яЁёЄєЇїЎў°∙·√№¤■]",  # cp1251 as cp866
    )
)
MISREAD = "|".join(pattern.pattern for pattern in _PROOFS.values())
_MIXED_UP = re.compile(MIXED_UP)


def repair_utf8(text: str) -> str:
    """`text` with its sequences of misread UTF-8 read back: those misread once, twice, three times."""
    for _ in range(3):
        before = text
        for encoding in _READ_AS:
            if _PROOFS[encoding].search(text):
                text = _SEQUENCES[encoding].sub(partial(_decode, to_byte=_READINGS[encoding].to_byte), text)
        if text == before:
            break
    return text


def _decode(match: re.Match[str], to_byte: dict[int, int]) -> str:
    try:
        return codecs.charmap_encode(match[0], "strict", to_byte)[0].decode("utf-8")
    except UnicodeDecodeError:
        return match[0]


def repair_russian(text: str) -> str:
    """`text` with its mixed-up lines read back, if one mix-up explains the suspicious ones; otherwise as it was."""
    lines: dict[str, None] = {}
    for match in islice(_MIXED_UP.finditer(text), _SAMPLE):
        end = text.find("\n", match.end())
        lines[text[text.rfind("\n", 0, match.start()) + 1 : end if end >= 0 else None]] = None
    sample = "\n".join(lines)[:2000]
    bits, letters = _information(sample)
    if letters < _SURE_LETTERS:
        return text
    there, wrong, right = min((_information(_read_back(sample, *pair))[0], *pair) for pair in _PAIRS)
    if there > _SURE_BITS or there > bits - _SURE_GAIN:
        return text
    old, new = text.split("\n"), _read_back(text, wrong, right).split("\n")
    return "\n".join(b if _information(b)[0] < _information(a)[0] else a for a, b in zip(old, new, strict=True))


def _read_back(text: str, wrong: str, right: str) -> str:
    """`text`, read as `wrong`, in its right encoding; a line that `wrong` or `right` cannot hold stays."""
    lines = []
    for line in text.split("\n"):
        try:
            lines.append(codecs.charmap_encode(line, "strict", _READINGS[wrong].to_byte)[0].decode(right))
        except UnicodeError:
            lines.append(line)
    return "\n".join(lines)


def _information(text: str) -> tuple[float, int]:
    """Bits a letter under the letter frequencies of Russian, and how many letters: those beyond ASCII."""
    letters = [
        character for character in text if character > "\x7f" and character not in _NEUTRAL and not character.isspace()
    ]
    total = sum(_BITS.get(letter, _FOREIGN) for letter in letters) + _FOREIGN * len(_INNER_CAPITAL.findall(text))
    return total / len(letters) if letters else 0.0, len(letters)
