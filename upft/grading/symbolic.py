"""Expressions, compared by math-verify: what may be handed to it, and within what time.

The only room that imports math_verify.
"""

from __future__ import annotations

import ctypes
import logging
import re
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
TIME_LIMIT_S = 3
"""Longest parse, and longest comparison, in math-verify."""
LONGEST = 300
"""Longest answer, characters, that is handed to math-verify; longer ones are compared as text only."""
DEEPEST = 12
"""Deepest nesting of brackets that is handed to math-verify: its parser's time doubles with every level."""


def refused(text: str) -> str | None:
    """Why an expression is not handed to math-verify: its evaluation could take for ever, some of it inside
    one call into C that no time limit can break off. None when it is harmless."""
    if len(text) > LONGEST:
        return f"longer than {LONGEST} characters"
    depth = deepest = 0
    for character in text:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
    if deepest > DEEPEST:
        return f"nested deeper than {DEEPEST} brackets"
    letters = set(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text)))
    if any(letter.lower() in letters for letter in letters if letter.isupper()):
        return "letters told apart by case"  # math-verify reads R and r as one variable
    if re.search(r"\\(?:sum|prod|int|lim|iint|oint)(?![A-Za-z])|\d{31}", text):
        return "not a closed form"
    return "too large to evaluate" if _too_large(text) else None


def _too_large(text: str) -> bool:
    """Whether evaluating could build a number of more than about 3500 digits (sympy tests some for primality),
    a tower of powers, or a power of a sum with thousands of terms."""
    powers = re.findall(r"(\d+|[)}\]]|.?)\s*\^\s*(\{(?:[^{}]|\{[^{}]*\})*\}|\([^()]*\)|\d|.)", text)
    around, digits = 1, max((len(n) for n in re.findall(r"\d+", text)), default=0)
    for base, power in powers:
        exponent = max((int(n) for n in re.findall(r"\d+", power)), default=1)
        if "^" in power or exponent > 9999:
            return True
        if base.isdigit():
            digits = max(digits, len(base) * exponent)
        elif base in (")", "}", "]"):
            around *= exponent
    if around > 100 or around * digits > 3500:
        return True
    if "!" not in text and "binom" not in text:
        return False
    return bool(powers) or digits > 3 or text.count("!") > 4 or re.search(r"!\s*[)}\]]*\s*!", text) is not None


def math_verify(answer: str, gold: str, limits: bool = True) -> tuple[bool, str | None]:
    """(equal, what went wrong). limits: False where the process itself is watched from outside. Else the work is given to a
    thread that can be left behind: math-verify's own limit is an alarm, which reaches the main thread alone and is lost where
    it goes off inside a finaliser."""
    from math_verify.errors import TimeoutException

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # one warning a completion otherwise
    if not limits:
        return _compare(answer, gold)
    try:
        return _in_time(lambda: _compare(answer, gold), 3 * TIME_LIMIT_S)
    except TimeoutException:
        return False, "time limit"


def _compare(answer: str, gold: str) -> tuple[bool, str | None]:
    """Parse both sides and compare, without a limit."""
    from math_verify import LatexExtractionConfig, parse, verify

    config = [LatexExtractionConfig(boxed_match_priority=0)]
    sides = [parse(f"\\boxed{{{text}}}", config, parsing_timeout=0, raise_on_error=True) for text in (gold, answer)]
    if not all(sides):
        return False, "math-verify cannot read it"
    return bool(verify(*sides, timeout_seconds=0, raise_on_error=True)), None


def _in_time(work: Callable[[], T], seconds: float) -> T:
    """What `work` gives or raises, or math-verify's TimeoutException when it takes longer.

    The interpreter can raise in another thread between two bytecodes. It is done to a helper and never to the
    caller, in whom the exception could arrive after the work and break something else.
    """
    from math_verify.errors import TimeoutException

    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    helper = threading.Thread(target=run, daemon=True)
    helper.start()
    helper.join(seconds)
    for _ in range(5):  # some code swallows the first
        if not helper.is_alive() or helper.ident is None:
            break
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(helper.ident), ctypes.py_object(TimeoutException))
        helper.join(0.2)
    if results:
        return results[0]
    raise errors[0] if errors else TimeoutException
