"""Whether an answer is the gold one.

First what can be told for certain and at once: the same text, two numbers, two letters, two words (`settle`). What is
left is an expression, for math-verify (`compare`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from upft.choices import AnswerKind
from upft.grading import numbers, quantity
from upft.grading.extraction import NO_ANSWER, extract
from upft.grading.options import letter
from upft.grading.spelling import plain, squeezed, words
from upft.grading.symbolic import LONGEST, math_verify, refused

READ = 4 * LONGEST
"""Longest answer, characters, that is read at all; a longer one is right only where it is the gold text itself."""


@dataclass(frozen=True)
class Verdict:
    """right: the answer is the gold one. extracted: the answer as it stood in the text, None where there is
    none. reason: what decided, in words."""

    right: bool
    extracted: str | None
    reason: str


def grade(completion: str, gold: str, kind: AnswerKind = AnswerKind.math) -> Verdict:
    """Grade one completion against one gold answer (as `gold` gives it). Never raises, never hangs.

    Numbers are compared exactly ("016", "1,234", "$18", "18 dollars", "18.00", "50%"), words as words, and
    what is neither by math-verify, whose float tolerance is six decimals.
    """
    answer = extract(completion, kind)
    if answer is None:
        return Verdict(False, None, NO_ANSWER)
    right, reason = compare(answer, gold, kind)
    return Verdict(right, answer, reason)


def compare(answer: str, gold: str, kind: AnswerKind = AnswerKind.math, limits: bool = True) -> tuple[bool, str]:
    """(right, what decided) for an answer as `extract` gives it. Never raises. limits: see `symbolic.math_verify`."""
    try:
        certain = settle(answer, gold, kind)
        if certain is not None:
            return certain
        same, problem = math_verify(plain(answer), plain(gold), limits)
    except Exception as error:  # a completion may hold anything; what cannot be read is not right
        return False, f"unreadable ({type(error).__name__})"
    return same, "math-verify" if same else problem or "math-verify: different"


def settle(answer: str, gold: str, kind: AnswerKind = AnswerKind.math) -> tuple[bool, str] | None:
    """(right, what decided) where reading both texts tells it for certain, within a millisecond; None where they are
    expressions that need algebra."""
    if kind is AnswerKind.choice:
        ours, theirs = letter(answer), letter(gold)
        if theirs is None:
            return False, "the gold answer is no option letter"
        return ours == theirs, "same option" if ours == theirs else "another option"
    if len(answer) > READ or len(gold) > READ:
        same = answer.strip() == gold.strip()
        return same, "same text" if same else f"other text, longer than {READ} characters"
    ours, theirs = plain(answer), plain(gold)
    if squeezed(ours) == squeezed(theirs):
        return True, "same text"
    if kind is AnswerKind.science:
        measured = _measured(*(plain(quantity.about(text)) for text in (answer, gold)))
        if measured is not None:
            return measured
    return _read(ours, theirs)


def _measured(ours: str, theirs: str) -> tuple[bool, str] | None:
    a, b = quantity.quantity(ours), quantity.quantity(theirs)
    if a is not None and b is not None:
        same = quantity.same_quantity(a, b)
        return same, "same quantity" if same else "another quantity"
    if b is None and quantity.same_wording(ours, theirs):
        return True, "same words"
    return (False, "another compound") if quantity.is_compound(theirs) else None


def _read(ours: str, theirs: str) -> tuple[bool, str] | None:
    choice = re.fullmatch(r"\(([A-Za-z])\)", theirs)
    if choice:  # an option's letter, maybe with the option after it
        option = re.match(r"\(?([A-Za-z])(?:$|\)|[.:](?:\s|$))", ours)
        same = option is not None and option[1].lower() == choice[1].lower()
        return same, "same option" if same else "another option"
    if re.search(r"[A-Za-z]{3}", theirs) and re.fullmatch(r"[A-Za-z][A-Za-z' .,-]*", theirs):
        # math-verify would read a word as a product of letters, and every anagram as right
        same = words(ours) == words(theirs)
        return same, "same words" if same else "other words"
    a, b = numbers.number(ours), numbers.number(theirs)
    if a is not None and b is not None:
        if a.unit and b.unit and quantity.clash(a.unit, b.unit):
            x, y = quantity.quantity(ours), quantity.quantity(theirs)
            same = x is not None and y is not None and quantity.same_quantity(x, y)
            return same, "same quantity" if same else "another unit"
        same = numbers.same_number(a, b)
        return same, "same number" if same else "another number"
    base_a, base_b = _base(ours), _base(theirs)
    if base_a is not None and base_b is not None and base_a != base_b:
        return False, "another base"  # math-verify drops the subscript
    if _brackets(ours) + _brackets(theirs) in ("{(", "({"):
        return False, "another kind of bracket"  # math-verify takes a pair for a set
    refusal = refused(ours) or refused(theirs)
    return None if refusal is None else (False, f"other text, {refusal}")


def _brackets(text: str) -> str:
    """The bracket in which a whole list stands; nothing where it stands in none."""
    found = re.fullmatch(r"\\?([({])[^(){}]*,[^(){}]*\\?[)}]", text)
    return found[1] if found else ""


def _base(text: str) -> str | None:
    found = re.fullmatch(r"[0-9A-Za-z]+\s?_\s?\{?\s?(\d+)\s?\}?", text)
    return found[1] if found else None
