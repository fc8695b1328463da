"""The gold answer of a data set's row."""

from __future__ import annotations

import re

from upft.choices import AnswerFormat, AnswerKind
from upft.errors import DataError
from upft.grading.boxes import last_box
from upft.grading.options import letter

HASHES = re.compile(r"####[ \t]*([^\n]+)")


class GoldError(DataError, ValueError):
    """A gold answer does not stand where its format says, or is not of its kind."""


def gold(answer_text: str, fmt: AnswerFormat) -> str:
    r"""The gold answer inside a data set's answer field.

    plain: the whole field. gsm8k: what follows the last `####`, without thousands separators. boxed: the
    content of the last complete `\boxed{}`. Raises GoldError (a DataError) where the marker is not there.
    """
    if fmt is AnswerFormat.plain:
        found: str | None = answer_text.strip()
    elif fmt is AnswerFormat.gsm8k:
        hits = HASHES.findall(answer_text)
        found = re.sub(r"(?<=\d),(?=\d{3})", "", hits[-1].strip()) if hits else None
    else:
        found = last_box(answer_text).content
    if not found:
        marker = {AnswerFormat.plain: "an answer", AnswerFormat.gsm8k: "'#### answer'",
                  AnswerFormat.boxed: r"a complete \boxed{}"}[fmt]
        text = " ".join(answer_text.split())
        shown = text if len(text) <= 60 else "..." + text[-57:]
        raise GoldError(f"answer_format={fmt.name}: no {marker} in the answer field, which ends {shown!r}",
                        "name the column that holds the answer (answer_field) and how it stands there"
                        " (answer_format: plain, gsm8k or boxed)")
    return found


def check(gold: str, kind: AnswerKind) -> None:
    """Raise GoldError for a gold answer that no completion could ever match: empty, or no letter for `choice`."""
    if not gold.strip():
        raise GoldError("the gold answer is empty", "fill it, or remove the row")
    if kind is AnswerKind.choice and letter(gold) is None:
        shown = gold if len(gold) <= 60 else gold[:57] + "..."
        raise GoldError(f"the gold answer {shown!r} is no option letter, as kind=choice wants",
                        "give the letter of the right option (A to J), or grade with kind=math or kind=science")
