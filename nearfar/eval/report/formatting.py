"""How numbers and texts read in a report, the same in every format."""

from __future__ import annotations

import math
from datetime import datetime

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
STAR = "\N{BLACK STAR}"
# Not strftime's, which follow the reader's locale.
_MONTHS = ["January", "February", "March", "April", "May", "June", "July"]
_MONTHS += ["August", "September", "October", "November", "December"]


def metric(value: float | None) -> str:
    """A value between 0 and 1 with three decimals.

    Example:
        >>> metric(0.5714)
        '0.571'
    """
    return NONE if value is None or not math.isfinite(value) else _minus(f"{value:.3f}")


def signed(value: float | None) -> str:
    """A difference with its sign; what rounds to nothing has none.

    Example:
        >>> signed(0.2186), signed(-0.00001)
        ('+0.219', '0.000')
    """
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{value:+.3f}"
    return "0.000" if float(text) == 0 else _minus(text)


def small(value: float | None) -> str:
    """Three significant digits, for quantities without a natural scale.

    Example:
        >>> small(0.0123456), small(0.0)
        ('0.0123', '0')
    """
    return NONE if value is None or not math.isfinite(value) else _minus(f"{value:.3g}")


def percent(value: float) -> str:
    r"""A share in percent.

    Example:
        >>> percent(0.1234), percent(0.0004)
        ('12.3\xa0%', '0.04\xa0%')
    """
    share = 100 * value
    if 0 < share < 0.0001:
        return "<\u00a00.0001\u00a0%"
    # A no-break space, lest the sign begin a line.
    return f"{share:.3g}\u00a0%" if share >= 1 else f"{share:.1g}\u00a0%"


def count(value: int) -> str:
    """A whole number with thousands marked.

    Example:
        >>> count(4343)
        '4,343'
    """
    return f"{value:,}"


def shorten(text: str, length: int = 280) -> str:
    """The beginning of a text on one line, cut at a word.

    Example:
        >>> shorten("an exceedingly long text", 16)
        'an exceedingly…'
    """
    line = " ".join(text.split())
    if len(line) <= length:
        return line
    cut = line[: length - 1]
    at = cut.rfind(" ")
    return (cut[:at] if at > length // 2 else cut).rstrip() + "…"


def quoted(name: str) -> str:
    """A name of the user's choice, set apart from the sentence.

    Example:
        >>> quoted("after")
        '“after”'
    """
    return f"“{name}”"


def moment(iso: str) -> str:
    """An ISO date or time as one reads it; anything else as it is.

    Example:
        >>> moment("2026-01-09T07:05:00+00:00"), moment("2026-01-09"), moment("spring")
        ('9 January 2026, 07:05 UTC', '9 January 2026', 'spring')
    """
    try:
        when = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    day = f"{when.day} {_MONTHS[when.month - 1]} {when.year}"
    return f"{day}, {when:%H:%M} {when.tzname() or ''}".rstrip() if "T" in iso else day


def _minus(text: str) -> str:
    return text.replace("-", MINUS)
