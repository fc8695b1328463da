"""Physical quantities: a number, a power of ten, a unit that is converted; and short answers of science in words.

Right is what rounds to the gold answer's own digits. Units are the SI's with prefixes and those of the laboratory
(BIPM, SI Brochure, 9th edition, tables 2 to 8; CODATA 2018 for eV and u).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

Dimension = tuple[tuple[str, int], ...]

_PREFIXES = {"": 0, "f": -15, "p": -12, "n": -9, "\\mu ": -6, "u": -6, "m": -3, "c": -2, "d": -1, "k": 3, "M": 6, "G": 9,
             "T": 12, "P": 15}
_F = Fraction
_UNITS: dict[str, tuple[str, Fraction]] = {  # name: base units, size
    "m": ("m", _F(1)), "g": ("kg", _F(1, 1000)), "s": ("s", _F(1)), "A": ("A", _F(1)), "K": ("K", _F(1)), "mol": ("mol", _F(1)),
    "Hz": ("s-1", _F(1)), "N": ("kg m s-2", _F(1)), "Pa": ("kg m-1 s-2", _F(1)), "J": ("kg m2 s-2", _F(1)),
    "W": ("kg m2 s-3", _F(1)), "C": ("A s", _F(1)), "V": ("kg m2 s-3 A-1", _F(1)), "\\Omega ": ("kg m2 s-3 A-2", _F(1)),
    "T": ("kg s-2 A-1", _F(1)), "L": ("m3", _F(1, 1000)), "l": ("m3", _F(1, 1000)), "M": ("mol m-3", _F(1000)),
    "eV": ("kg m2 s-2", _F(1602176634, 10**28)), "u": ("kg", _F(166053906660, 10**38)), "Da": ("kg", _F(166053906660, 10**38)),
    "cal": ("kg m2 s-2", _F(4184, 1000)), "bar": ("kg m-1 s-2", _F(10**5)), "pc": ("m", _F(30856775814913673)),
    "B": ("byte", _F(1)), "rad": ("rad", _F(1)), "b": ("m2", _F(1, 10**28)), "G": ("kg s-2 A-1", _F(1, 10**4)),
}
_BARE: dict[str, tuple[str, Fraction]] = {  # take no prefix
    "min": ("s", _F(60)), "h": ("s", _F(3600)), "hr": ("s", _F(3600)), "hour": ("s", _F(3600)), "day": ("s", _F(86400)),
    "yr": ("s", _F(31557600)), "year": ("s", _F(31557600)), "Å": ("m", _F(1, 10**10)), "angstrom": ("m", _F(1, 10**10)),
    "AU": ("m", _F(149597870700)), "ly": ("m", _F(9460730472580800)), "atm": ("kg m-1 s-2", _F(101325)), "kg": ("kg", _F(1)),
    "%": ("", _F(1, 100)), "°": ("degree", _F(1)), "°C": ("celsius", _F(1)), "mile": ("m", _F(1609344, 1000)),
    "inch": ("m", _F(254, 10**4)), "in": ("m", _F(254, 10**4)), "ft": ("m", _F(3048, 10**4)), "foot": ("m", _F(3048, 10**4)),
    "feet": ("m", _F(3048, 10**4)), "second": ("s", _F(1)), "minute": ("s", _F(60)),
    "meter": ("m", _F(1)), "metre": ("m", _F(1)),
    "kilometer": ("m", _F(1000)), "centimeter": ("m", _F(1, 100)), "gram": ("kg", _F(1, 1000)), "kilogram": ("kg", _F(1)),
    "liter": ("m3", _F(1, 1000)), "joule": ("kg m2 s-2", _F(1)), "volt": ("kg m2 s-3 A-1", _F(1)), "degree": ("degree", _F(1)),
    "c": ("c", _F(1)),
}
_FACTOR = re.compile(
    r"(?P<slash>/\s*|per\s+)?(?P<unit>\\mu\s?[A-Za-z]+|\\Omega|\\AA|\\mathring\{A\}|%|°C|°|Å|[A-Za-z]+)"
    r"(?:\s*\^\s*\{?\s*(?P<power>-?\d)\s*\}?)?(?:\s|\\cdot\s?|(?=/)|(?=°)|$)")
_COMPOUND = re.compile(r"(?:\(?[A-Z][a-z]?\d{0,3}\)?\d?){1,12}\^?\d?[+-]?")
_ABOUT = r"(?:~|\\approx|\\sim|about |approximately |roughly |around |ca\. ?|close to )"
_POWER = r"10\s?\^?\s?(?:\{\s?(?P<p#>[-+]?\s?\d{1,3})\s?\}|\(\s?(?P<q#>[-+]?\d{1,3})\s?\)|(?P<r#>[-+]?\d{1,3}))"
_QUANTITY = re.compile(
    rf"(?:[A-Za-z\\_{{}}]{{1,20}}\s?(?:=|\\approx|\\sim|~)\s?)?(?P<about>{_ABOUT}\s?)?(?P<sign>[-+]?)\s?(?:"
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)"
    rf"(?:\s?(?:\\times|\\cdot|x|\*)\s?{_POWER.replace('#', '1')}|[eE](?P<e>[-+]?\d{{1,3}}))?"
    rf"|{_POWER.replace('^?', '^').replace('#', '2')})(?![\d.^!(])\s?(?P<unit>.{{0,60}})", re.DOTALL)


@dataclass(frozen=True)
class Quantity:
    """value: in the unit's own size. step: one in the last digit given, 0 for a whole number that is meant exactly
    and for a bare power of ten. scale and dimension: of the unit in base units, None without a unit."""

    value: Fraction
    step: Fraction
    scale: Fraction
    dimension: Dimension | None


def quantity(text: str) -> Quantity | None:
    """Read plain text (`spelling.plain`) as number x power of ten x known unit; None where it is anything else."""
    found = _QUANTITY.fullmatch(text)
    if found is None:
        return None
    unit = units(found["unit"])
    if unit is None:
        return None
    power = int(next((found[name] for name in ("p1", "q1", "r1", "p2", "q2", "r2", "e") if found[name]), "0").replace(" ", ""))
    digits = (found["digits"] or "1").replace(",", "").rstrip(".")
    ten = Fraction(10) ** power
    rounded = "." in digits or found["about"] is not None
    step = ten / 10 ** len(digits.partition(".")[2]) if rounded and found["digits"] else Fraction(0)
    value = Fraction(digits) * ten
    scale, dimension = unit
    return Quantity(-value if found["sign"] == "-" else value, step, scale, dimension)


def about(text: str) -> str:
    """The text with a leading "~" as a word: LaTeX's ~ is a space elsewhere."""
    return re.sub(r"^[\s$]*~\s*(?=[-\d.$\\])", r"\\approx ", text)


def units(text: str) -> tuple[Fraction, Dimension | None] | None:
    """(size in base units, their powers) of a unit's name, (1, None) for no unit; None for an unknown one."""
    text = re.sub(r"\\AA(?![A-Za-z])|\\mathring\{A\}", "Å", text).strip().rstrip(".")
    if not text:
        return Fraction(1), None
    powers: dict[str, int] = {}
    scale, at = Fraction(1), 0
    while at < len(text):
        factor = _FACTOR.match(text, at)
        if factor is None or factor.end() == at:
            return None
        unit = _unit(factor["unit"])
        if unit is None:
            return None
        base, size = unit
        power = int(factor["power"] or 1) * (-1 if factor["slash"] else 1)
        scale *= size ** power
        for name, count in re.findall(r"([a-zA-Z]+)(-?\d*)", base):
            powers[name] = powers.get(name, 0) + int(count or 1) * power
        at = factor.end()
    return scale, tuple(sorted((name, power) for name, power in powers.items() if power))


def _unit(name: str) -> tuple[str, Fraction] | None:
    name = re.sub(r"\\mu\s?", r"\\mu ", name) if name.startswith("\\mu") else name + " " if name == "\\Omega" else name
    for known in (name, name.lower(), name.lower().removesuffix("s")):
        if known in _BARE and (known == name or len(known) > 2):
            return _BARE[known]
    for prefix, power in _PREFIXES.items():
        if name.startswith(prefix) and name[len(prefix):] in _UNITS:
            base, size = _UNITS[name[len(prefix):]]
            return base, size * Fraction(10) ** power
    return None


def same_quantity(answer: Quantity, gold: Quantity) -> bool:
    """Whether the answer rounds to the gold answer's digits, in the gold answer's unit; a missing unit is forgiven."""
    value = answer.value
    if answer.dimension is not None and gold.dimension is not None:
        if answer.dimension != gold.dimension:
            return False
        value = value * answer.scale / gold.scale
    if value == gold.value:
        return True
    coarser = answer.step * answer.scale > gold.step * gold.scale
    return gold.step > 0 and abs(value - gold.value) <= gold.step / 2 and not coarser


def clash(answer: str, gold: str) -> bool:
    """Whether both units are known and measure different things, or the same in another size."""
    a, b = units(answer), units(gold)
    return a is not None and b is not None and a[1] is not None and b[1] is not None and a != b


def same_wording(answer: str, gold: str) -> bool:
    """Whether two short texts are the same but for case, articles, spaces, hyphens and a full stop.

    Where both look like a formula of chemistry case counts: CO is not Co.
    """
    if is_compound(gold):
        return _symbols(answer) == _symbols(gold)
    return _bare(answer) == _bare(gold) != ""


def is_compound(text: str) -> bool:
    """Whether a text looks like a formula of chemistry, such as H2O or CO: two elements at least, or a count."""
    bare = _symbols(text)
    return len(bare) <= 24 and re.search(r"[A-Z].*[A-Z\d]", bare) is not None and _COMPOUND.fullmatch(bare) is not None


def _symbols(text: str) -> str:
    return re.sub(r"[_{}\s$]", "", text)


def _bare(text: str) -> str:
    text = re.sub(r"^(?:an?|the)\s+", "", text.casefold().strip())
    return re.sub(r"[\s\-_.{}$\\\"'’]", "", text)
