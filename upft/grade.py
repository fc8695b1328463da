"""Grade a file of completions from anywhere:  python -m upft.grade FILE.jsonl

A door: reads options, hands over, prints a table. docs/grading.md says how answers are found and compared.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upft.choices import AnswerKind
from upft.door import one_message

if TYPE_CHECKING:
    from rich.table import Table

    from upft.completions import Completion
    from upft.grading import Verdict

Graded = list[tuple["Completion", "Verdict"]]


def main(arguments: list[str] | None = None) -> None:
    """Read the file, grade, print. Exits with status 2 where that cannot be done."""
    options = parser().parse_args(arguments)
    with one_message(status=2):
        run(options)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    known = argparse.ArgumentParser(
        prog="python -m upft.grade", description="Grade a file of completions: JSON lines, one completion or a list of "
        "them with a gold answer a row. Fields are found by their usual names; nested ones are named with dots.")
    known.add_argument("file", type=Path, metavar="FILE.jsonl")
    known.add_argument("--completion", metavar="FIELD", help="the model's text")
    known.add_argument("--gold", metavar="FIELD", help="the gold answer")
    known.add_argument("--gold-format", choices=["plain", "gsm8k", "boxed", "extract"],
                       help="how the gold answer stands in its field: alone, after ####, in the last \\boxed{}, or to be "
                       "found as in a completion (default: by what it looks like in the first row)")
    known.add_argument("--id", metavar="FIELD", help="what the samples of one question share")
    known.add_argument("--kind", choices=[kind.name for kind in AnswerKind], default="math",
                       help="math: numbers and closed forms; choice: option letters; science: quantities with units, "
                       "formulas, names (default: math)")
    known.add_argument("--thoughts", choices=["auto", "shown", "opened"], default="auto",
                       help="opened: completions begin inside a <think> block that the prompt opened; auto: so where "
                       "some of them close a block that they did not open (default: auto)")
    known.add_argument("--verdict", metavar="FIELD", help="another grader's verdict, to compare with")
    known.add_argument("--out", type=Path, metavar="FILE", help="write the rows with extracted, right and reason")
    known.add_argument("--disagreements", type=Path, metavar="FILE",
                       help="with --verdict: where to write the rows judged otherwise (default: FILE.disagreements.jsonl)")
    known.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each core)")
    known.add_argument("--limit-s", type=float, metavar="S", help="processor seconds an answer may take (default: 5)")
    return known


def run(options: argparse.Namespace) -> None:
    """Grade, print, write. Raises DataError and ConfigError."""
    from upft.console import Console
    from upft.errors import demand

    demand(options.workers is None or options.workers >= 1, "--workers", options.workers, "use 1 or more")
    demand(options.limit_s is None or (options.limit_s > 0 and math.isfinite(options.limit_s)), "--limit-s", options.limit_s,
           "use seconds above 0")
    demand(options.verdict is not None or options.disagreements is None, "--disagreements", options.disagreements,
           "name the other grader's field with --verdict")
    console = Console()
    graded, opened = grade_file(options, console)
    console.say(table(options.file, graded, opened))
    if options.verdict is not None:
        console.say()
        console.say(agreement(graded))
        apart = [(one, ours) for one, ours in graded if one.verdict != ours.right]
        beside = options.file.with_name(options.file.name.removesuffix(".jsonl") + ".disagreements.jsonl")
        path = options.disagreements or beside
        write(options.file, path, apart)
        console.say(f"{len(apart)} disagreements: {path}")
    if options.out is not None:
        write(options.file, options.out, graded)
        console.say(f"graded rows: {options.out}")


def grade_file(options: argparse.Namespace, console: Any) -> tuple[Graded, bool]:
    """Every completion with its verdict, in the file's order, and whether their thoughts were opened by the prompt."""
    from upft.completions import Fields, read
    from upft.graders import LIMIT_S, Graders

    kind = AnswerKind[options.kind]
    fields = Fields(options.completion, options.gold, options.id, options.verdict, options.gold_format)
    count, opened = 0, options.thoughts == "opened"
    for one in read(options.file, fields, kind):  # first all of it: a bad line is found before any work is done
        count += 1
        if options.thoughts == "auto" and "</think>" in one.text:
            opened |= "<think>" not in one.text.partition("</think>")[0]
    asked: list[Completion] = []
    verdicts: dict[int, Verdict] = {}
    limit_s = LIMIT_S if options.limit_s is None else options.limit_s
    with Graders(options.workers, limit_s) as graders, console.bar("grading", count, "answers") as bar:
        for number, one in enumerate(read(options.file, fields, kind)):
            text = "<think>" + one.text if opened and not one.text.lstrip().startswith("<think>") else one.text
            graders.put(number, text, one.gold, kind)
            asked.append(replace(one, text=""))
            for done, verdict in graders.ready():
                verdicts[done] = verdict
                bar.advance()
        for done, verdict in graders.rest():
            verdicts[done] = verdict
            bar.advance()
    return [(one, verdicts[number]) for number, one in enumerate(asked)], opened


def table(path: Path, graded: Graded, opened: bool) -> Table:
    """What came out: accuracy with its interval, and what decided."""
    from rich.table import Table

    from upft import grading, statistics

    by_question: dict[str, list[bool]] = {}
    for one, verdict in graded:
        by_question.setdefault(one.question, []).append(verdict.right)
    sizes = {len(rights) for rights in by_question.values()}
    matrix = list(by_question.values()) if len(sizes) == 1 else [[sum(r) / len(r)] for r in by_question.values()]
    estimate = statistics.accuracy(matrix)
    samples = f"{sizes.pop()}" if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"
    shown = Table(title=path.name, title_justify="left", box=None, show_header=False, pad_edge=False)
    shown.add_column()
    shown.add_column(justify="right")
    shown.add_column()
    shown.add_row("questions", f"{len(by_question):,}", f"{samples} answer(s) each")
    right = sum(verdict.right for _, verdict in graded)
    shown.add_row("answers", f"{len(graded):,}", "their thoughts opened by the prompt" if opened else "")
    shown.add_row("right", f"{right:,}", "")
    shown.add_row("accuracy %", f"{100 * estimate.value:.2f}",
                  f"95% interval {100 * estimate.low:.2f} to {100 * estimate.high:.2f}"
                  + ("" if len({len(r) for r in by_question.values()}) == 1 else ", mean of the questions' means"))
    reasons = Counter(verdict.reason for _, verdict in graded)
    shown.add_row("no answer", f"{reasons.pop(grading.NO_ANSWER, 0):,}", "")
    shown.add_row("time limit", f"{reasons.pop('time limit', 0):,}", "")
    decided = {True: "right", False: "wrong"}
    ways = Counter((v.right, v.reason) for _, v in graded if v.reason in reasons)
    for (was_right, reason), count in sorted(ways.items(), key=lambda way: (not way[0][0], -way[1])):
        shown.add_row(f"  {decided[was_right]}", f"{count:,}", reason)
    return shown


def agreement(graded: Graded) -> Table:
    """Our verdicts beside those of the file."""
    from rich.table import Table

    counts = Counter((ours.right, one.verdict) for one, ours in graded)
    same = counts[True, True] + counts[False, False]
    shown = Table(title=f"agreement with the file's verdicts: {100 * same / len(graded):.2f}%", title_justify="left", box=None,
                  show_header=False, pad_edge=False)
    shown.add_column()
    shown.add_column(justify="right")
    for label, key in (("both right", (True, True)), ("both wrong", (False, False)), ("right by ours only", (True, False)),
                       ("right by theirs only", (False, True))):
        shown.add_row(label, f"{counts[key]:,}")
    return shown


def write(source: Path, path: Path, graded: Graded) -> None:
    """The source's rows of these completions, each with `extracted`, `right`, `reason`, and `sample` where a row
    holds several. Written beside and renamed. Raises DataError where it cannot be written."""
    from upft.completions import rows
    from upft.errors import DataError

    by_line: dict[int, Graded] = {}
    for one, verdict in graded:
        by_line.setdefault(one.line, []).append((one, verdict))
    part = path.with_name(f".{path.name}.partial")
    try:
        with part.open("w", encoding="utf-8") as stream:
            for line, row in rows(source):
                for one, verdict in by_line.get(line, []):
                    more: dict[str, Any] = {} if one.sample is None else {"sample": one.sample}
                    more |= {"extracted": verdict.extracted, "right": verdict.right, "reason": verdict.reason}
                    stream.write(json.dumps(row | more) + "\n")
        part.rename(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}", "give another path, or free some space") from error


if __name__ == "__main__":
    main()
