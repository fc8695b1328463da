"""One spelling of answers that mean the same: wrappers, spacing and typographic variants taken off. No arithmetic."""

from __future__ import annotations

import re

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_FRACTIONS = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4",
              "⅕": "1/5", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"}
_SPELT = (
    (r"\\(?:left|right|displaystyle|textstyle|limits|bigl|bigr|big|Big|Bigl|Bigr)(?![A-Za-z])", ""),
    (r"(?<!\\)\\[!,;:> ]|~|\\q?quad(?![A-Za-z])|\\thinspace(?![A-Za-z])|[\u00a0\u2009\u202f\u200b]", " "),
    (r"\{,\}", ","),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\(?:text(?:bf|rm|it|normal|sf|tt)?|math(?:rm|bf|it|sf)|mbox|operatorname|bm|boldsymbol)\s*"
     r"\{((?:[^{}]|\{[^{}]*\})*)\}", r" \1 "),
    (r"(?<!\\)\\([$%#&])", r"\1"),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])|º", "°"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
    (r"[−–—﹣－]", "-"),
    (r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)|√\s*\(([^()]*)\)|√\s*(\w+)", r"\\sqrt{\1\2\3}"),
    (r"(?<![\\A-Za-z])pi(?![A-Za-z])|π", r"\\pi "),
    (r"[×·⋅∙]|(?<!\*)\*(?!\*)", r"\\cdot "),
    (r"\*\*", "^"),
    (r"∞|(?<![\\A-Za-z])infinity(?![A-Za-z])", r"\\infty "),
    (r"∪", r"\\cup "),
    (r"\\varnothing(?![A-Za-z])|∅", r"\\emptyset "),
    (r"≤", r"\\le "),
    (r"≥", r"\\ge "),
    (r"≠", r"\\ne "),
    (r"≈", r"\\approx "),
    (r"±", r"\\pm "),
    (r"[µμ]", r"\\mu "),
    (r"(?<=\d),\s+(?=\d{3}(?:,|$))", ","),
)
_SPELLINGS = tuple((re.compile(pattern), into) for pattern, into in _SPELT)
_WRAPPED = re.compile(r"\$\$?(?!\d[^$]*$)([^$]+)\$\$?|\\\((.+)\\\)|\\\[(.+)\\\]|\*\*([^*]+)\*\*|`([^`]+)`", re.DOTALL)


def plain(text: str) -> str:
    """The answer without $...$, **...**, spacing commands and synonyms of LaTeX and Unicode."""
    text = text.strip()
    while True:
        inner = _WRAPPED.fullmatch(text)
        if inner is None:
            break
        text = next(g for g in inner.groups() if g).strip()
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda m: "^{" + m[0].translate(_SUPERSCRIPTS) + "}", text)
    text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉]+", lambda m: "_{" + m[0].translate(_SUBSCRIPTS) + "}", text)
    text = re.sub(r"(\d?)\s?([½⅓⅔¼¾⅕⅛⅜⅝⅞])", lambda m: (m[1] + " " if m[1] else "") + _FRACTIONS[m[2]], text)
    for pattern, into in _SPELLINGS:
        text = pattern.sub(into, text)
    return re.sub(r"\s+", " ", text).strip().rstrip(".;,").strip()


def squeezed(text: str) -> str:
    """Without spaces (but "1 8" is not 18) and without braces around one sign of an index."""
    text = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)
    return re.sub(r"(?<=[\^_])\{(\w)\}|(?<=_)\{(\d+)\}", r"\1\2", text)


def words(text: str) -> list[str]:
    """Lower-case words without a leading article and without punctuation."""
    found = re.sub(r"[^a-z0-9' -]", "", text.casefold()).split()
    return found[1:] if len(found) > 1 and found[0] in ("a", "an", "the") else found
