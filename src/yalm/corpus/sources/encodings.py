"""Which encoding a text has: UTF-8, the legacy Russian ones, or what a general detector says.

UTF-8 and UTF-16 show themselves. The single-byte encodings of Russian share their bytes, so the same text is read in
each of them and the most Russian reading wins: the one whose pairs of letters take the fewest bits under the pair
frequencies of Russian, with a price for capitals inside words and for signs that no text has. A general detector
(uchardet) confuses windows-1251 with mac-cyrillic in one sentence of sixty and does not know texts in capitals; it is
asked only where no reading is Russian. What an author declares counts as evidence, since servers often declare wrong.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

# Of equal readings the first wins. The names are Python's.
_RUSSIAN = ("cp1251", "koi8-r", "koi8-u", "cp866", "iso8859-5", "mac-cyrillic")
# Labels beyond those of the WHATWG Encoding Standard.
_LABELS = {
    **dict.fromkeys(("win-1251", "win1251", "windows1251", "cp-1251"), "cp1251"),
    **dict.fromkeys(("koi-8", "koi8r"), "koi8-r"),
    **dict.fromkeys(("dos-866", "cp-866", "ibm-866"), "cp866"),
    **dict.fromkeys(("x-mac-cyrillic", "mac-cyrillic", "maccyrillic", "x-mac-ukrainian"), "mac-cyrillic"),
}

_LETTERS = " абвгдеёжзийклмнопрстуфхцчшщъыьэюя"
# Bits of the letter of a column after that of a row (the blank: no letter), rounded, at most 9. Counted over 18 MB of
# Russian encyclopedia articles, manuals, fiction, dictionaries and quotations.
_PAIR_BITS = """
7653646975494654435355678689999697
2964655965854443965449866677999965
6499993998496485293793978995639996
2397993998495585386575999979948997
5398945999497476193994999999999999
5396972879396484384694998999967997
2976546976955443773439978777999999
2996679976997432984629969989999999
6379941799396963799596999799998999
3274745999596643396994999999958997
2765764985555444775449856579999974
0998969999995485899459997879999999
3297995979399596294554997999999999
4399893779296696399795999899963953
2387992999398765369894999999949995
5399863999296994399655898999936976
3943445956755445864449988678999987
6499993999496597172985999999978998
5297783969397966297664879989958996
4595984899494466447526989889976994
3394993999496896294596999999953998
3766445946974545955449879565999948
6299993999299589294964599999979999
1496997999599785295786999999999999
4394992999197999599995999999949999
7399992599295993799936999979996999
5398992799294584586965999999994999
8399992499199996999995999999995999
4999990499999999999999999999999963
2954863997936547966559939669999999
1979886994894963999459898959999956
7998989999984366976719599989999999
1959859988998887997639999492999979
1995864985997755997749968796999968
"""
# What a byte may be in one of the encodings, and the bits it takes by the class before it, besides those of letters.
_SMALL, _CAPITAL, _MARK, _KINDRED, _OTHER, _ASCII = range(6)
_CLASS_BITS = (
    # small, capital, mark, kindred, other, ASCII
    (0, 6, 9, 8, 18, 0),  # after a small letter
    (0, 1, 9, 8, 18, 0),  # after a capital
    (2, 2, 9, 8, 18, 0),  # after a mark
    (2, 3, 9, 8, 18, 0),  # after a letter of a kindred language
    (0, 2, 9, 8, 18, 0),  # after anything else
    (0, 2, 9, 8, 18, 0),  # after ASCII
)
_MARKS = "«»—–“”„…№©§°’\xa0"
_FRAMES = "─│┌┐└┘├┤┬┴┼═║╔╗╚╝╠╣╦╩╬█▓▒░"  # marks too; runs of one cost little
_KINDRED_LETTERS = "іїєґў"
_RARE_BITS = 4  # disadvantage of mac-cyrillic, which is far rarer than the others
_DECLARED_BITS = 10  # advantage of what is declared
_RUSSIAN_BITS = (
    7.25  # a byte: Russian takes 4 to 6.5, odd words in capitals 7; other languages and other alphabets 7.5 and more
)
_SAMPLE = 1 << 14  # bytes that are looked at


def decode(data: bytes, declared: str | None = None) -> tuple[str, str]:
    """The text of `data` and the name of its encoding; `declared` is what a header or the text itself says of it.

    What cannot be decoded becomes U+FFFD; byte order marks are removed. One sentence in mac-cyrillic may be taken for
    windows-1251, from which it differs only in capitals, `я` and dashes.
    """
    for mark, name in ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if data.startswith(mark):
            return data[len(mark) :].decode(name, "replace"), name
    for odd, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        upper = data[odd:_SAMPLE:2]
        if len(upper) > 1 and 5 * (upper.count(0) + upper.count(4)) > 4 * len(upper):
            return data.decode(name, "replace"), name
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError as error:
        around = data[max(0, error.start - _SAMPLE) : error.start + _SAMPLE].decode("utf-8", "replace")
    broken = around.count("\ufffd")
    whole = len(around) - len(around.encode("ascii", "ignore")) - broken
    if whole > 3 * broken:  # UTF-8 that was cut or damaged
        return data.decode("utf-8", "replace"), "utf-8"
    legacy = _legacy(data, _codec(declared))
    return data.decode(legacy, "replace"), legacy


def _codec(label: str | None) -> str | None:
    """Python's name of what a label means on the web; None for labels unknown there, of which Python may run some."""
    from resiliparse.parse.encoding import map_encoding_to_html5

    word = (label or "").strip(" \t\r\n\f\"';").lower()
    codec: str | None = _LABELS.get(word) or map_encoding_to_html5(word, fallback_utf8=False)
    return codec


def _legacy(data: bytes, declared: str | None) -> str:
    """The encoding of a text that is no UTF-8."""
    from resiliparse.parse.encoding import detect_encoding

    russian, bits = _most_russian(data, declared)
    if bits < _RUSSIAN_BITS:
        return russian
    if declared is not None and declared != "cp1252" and not declared.startswith("utf-"):
        try:
            data.decode(declared)
            return declared
        except UnicodeDecodeError:
            pass
    found = detect_encoding(data)
    return "cp1252" if found is None or found.startswith("utf-") else found


def _most_russian(data: bytes, declared: str | None) -> tuple[str, float]:
    """The Russian encoding in which `data` takes the fewest bits, and how many for a byte beyond ASCII."""
    padded = np.frombuffer(b" " + data + b" ", np.uint8)
    places = np.flatnonzero(padded >= 128)[:_SAMPLE]
    ends = places[padded[places + 1] < 128]
    firsts = np.concatenate([padded[places - 1], padded[ends]])
    seconds = np.concatenate([padded[places], padded[ends + 1]])
    bits = {name: float(_bits(name)[firsts, seconds].sum()) for name in _RUSSIAN}
    advantage = {"mac-cyrillic": -_RARE_BITS, declared: _DECLARED_BITS}
    best = min(bits, key=lambda name: bits[name] - advantage.get(name, 0))
    return best, bits[best] / len(places)


@cache
def _bits(name: str) -> NDArray[np.int16]:
    """The bits of each byte after each other, in one encoding: (256, 256), by the byte before and the byte itself."""
    letters = np.zeros(256, np.int16)
    classes = np.full(256, _ASCII, np.int16)
    for byte in range(128, 256):
        character = bytes([byte]).decode(name, "replace")
        small = character.lower()
        if small in _LETTERS:
            letters[byte] = _LETTERS.index(small)
            classes[byte] = _SMALL if small == character else _CAPITAL
        else:
            classes[byte] = (
                _MARK if character in _MARKS + _FRAMES else _KINDRED if small in _KINDRED_LETTERS else _OTHER
            )
    pairs = np.array([[int(digit) for digit in row] for row in _PAIR_BITS.split()], np.int16)
    spelled = np.isin(classes, (_SMALL, _CAPITAL, _ASCII))
    by_letter = pairs[letters[:, None], letters[None, :]] * spelled[None, :]
    table = by_letter + np.array(_CLASS_BITS, np.int16)[classes[:, None], classes[None, :]]
    for byte in range(128, 256):
        if bytes([byte]).decode(name, "replace") in _FRAMES:
            table[byte, byte] = 1
    return table
