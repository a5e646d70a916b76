"""Numbers as people read them, for the report and the card."""

_UNITS = ("", "k", "M", "G", "T", "P")


def count(number: int) -> str:
    """A whole number with commas between thousands."""
    return f"{number:,}"


def percent(part: float, whole: float) -> str:
    """The share of `part` in `whole`, to two figures where it is small; nothing of nothing is a dash."""
    if not whole:
        return "–"
    share = 100 * part / whole
    return f"{share:.1f} %" if share >= 1 else f"{share:.2g} %"


def size(number: int) -> str:
    """Bytes in decimal units, to three figures."""
    value, unit = _thousands(number)
    return f"{number} B" if unit == 0 else f"{value:#.3g}".rstrip(".") + f" {_UNITS[unit]}B"


def short(number: float) -> str:
    """Any number to three figures, with k, M, G for thousands: what fits under an axis."""
    value, unit = _thousands(number)
    return f"{value:.3g}{_UNITS[unit]}"


def _thousands(number: float) -> tuple[float, int]:
    """The number below a thousand, and how often it was divided by a thousand for that."""
    value, unit = float(number), 0
    while abs(value) >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return value, unit
