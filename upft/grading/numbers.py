"""Numbers as people write them, read exactly: signs, separators, currency, percent, fractions, mixed numbers, powers of
ten, a unit behind."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
LONGEST = 4000
"""Digits of the longest number that is read."""
_DECIMAL = rf"(?:\d{{1,3}}(?: \d{{3}})+(?![\d.])|{DIGITS}|\d+\.)"
_NAMED = r"(?:(?P<name>[A-Za-z])\s?(?:=|\\approx)\s?)?"
_NUMBER = re.compile(
    rf"{_NAMED}(?P<sign>[-+]?)\s?[$€£¥]?\s?(?P<inner>[-+]?)(?:"
    rf"(?P<whole>\d{{1,9}})(?:\s|\s?\+\s?(?=\d+/)|\s?(?=\\frac))"
    rf"(?:(?P<n1>\d{{1,9}})/(?P<d1>\d{{1,9}})(?![\d/])|\\frac\s?\{{(?P<n2>\d{{1,9}})\}}\s?\{{(?P<d2>\d{{1,9}})\}})"
    rf"|\\frac\s?\{{\s?(?P<s3>[-+]?)\s?(?P<n3>{_DECIMAL})\s?\}}\s?\{{\s?(?P<d3>{_DECIMAL})\s?\}}"
    rf"|(?P<n4>{DIGITS})\s?/\s?(?P<d4>{DIGITS})(?![\d/.])"
    rf"|(?P<digits>{_DECIMAL})(?:(?:[eE](?P<e>[-+]?\d{{1,3}})|\s?(?:\\times|\\cdot|x)\s?10\s?\^\s?"
    rf"(?:\{{\s?(?P<p1>[-+]?\s?\d{{1,3}})\s?\}}|(?P<p2>[-+]?\d{{1,3}})))(?![\d.A-Za-z]))?"
    r")(?P<rest>.*)", re.DOTALL)
_UNIT = re.compile(r"(?:(?:^|[\s/°-])(?:[A-Za-z]{2,}|(?<=[\s/])[mgslLhcVNJW])(?:\s?\^\s?\{?[23]\}?|[²³])?\.?|[\s°$€£])*")
_TIMES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_NO_UNIT = re.compile(
    r"\b(?:than|times|squared|cubed|factorial|plus|minus|over|or|and|to|mod|modulo|base|half|halves|thirds?|quarters?"
    r"|fourths?|fifths?|sixths?|eighths?|tenths?|hundredths?|thousandths?|not?|pi|sqrt|sin|cos|tan|log|ln|frac|cdot"
    r"|approximately|about|roughly|if|when|unless|wrong|incorrect|false"
    rf"|{'|'.join(_TIMES)})\b", re.IGNORECASE)
_PERCENT = re.compile(r"\s?(?:%|per ?cent\b|percentage\b)", re.IGNORECASE)


@dataclass(frozen=True)
class Number:
    """value: exact. percent: has a percent sign. decimals: digits after the point, None for a fraction. digits:
    significant ones, leading zeros not counted. unit: what stands behind. name: the x of "x = 5"."""

    value: Fraction
    percent: bool
    decimals: int | None
    digits: int
    unit: str
    name: str


def number(text: str) -> Number | None:
    """A number with its currency, percent sign or unit, read from plain text (see `spelling.plain`); None for
    anything that is more than that, such as a product, a sum, or words that change the value."""
    found = _NUMBER.fullmatch(text)
    if found is None or len(text) > LONGEST or (found["sign"] and found["inner"]):
        return None
    read = _value(found)
    if read is None:
        return None
    value, decimals, digits = read
    if "-" in (found["sign"], found["inner"]):
        value = -value
    rest = found["rest"]
    percent = _PERCENT.match(rest)
    if percent:
        rest = rest[percent.end():]
    letters = re.match(r"[A-Za-z]+", rest)
    if letters and len(letters[0]) == 1:
        return None  # 5x is a product
    named = [w.lower() for w in re.findall(r"[A-Za-z]+", rest)]
    if named and named[0] in _TIMES:
        value *= _TIMES[named[0]]
        rest = re.sub(named[0], "", rest, count=1, flags=re.IGNORECASE)
    spaced = rest if rest[:1] in ("", " ", "°", "/", "-", "$") else " " + rest
    if len(named) > 6 or _UNIT.fullmatch(spaced) is None or _NO_UNIT.search(spaced):
        return None
    return Number(value, percent is not None, decimals, digits, rest.strip(" ."), found["name"] or "")


def same_number(a: Number, b: Number) -> bool:
    """Equal values; where one alone has a percent sign, 50% is both 50 and 0.5. A fraction equals a decimal that
    gives six significant digits of it or more, rounded or cut off."""
    if a.name and b.name and a.name != b.name:
        return False
    if a.percent == b.percent:
        return _equal(a, a.value, b, b.value)
    left, right = (side.value / 100 if side.percent else side.value for side in (a, b))
    return _equal(a, a.value, b, b.value) or _equal(a, left, b, right)


def _equal(a: Number, left: Fraction, b: Number, right: Fraction) -> bool:
    if left == right:
        return True
    if (a.decimals is None) == (b.decimals is None):
        return False
    decimal = a if a.decimals is not None else b
    assert decimal.decimals is not None
    return decimal.digits >= 6 and decimal.decimals > 0 and abs(left - right) < Fraction(1, 10**decimal.decimals)


def _value(found: re.Match[str]) -> tuple[Fraction, int | None, int] | None:
    """(value without its sign, decimals, significant digits)"""
    if found["digits"] is not None:
        digits = re.sub(r"[ ,]", "", found["digits"]).rstrip(".")
        power = int((found["e"] or found["p1"] or found["p2"] or "0").replace(" ", ""))
        decimals = len(digits.partition(".")[2])
        significant = len(digits.replace(".", "").lstrip("0"))
        return Fraction(digits) * Fraction(10) ** power, max(0, decimals - power), significant
    whole = Fraction(int(found["whole"] or 0))
    if found["n3"] is not None:
        top, bottom = (Fraction(re.sub(r"[ ,]", "", found[name]).rstrip(".")) for name in ("n3", "d3"))
        if found["s3"] == "-":
            top = -top
    else:
        top, bottom = (Fraction((found[first] or found[second] or found[third]).replace(",", ""))
                       for first, second, third in (("n1", "n2", "n4"), ("d1", "d2", "d4")))
    return None if bottom == 0 else (whole + top / bottom, None, 0)
