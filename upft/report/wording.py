"""How numbers and findings read: one format each, on the page and in the terminal alike.

Pure functions from numbers to text. Knows no HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from upft.statistics import GAIN, LOSS

NONE = "—"


def percent(share: float | None) -> str:
    """0.5512 -> 55.1%; a dash for None."""
    return NONE if share is None else f"{100 * share:.1f}%"


def seeds(seed: int | None, train: int | None = None) -> str:
    """The cell's seed, and the training's where it has its own: `0`, `0, training 2`; nothing for None."""
    if seed is None:
        return ""
    return str(seed) if train in (None, seed) else f"{seed}, training {train}"


def points(share: float) -> str:
    """0.5512 -> 55.1."""
    return f"{100 * share:.1f}"


def signed(share: float) -> str:
    """0.051 -> +5.1, with a true minus sign; nothing but zero reads as zero."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def interval(low: float, high: float) -> str:
    """[53.9, 56.3], in percent or points."""
    ends = [f"{100 * x:.1f}".replace("-0.0", "0.0").replace("-", "−") for x in (low, high)]
    return f"[{ends[0]}, {ends[1]}]"


def p_value(p: float) -> str:
    """Two digits, never 0."""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.2f}" if p >= 0.0995 else f"p = {p:.3f}"


def count(n: float) -> str:
    """12,345."""
    return f"{n:,.0f}"


def mean(x: float | None) -> str:
    """One decimal; a dash for None."""
    return NONE if x is None else f"{x:,.1f}"


def tokens(n: int) -> str:
    """1 token, 1,024 tokens."""
    return f"{count(n)} token{'s' * (n != 1)}"


def nats(x: float | None) -> str:
    """Two decimals; a dash for None."""
    return NONE if x is None else f"{x:.2f}"


def small(x: float) -> str:
    """Four decimals, of what is less than 0.001 two digits: 0.0123, 4.2e-05."""
    return f"{x:.4f}" if x >= 0.001 or x == 0 else f"{x:.1e}"


def seconds(s: float) -> str:
    """12.3 s, 4 min 05 s, 1 h 02 min."""
    if s < 59.95:
        return f"{s:.1f} s"
    if s < 3599.5:
        minutes, rest = divmod(round(s), 60)
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(s / 60), 60)
    return f"{hours:,} h {minutes:02d} min"


def memory(size: float) -> str:
    """812 MiB, 1.43 GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def flops(n: float) -> str:
    """Floating-point operations with a metric prefix, three digits: 1.23 PFLOP, 2.00 TFLOP."""
    for power, prefix in PREFIXES:
        if n >= 0.9995 * 10.0**power:
            return f"{digits(n / 10.0**power)} {prefix}FLOP"
    return f"{n:,.0f} FLOP"


PREFIXES = ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"))
"""Powers of ten and their metric prefixes."""


def digits(x: float) -> str:
    """Three significant digits, zeros at the end too: 0.00720, 0.700, 12.3, 123; 1,234 from a thousand on."""
    return f"{x:,.0f}" if abs(x) >= 999.5 else f"{x:#.3g}".removesuffix(".")


def about(text: str, estimated: bool) -> str:
    """≈ before an estimate."""
    return f"≈ {text}" if estimated else text


def or_none(text: str, number: float) -> str:
    """A dash where there is nothing to count."""
    return text if number else NONE


def asked(entry: Mapping[str, Any]) -> str:
    """How a task of results.json was asked, and who read the answers."""
    return way(entry["protocol"], entry["asked"], entry["samples"], accepted(entry))


def accepted(entry: Mapping[str, Any]) -> int | None:
    """Answers of a task of results.json, both models', that a judge accepted and the rule did not; None where no judge was
    asked."""
    known = [one for side in ("base", "trained") if (one := entry[side]["judge_accepted"]) is not None]
    return sum(known) if known else None


def way(protocol: str | None, how: Mapping[str, Any], n: int, by_judge: int | None) -> str:
    """`paper protocol, greedy`, `standard protocol, mean of 32 answers at T=0.6`. by_judge: as `accepted`."""
    said = [] if protocol is None else [f"{protocol} protocol"]
    drawn = "one answer" if n == 1 else f"mean of {n} answers"
    if how["temperature"] is None:
        said.append(drawn)
    else:
        said.append("greedy" if how["temperature"] == 0 else f"{drawn} at T={how['temperature']:g}")
    return ", ".join(said if by_judge is None else [*said, judged(by_judge)])


def judged(by_judge: int) -> str:
    """Whose word an answer counts by where a judge looked at what the rule called wrong."""
    return f"accepted by rule or judge ({count(by_judge)} by the judge)"


def finding(task: str, entry: Mapping[str, Any], method: str) -> tuple[str, str]:
    """(what happened, the numbers behind it) of one task of results.json."""
    paired, base, trained = entry["paired"], entry["base"]["accuracy"], entry["trained"]["accuracy"]
    verb = {GAIN: "raised", LOSS: "lowered"}.get(paired["verdict"], "did not measurably change")
    what = f"{method} {verb} accuracy on {task}: {percent(base['value'])} → {percent(trained['value'])}."
    numbers = (f"Difference {signed(paired['difference'])} points {interval(paired['low'], paired['high'])}, "
               f"{p_value(paired['p_value'])}")
    if verb.startswith("did not"):
        numbers += f"; inside noise. A change of {100 * paired['smallest_detectable']:.1f} points would likely have shown"
    return what, numbers + "."


def multiplicity(tests: int) -> str:
    """What to expect of many tests at the 5% level; nothing of a single one."""
    if tests < 2:
        return ""
    return (f"The tables of results hold {count(tests)} tests against the base model, each at the 5% level: if training "
            f"changed nothing at all, one in twenty, here about {tests / 20:.2g}, would be called a gain or a loss all the "
            "same.")


def parts(whole: float, *of: float) -> list[str]:
    """A difference and what it splits into, as they are said: of one decimal where the rounded parts add up to the rounded
    whole, else of two, the last digit of the part that rounding moved most making up for what is left."""
    for digits in (1, 2):
        scale = 100 * 10**digits
        total, found = round(scale * whole), [round(scale * one) for one in of]
        left = total - sum(found)
        if left == 0 or digits == 2:
            break
    for _ in range(abs(left)):
        step = 1 if left > 0 else -1
        place = max(range(len(of)), key=lambda one: step * (scale * of[one] - found[one]))
        found[place] += step
    return [_sign(one / 10**digits, digits) for one in (total, *found)]


def _sign(number: float, digits: int) -> str:
    text = f"{number:+.{digits}f}"
    return text[1:] if number == 0 else text.replace("-", "−")


def short(n: float | None) -> str:
    """Tokens as the paper gives them: 318.0M, 16.1k, 902."""
    if n is None:
        return NONE
    if n >= 99_950:
        return f"{n / 1e6:,.1f}M" if n >= 999_500 else f"{n / 1e6:.2f}M"
    return f"{n / 1e3:.1f}k" if n >= 999.5 else f"{n:,.0f}"


def share(x: float) -> str:
    """A share of another's cost: 0.4%, 53%, 1.00×, 3.1×; never a zero that is none."""
    if x >= 0.995:
        return f"{x:,.2f}×" if x < 10 else f"{x:,.0f}×"
    return f"{100 * x:.0f}%" if x >= 0.0995 else f"{100 * x:.2g}%"


def commit(git: Any) -> str:
    """Ten digits of a commit, and whether the tree had changes."""
    head, _, changed = str(git or "").partition("+")
    return (head[:10] + (" + changes" if changed else "")) if head else NONE


def time(stamp: Any) -> str:
    """2026-03-01T10:04:05Z -> 2026-03-01 10:04:05."""
    return str(stamp or NONE).replace("T", " ").replace("Z", "")
