r"""Where the answer stands in a completion.

Knows text; not what counts as the same answer. Every search passes over the text a bounded number of times.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from upft.choices import AnswerKind
from upft.grading.boxes import last_box
from upft.grading.key import HASHES
from upft.grading.options import last_option

NO_ANSWER = "no answer"
LOOKED_AT = 100_000
"""Characters at the end of a completion (after its thoughts) in which the answer is looked for."""

_LEAD = (r"(?:(?:therefore|thus|then|hence|so|simply|just|approximately|approx\.?|about|roughly|exactly|equal to|given by)"
         r",?\s+)*")
_PHRASE = re.compile(rf"\banswer\b[^.\n:=]{{0,40}}?(?:\bis\b|[:=])[\s:*]*{_LEAD}[\s:*]*([^\n]+)",
                     re.IGNORECASE)
_HEADING = re.compile(r"(?:^|\n)[#*\t ]*(?:final )?answer[*\t :]*\n\s*([^\n]+)", re.IGNORECASE)
_DISPLAY = re.compile(r"\\\[|\$\$")
_PHRASE_END = re.compile(r"\.(?=\s|\*|$)|,\s+(?=[a-z]{2})|\s(?:because|since|which|so|as)\s|\s\((?=[a-z]{2})", re.IGNORECASE)
_LAST_LINE = re.compile(r"(?:^|\n)[ \t]*(?:A|Ans|Solution)[ \t]*:[ \t]*([^\n]+?)\s*\Z")
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(rf"(?<![\w.,])(?:(?<![\w)\]}}\s])-|(?<=\s)-(?=[\d$.])|^-)?[$€£]?{_DIGITS}(?:/\d+)?%?")
_SPAN = re.compile(r"\$\$([^$]+)\$\$|\$([^$]+)\$|\\\(((?:(?!\\\().)+?)\\\)|\\\[((?:(?!\\\[).)+?)\\\]", re.DOTALL)


def extract(text: str, kind: AnswerKind = AnswerKind.math) -> str | None:
    r"""The final answer in a completion, as written (for `choice` the bare letter); None where there is none.

    Thoughts between `<think>` and `</think>` hold no answer, and thoughts that never end leave none at all. After
    them, for `math` and `science`, in this order: the last complete, non-empty `\boxed{}` (\fbox, \framebox) with
    balanced braces; the last `#### x`; a last line "A: x"; the last "answer is x" or "answer: x"; where the text
    breaks off inside a box, nothing; the formula in which the last number stands; the last number. Boxes are never
    joined: of several, the last is the answer. `choice`: see `options.last_option`.
    """
    spoken = after_thoughts(text)
    if spoken is None:
        return None
    return last_option(spoken) if kind is AnswerKind.choice else _statement(spoken, kind)


def after_thoughts(text: str) -> str | None:
    """What follows the last closed block of thoughts; None where thoughts are all there is."""
    said = text.rpartition("</think>")[2].partition("<think>")[0][-LOOKED_AT:]
    return said if said.strip() else None


def reopened(prompt: str, completion: str) -> str:
    """The completion with the `<think>` that a chat template wrote at the end of the prompt.

    R1's template opens the block itself, so that a completion which the length limit cut shows no sign of being
    thoughts only. Give its prompt's text here before grading.
    """
    _, opened, inside = prompt.rpartition("<think>")
    return "<think>" + completion if opened and "</think>" not in inside else completion


def _statement(text: str, kind: AnswerKind) -> str | None:
    box = last_box(text)
    if box.content is not None:
        return box.content
    broken = False
    if box.cut is not None:
        if "\n" in text[box.cut:]:  # a brace was forgotten and the text went on
            text = re.sub(r"\\{1,2}(?:boxed|fbox|framebox)\s*\{", " ", text)
        else:
            text, broken = text[:box.cut], True
    hashes = HASHES.findall(text)
    if hashes:
        return str(hashes[-1]).strip()
    last_line = _LAST_LINE.search(text[-2000:])
    if last_line:
        return last_line[1].strip(" *\t`")
    said = [*_PHRASE.finditer(text), *_HEADING.finditer(text)]
    for match in sorted(said, key=lambda m: m.start(1), reverse=True):
        found = _stated(match, text, kind)
        if found is not None:
            return found
    return None if broken else _last_number(text)


def _stated(match: re.Match[str], text: str, kind: AnswerKind) -> str | None:
    """What "the answer is ..." goes on to say, None when it says nothing that could be an answer."""
    phrase = match[1]
    opening = _DISPLAY.match(phrase)
    span = next(_spans(text[match.start(1):match.start(1) + 2000] if opening else phrase), None)
    if span is not None:
        return span.strip()
    found = _PHRASE_END.split(phrase, maxsplit=1)[0].strip(" *\t`")
    if not found:
        return None
    words = found.split()
    numbers = _NUMBER.findall(found)
    if kind is AnswerKind.math and len(numbers) == 1 and len(words) > 4 and words[0].isalpha() \
            and not re.search(r"\b(?:not|no|never|than|or)\b|\\", found):
        return str(numbers[0])  # "the answer is that she has 18 apples left"
    return found if numbers or re.search(r"\d", found) or len(words) <= 3 or kind is AnswerKind.science else None


def _last_number(text: str) -> str | None:
    found = list(_NUMBER.finditer(text))
    if not found:
        return None
    last = found[-1]
    line = text.rfind("\n", 0, last.start()) + 1
    for span in _SPAN.finditer(text[line:]):
        inside = next(g for g in span.groups() if g)
        if line + span.start() <= last.start() < line + span.end() and _is_math(inside) and re.search(r"\\[a-z]|\^", inside):
            return re.split(r"=|\\approx", inside)[-1].strip(" .,;") or last[0]
    return last[0]


def _spans(text: str) -> Iterator[str]:
    for span in _SPAN.finditer(text):
        inside = next(g for g in span.groups() if g)
        if inside.strip() and _is_math(inside):
            yield inside


def _is_math(inside: str) -> bool:
    r"""Whether what stands between two dollars is a formula, and not the words between two prices."""
    bare = re.sub(r"\\(?:text|mathrm|mbox|textbf)\s*\{[^{}]*\}|\\[A-Za-z]+", " ", inside)
    return not re.search(r"(?<![A-Za-z])(?:[a-z]{3,}|[a-z]+ [a-z]+)(?![A-Za-z])", bare) or not re.search(r"\s", bare.strip())
