r"""Answers that are the letter of an option, A to J.

A letter counts where the text commits itself to it: in a box, after "the answer is", as a line of its own. A capital
that merely stands somewhere (the article "A", the pronoun "I", the C of "Vitamin C") never does.
"""

from __future__ import annotations

import re

from upft.grading.boxes import last_box

LONGEST = 600
"""Longest text, characters, that is read as an option with its letter."""
_OPEN = r"[\s*_`\"'$({\[]*(?:\\(?:text|mathrm|mathbf|textbf|boxed|fbox)\s*\{[\s*({]*)*"
_ALONE = r"(?![\w'’+^=/]|-\w|\s*\\[a-z]|\s*[=^])"
_BARE = re.compile(rf"{_OPEN}(?:\b[Oo]ption\s+|\b[Cc]hoice\s+)?{_OPEN}(?P<letter>[A-Ja-j]){_ALONE}(?P<rest>.*)", re.DOTALL)
_NEXT = rf"(?={_OPEN}(?:(?:option|choice|letter)\s+)?{_OPEN}[A-J](?![\w'’]))"
_STATEMENT = re.compile(
    r"(?P<before>\b\w{1,15}[ \t]+)?\b(?:answer|(?:correct|right|best|final|my)[ \t]+(?:option|choice|letter|selection))\b"
    r"(?P<gap>[^.\n:=]{0,60}?)(?::|=|\b(?:is|would be|should be|must be)\b)[\s:*_]*"
    rf"(?:(?:therefore|thus|then|clearly|indeed|simply|likely|again|still|now)\b[\s,:*_]*)?{_NEXT}"
    rf"|\b(?:choose|chose|pick|picked|select|selected|go(?:ing)? with)\b[\s:*_]+(?:answer[ \t]+)?{_NEXT}", re.IGNORECASE)
_DENIED = re.compile(r"\b(?:not|never|cannot|wrong|incorrect|false|eliminat\w*|other)\b|n't\b", re.IGNORECASE)
_SUBJECT = re.compile(
    r"\b(?P<letter>[A-J])\b(?:\)|\*\*|\.){0,4}[ \t]+(?:is|must be|should be)[ \t]+(?:(?:thus|therefore|clearly|indeed)[ \t]+)?"
    r"(?:the[ \t]+)?(?:(?:only|best|most)[ \t]+)?(?:correct|right|answer|appropriate)\b", re.IGNORECASE)
_UNSURE = re.compile(r"(?:\bnot|\bneither|\bnor|\bif|\bor|\band|\bwhy)[\s(*]*(?:(?:option|choice)[\s(*]*)?$", re.IGNORECASE)
_BOLD = re.compile(r"\*\*[\s(]*(?P<letter>[A-J])(?:\)|\*\*|[.:)][^*\n]{0,300}\*\*)")
_LISTED = re.compile(r"[\s*(>-]*[A-J][).:]\s")
_MENTION = re.compile(r"\((?P<a>[A-J])\)|\b(?:option|choice)[ \t]+\(?(?P<b>[A-J])\b", re.IGNORECASE)


def letter(text: str) -> str | None:
    r"""The option's letter that an answer consists of: "B", "(b)", "\text{(B)}", "B. 5 m/s"; None for anything else."""
    if len(text) > LONGEST:
        return None
    found = _BARE.fullmatch(text.strip())
    if found is None or re.match(r"\s+[a-z]", found["rest"]) or not _committed(found):
        return None
    return found["letter"].upper()


def last_option(text: str) -> str | None:
    r"""The letter to which a text commits itself last, as a capital; None where it commits itself to none.

    Boxes and statements ("the answer is B", "Answer: (B)", "I choose B", "B is correct") count by their place: the
    last wins. Where there is none of them: a bold letter, the last line when it is an option and not the end of a
    list of options, the one option that the last line names.
    """
    found: list[tuple[int, str]] = []
    box = last_box(text)
    if box.content is not None:
        inside = letter(box.content)
        if inside is not None:
            found.append((text.rfind(box.content), inside))
    if box.cut is not None and "\n" not in text[box.cut:]:
        text = text[:box.cut]
    for statement in _STATEMENT.finditer(text):
        if _DENIED.search(f"{statement['before'] or ''} {statement['gap'] or ''}"):
            continue
        after = _BARE.match(text[statement.end():statement.end() + 200])
        if after is not None and _committed(after):
            found.append((statement.end(), after["letter"].upper()))
    for subject in _SUBJECT.finditer(text):
        if subject["letter"].isupper() and not _UNSURE.search(text[max(0, subject.start() - 20):subject.start()]):
            found.append((subject.start(), subject["letter"]))
    if found:
        return max(found)[1]
    return _from_layout(text)


def _from_layout(text: str) -> str | None:
    bold = list(_BOLD.finditer(text))
    lines = [line for line in text.splitlines() if line.strip()]
    if bold and not (len(bold) > 1 and len({m["letter"] for m in bold}) > 1 and _LISTED.match(lines[-1])):
        return bold[-1]["letter"]
    if not lines:
        return None
    last = lines[-1].strip()
    whole = letter(last)
    if whole is not None and not (len(lines) > 1 and _LISTED.match(lines[-2]) and _LISTED.match(last)):
        return whole
    named = {(m["a"] or m["b"]).upper() for m in _MENTION.finditer(last)}
    negated = re.search(r"\b(?:not|isn't|except|neither|wrong|incorrect|eliminate[ds]?|ruled? out)\b", last, re.IGNORECASE)
    return named.pop() if len(named) == 1 and not negated and not _LISTED.match(last) else None


_STOPS = re.compile(r"\s*(?:$|[.,;:!)\]}*_`\"'$\\]|(?:because|since|as|which)\b)|[ \t]*\n", re.IGNORECASE)
_MORE = re.compile(r"[)\]}*_`\"'$.\s]*(?:,?\s*(?:or|and)\b|,|/|&)\s*(?:\(|\*\*|option\s|choice\s)*[A-J](?![\w'])",
                   re.IGNORECASE)


def _committed(match: re.Match[str]) -> bool:
    """Whether the letter of a `_BARE` is one option, not a word, an article or one of several."""
    found, before, rest = match["letter"], match[0][:match.start("letter") - match.start()], match["rest"]
    if _MORE.match(rest):
        return False
    wrapped = bool(re.search(r"[({\[*`\"'$]", before)) or bool(re.search(r"option|choice", before, re.IGNORECASE))
    stops = _STOPS.match(rest) is not None
    if found.islower():
        return stops and (wrapped or not rest.strip(" .*\n)") or rest[:1] in ").")
    if found in "AI":
        return stops or (wrapped and rest[:1] in ")]}*$`\"'")
    return stops or wrapped or re.match(r"\s+[-–—(]|\s+[A-Z\d]|\s+[a-z]", rest) is not None
