"""One canonical text for answers that mean the same, so that votes can be counted without comparing pairs."""

from __future__ import annotations

import re

from upft.choices import AnswerKind
from upft.grading.compare import READ
from upft.grading.numbers import number
from upft.grading.options import letter
from upft.grading.quantity import about, quantity
from upft.grading.spelling import plain, squeezed, words


def vote(extracted: str, kind: AnswerKind = AnswerKind.math) -> str:
    r"""The ballot of an answer that `extract` found: equal ballots are equal answers.

    "1/2", "\frac12", "0.5" and "x = 0.5" fall together, as do "{1,2}" and "{2, 1}", "(B)" and "B". What only algebra
    can tell ("2(k+1)" and "2k+2") stays apart. A percent sign, a unit and the x of a lone "x = 5" are dropped: "50%"
    votes with "50".
    `science` keeps quantities in base units. Costs some microseconds, never raises.
    """
    if len(extracted) > READ:
        return extracted.strip()
    if kind is AnswerKind.choice:
        return letter(extracted) or extracted.strip()
    text = plain(extracted)
    if kind is AnswerKind.science:
        measured = quantity(plain(about(extracted)))
        if measured is not None and measured.dimension:
            powers = " ".join(f"{name}{power}" for name, power in measured.dimension)
            return f"{measured.value * measured.scale} {powers}"
    return _ballot(text)


def _ballot(text: str) -> str:
    read = number(text)
    if read is not None:
        return str(read.value)
    inside = re.fullmatch(r"(\\\{|\{|\(|\[)(.*?)(\\\}|\}|\)|\])", text)
    parts = _parts(inside[2] if inside else text)
    if len(parts) > 1:
        ballots = [_ballot(part.strip()) for part in parts]
        names = [read.name if (read := number(part.strip())) else "" for part in parts]
        if len(set(names)) > 1:  # x=1, y=2 is not x=2, y=1
            ballots = [f"{name}={ballot}" if name else ballot for name, ballot in zip(names, ballots, strict=True)]
        if inside is None or inside[1] in ("\\{", "{"):
            return "{" + ",".join(sorted(ballots)) + "}"
        return inside[1] + ",".join(ballots) + inside[3]
    if re.search(r"[A-Za-z]{3}", text) and re.fullmatch(r"[A-Za-z][A-Za-z' .-]*", text):
        return " ".join(words(text))
    return squeezed(re.sub(r"^[A-Za-z]\s?=\s?(?=[^=]*$)", "", text))


def _parts(text: str) -> list[str]:
    """Cut at the commas, and "and"s, that stand in no bracket; one part where brackets do not match."""
    parts, depth, start = [], 0, 0
    for found in re.finditer(r"[({\[]|[)}\]]|,\s?(?:and\s)?|\sand\s", text):
        if found[0] in "({[":
            depth += 1
        elif found[0] in ")}]":
            depth -= 1
            if depth < 0:
                return [text]
        elif depth == 0:
            parts.append(text[start:found.start()])
            start = found.end()
    return [text] if depth else [*parts, text[start:]]
