"""What grading costs: graded answers a second with time limits on, against plain math-verify in a loop.

    python bench/grade.py --data DIR        # DIR: gsm8k/test.jsonl, math500/test.jsonl, aime24/test.jsonl

Both grade the same texts in turn; bench/README.md says what they are and how to read the table.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
from rich.console import Console
from rich.table import Table

from upft import grading
from upft.choices import AnswerFormat
from upft.completions import rows
from upft.errors import UpftError
from upft.graders import Graders, cores

HERE = Path(__file__).parent
FILES = (("gsm8k/test.jsonl", "answer", AnswerFormat.gsm8k), ("math500/test.jsonl", "solution", AnswerFormat.boxed),
         ("aime24/test.jsonl", "solution", AnswerFormat.boxed))
Item = tuple[str, str, bool]
"""Completion, gold answer, whether the completion is an untouched gold solution."""


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 it cannot be run here."""
    options = parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    result: dict[str, Any] = {"machine": measure.machine(), "options": {k: str(v) for k, v in vars(options).items()}}
    if (busy := result["machine"]["busy_percent"]) > 20:
        console.print(f"[yellow]this machine is {busy:.0f}% busy: rates will be too low[/]")
    try:
        items = corpus(options.data)
    except (UpftError, OSError, KeyError) as error:
        console.print(f"[red]{error}[/]")
        return 2
    plain_loop(items[:20])  # imports
    contestants: dict[str, Callable[[list[Item]], list[bool]]] = {
        "math-verify, a loop": plain_loop, "upft, 1 worker": lambda i: pool(i, 1),
        f"upft, {cores()} workers": lambda i: pool(i, None),
        f"upft, {cores()} workers, algebra only": lambda i: pool(i, None)}
    algebra = [item for item in items if not settled(item)]
    hard = algebra * 10  # enough that the start, which each run includes, does not rule
    table = Table(title=f"{len(items):,} answers, {len(algebra):,} of them for algebra", box=None, title_justify="left")
    for column in ("grader", "answers/s", "times the loop", "gold solutions right", "others right"):
        table.add_column(column, justify="left" if column == "grader" else "right")
    judged: dict[str, list[bool]] = {}
    for name, grader in contestants.items():
        mine = hard if name.endswith("algebra only") else items
        best = min(timed(grader, mine, judged, name) for _ in range(options.repeats))
        base = len(mine) / min(timed(plain_loop, mine, {}, "") for _ in range(options.repeats)) if mine is hard else None
        result[name] = {"answers": len(mine), "seconds": best, "rate": len(mine) / best}
        if base is not None:
            result["math-verify, a loop, algebra only"] = {"answers": len(mine), "rate": base}
        against = base or result["math-verify, a loop"]["rate"]
        result[name]["times"] = len(mine) / best / against
        gold = [right for right, item in zip(judged[name], mine, strict=True) if item[2]]
        others = [right for right, item in zip(judged[name], mine, strict=True) if not item[2]]
        table.add_row(name, f"{len(mine) / best:,.0f}", f"{result[name]['times']:.2f}", share(gold), share(others))
    console.print(table)
    ours, theirs = judged[f"upft, {cores()} workers"], judged["math-verify, a loop"]
    apart = [(item[0][-200:], item[1], mine) for item, mine, other in zip(items, ours, theirs, strict=True) if mine != other]
    result["agreement"] = 1 - len(apart) / len(items)
    result["disagreements"] = apart
    console.print(f"both say the same of {100 * result['agreement']:.2f}%; right by ours only {sum(a[2] for a in apart)}, "
                  f"by the loop only {sum(not a[2] for a in apart)} (in the JSON)")
    out = options.out or HERE / "results" / f"{result['machine']['date'][:10]}-grade.json"
    measure.write(out, result)
    console.print(f"written: {out}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    known = argparse.ArgumentParser(description="graded answers a second")
    known.add_argument("--data", type=Path, required=True, help="folder with gsm8k/, math500/ and aime24/")
    known.add_argument("--repeats", type=int, default=2, help="runs of each; the best counts (default 2)")
    known.add_argument("--out", type=Path, help="where the result belongs (default: results/DATE-grade.json)")
    return known


def corpus(data: Path) -> list[Item]:
    """Each gold solution, and the same with a wrong answer: another question's of the same file, or its own with
    one digit changed. Shuffled with a fixed seed."""
    rng, items = random.Random(0), []
    for name, field, fmt in FILES:
        read = [(str(row[field]), grading.gold(str(row[field]), fmt)) for _, row in rows(data / name)]
        for place, (text, gold) in enumerate(read):
            items.append((text, gold, True))
            other = read[place - 1][1] if place % 2 else perturbed(gold, rng)
            items.append((text[:text.rindex(gold)] + other + text[text.rindex(gold) + len(gold):] if gold in text
                          else f"\\boxed{{{other}}}", gold, False))
    rng.shuffle(items)
    return items


def perturbed(gold: str, rng: random.Random) -> str:
    """The answer with one digit changed; "7" in front where it has none."""
    places = [m.start() for m in re.finditer(r"\d", gold)]
    if not places:
        return "7" + gold
    at = rng.choice(places)
    return gold[:at] + str((int(gold[at]) + rng.randint(1, 9)) % 10) + gold[at + 1:]


def settled(item: Item) -> bool:
    """Whether reading tells, so that upft's workers are not asked."""
    answer = grading.extract(item[0])
    return answer is None or grading.settle(answer, item[1]) is not None


def plain_loop(items: list[Item]) -> list[bool]:
    """math-verify as its page shows it: parse both with its defaults (time limits included), verify."""
    from math_verify import parse, verify

    return [bool(verify(parse(f"${gold}$"), parse(text))) for text, gold, _ in items]


def pool(items: list[Item], workers: int | None) -> list[bool]:
    """upft's graders, from a cold start, with their time limits."""
    with Graders(workers) as graders:
        for number, (text, gold, _) in enumerate(items):
            graders.put(number, text, gold)
        verdicts = dict(graders.rest())
    return [verdicts[number].right for number in range(len(items))]


def timed(grader: Callable[[list[Item]], list[bool]], items: list[Item], judged: dict[str, list[bool]], name: str) -> float:
    """Seconds of one run; keeps its verdicts."""
    began = time.perf_counter()
    judged[name] = grader(items)
    return time.perf_counter() - began


def share(rights: list[bool]) -> str:
    """"99.0% of 100"."""
    return f"{100 * sum(rights) / len(rights):.1f}% of {len(rights):,}" if rights else "none"


if __name__ == "__main__":
    sys.exit(main())
