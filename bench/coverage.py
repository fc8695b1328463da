"""How often 95% intervals hold the truth, and tests at 5% cry wolf: simulated experiments, printed as Markdown tables.

    python bench/coverage.py                     # every table of docs/statistics.md, some minutes on one core
    python bench/coverage.py --only accuracy     # one of them

The truth is the mean over the population that questions (and, for seeds, seeds) are drawn from. A cell is the percentage of
2,000 experiments, each with new questions and new samples; its own error is about half a point. Marked * outside 93 to 97.
"""

from __future__ import annotations

import argparse
import itertools
import math
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from scipy import special, stats

from upft import statistics
from upft.statistics import means, pairs, several

EXPERIMENTS = 2000
QUESTIONS = (30, 198, 500, 1319)
ACCURACIES = (0.05, 0.2, 0.5, 0.9, 0.97)
KINDS = ("alike", "beta", "beta, narrow", "two levels")
CONCENTRATION = {"beta": 2.0, "beta, narrow": 8.0}
OK = (93.0, 97.0)

Row = tuple[str, list[float | None]]


def rng_of(*names: object) -> np.random.Generator:
    """A generator of a cell's own, whatever the order of the cells."""
    return np.random.default_rng(zlib.crc32(repr(names).encode()))


def difficulty(rng: np.random.Generator, kind: str, p: float, shape: tuple[int, ...]) -> np.ndarray:
    """Probabilities of a right answer, of mean p: all alike; beta(2p, 2(1-p)), which has many hopeless and many sure questions;
    beta(8p, 8(1-p)); half at p - d and half at p + d with d = 0.8·min(p, 1-p); few: nearly all at 0.99, the others at 0.01."""
    if kind == "alike":
        return np.full(shape, p)
    if kind == "two levels":
        return np.where(rng.random(shape) < 0.5, p - 0.8 * min(p, 1 - p), p + 0.8 * min(p, 1 - p))
    if kind == "few":
        return np.where(rng.random(shape) < (p - 0.01) / 0.98, 0.99, 0.01)
    return rng.beta(CONCENTRATION[kind] * p, CONCENTRATION[kind] * (1 - p), shape)


def held(low: np.ndarray, high: np.ndarray, truth: float) -> float:
    """Percentage of intervals that hold the truth."""
    return 100 * float(np.mean((low <= truth + 1e-12) & (truth - 1e-12 <= high)))


def accuracy(questions: int, samples: int, kind: str, p: float, experiments: int = EXPERIMENTS) -> float:
    """Coverage of the interval of an accuracy."""
    rng = rng_of("accuracy", questions, samples, kind, p)
    values = rng.binomial(samples, difficulty(rng, kind, p, (experiments, questions))) / samples
    _, low, high = means.mean_interval(values, samples, samples)
    return held(low, high, p)


def pass_truth(kind: str, p: float, k: int) -> float:
    """E[1 - (1 - difficulty)^k] over the population, in closed form."""
    if kind == "alike":
        return 1 - (1 - p) ** k
    if kind == "two levels":
        d = 0.8 * min(p, 1 - p)
        return 1 - ((1 - p + d) ** k + (1 - p - d) ** k) / 2
    a, b = CONCENTRATION[kind] * p, CONCENTRATION[kind] * (1 - p)
    return float(1 - math.exp(special.betaln(a, b + k) - special.betaln(a, b)))


def pass_at_k(questions: int, samples: int, k: int, kind: str, p: float, experiments: int = EXPERIMENTS) -> float:
    """Coverage of the interval of pass@k."""
    rng = rng_of("pass", questions, samples, k, kind, p)
    right = rng.binomial(samples, difficulty(rng, kind, p, (experiments, questions)))
    by_count = statistics.pass_values((np.arange(samples) < np.arange(samples + 1)[:, None]).astype(float), k)
    _, low, high = means.mean_interval(by_count[right], samples / k, np.inf if samples > k else 1)
    return held(low, high, pass_truth(kind, p, k))


TYPES = {  # share of the questions, probabilities of: the right answer, two wrong ones, no answer
    "easy": ((0.7, (0.85, 0.05, 0.05, 0.05)), (0.2, (0.6, 0.25, 0.1, 0.05)), (0.1, (0.3, 0.5, 0.1, 0.1))),
    "middling": ((0.3, (0.8, 0.1, 0.05, 0.05)), (0.4, (0.4, 0.35, 0.15, 0.1)), (0.3, (0.1, 0.5, 0.2, 0.2))),
    "hard": ((0.1, (0.6, 0.2, 0.1, 0.1)), (0.3, (0.3, 0.4, 0.2, 0.1)), (0.6, (0.03, 0.37, 0.2, 0.4))),
}


@lru_cache
def majority_truth(mix: str, k: int) -> float:
    """Expected accuracy of the majority of k votes, by listing all 4^k outcomes' counts."""
    total = 0.0
    for counts in itertools.product(range(k + 1), repeat=4):
        if sum(counts) != k:
            continue
        *answers, _ = counts
        top = max(answers)
        worth = (answers[0] == top) / answers.count(top) if top else 0.0
        total += worth * sum(share * float(stats.multinomial.pmf(counts, k, chances)) for share, chances in TYPES[mix])
    return total


def majority_at_k(questions: int, samples: int, k: int, mix: str, experiments: int = EXPERIMENTS) -> float:
    """Coverage of the interval of maj@k over questions of three types."""
    rng = rng_of("majority", questions, samples, k, mix)
    shares, chances = zip(*TYPES[mix], strict=True)
    kinds = rng.choice(len(shares), size=(experiments, questions), p=shares)
    counts = rng.multinomial(samples, np.array(chances)[kinds])
    code = counts @ np.array([(samples + 1) ** i for i in range(4)])
    codes, first, place = np.unique(code.ravel(), return_index=True, return_inverse=True)
    names = ["right", "wrong", "other", None]
    distinct = counts.reshape(-1, 4)[first].tolist()
    votes = [[name for name, n in zip(names, row, strict=True) for _ in range(n)] for row in distinct]
    right = np.array([[vote == "right" for vote in row] for row in votes], dtype=float)
    values = statistics.majority_values(votes, right, k)[place].reshape(code.shape)
    assert len(codes) == len(votes)
    _, low, high = means.mean_interval(values, samples / k, np.inf)
    return held(low, high, majority_truth(mix, k))


def twins(rng: np.random.Generator, questions: int, samples: int, kind: str, p: float, effect: str, gain: float,
          experiments: int) -> tuple[np.ndarray, float]:
    """(per-question differences: [experiments, questions], their true mean). same: both models find each question as hard;
    other: half of the questions are another time as hard, on average nothing changes; gain: the second is right in a share
    `gain` of the cases in which the first is wrong."""
    a = difficulty(rng, kind, p, (experiments, questions))
    b = a
    if effect == "other":
        b = np.where(rng.random(a.shape) < 0.5, a, difficulty(rng, kind, p, a.shape))
    if effect == "gain":
        b = a + gain * (1 - a)
    found = (rng.binomial(samples, b) - rng.binomial(samples, a)) / samples
    return found, gain * (1 - p) if effect == "gain" else 0.0


def p_values(differences: np.ndarray, samples: int) -> np.ndarray:
    """As `statistics.paired` finds them."""
    return pairs.mcnemar(differences) if samples == 1 else pairs.sign_flips(differences, 0)


def paired(questions: int, samples: int, kind: str, p: float, effect: str, experiments: int = EXPERIMENTS) -> float:
    """Coverage of the paired interval."""
    differences, truth = twins(rng_of("paired", questions, samples, kind, p, effect), questions, samples, kind, p, effect, 0.3,
                               experiments)
    _, low, high = pairs.difference_interval(differences)
    return held(low, high, truth)


def false_alarms(questions: int, samples: int, kind: str, p: float, effect: str, experiments: int = EXPERIMENTS) -> float:
    """Percentage of p-values below 0.05 where nothing changed on average."""
    differences, _ = twins(rng_of("alarms", questions, samples, kind, p, effect), questions, samples, kind, p, effect, 0.0,
                           experiments)
    return 100 * float(np.mean(p_values(differences, samples) < means.LEVEL))


def power(questions: int, samples: int, kind: str, p: float, experiments: int = EXPERIMENTS) -> tuple[float, float]:
    """(smallest detectable difference, percentage of experiments with that true difference and p < 0.05). The difference is the
    one that equals `smallest_detectable` at its own standard error; nan where there is no such."""
    low, high = 0.0, 1.0
    for _ in range(30):
        gain = (low + high) / 2
        differences, truth = twins(rng_of("size"), 20_000, samples, kind, p, "gain", gain, 1)
        half = float(stats.t.ppf(0.975, questions - 1)) * float(differences.std()) / math.sqrt(questions)
        low, high = (gain, high) if truth < statistics.smallest_detectable(half, questions) else (low, gain)
    if gain > 0.99:
        return math.nan, math.nan
    rng = rng_of("power", questions, samples, kind, p)
    differences, truth = twins(rng, questions, samples, kind, p, "gain", gain, experiments)
    return truth, 100 * float(np.mean(p_values(differences, samples) < means.LEVEL))


TASKS = {"four tasks": ((30, 1, 0.2), (198, 1, 0.3), (500, 1, 0.8), (1319, 1, 0.9)),
         "AIME x 32": ((30, 32, 0.2), (198, 4, 0.3), (500, 4, 0.8), (1319, 1, 0.9)),
         "small and large": ((30, 1, 0.1), (1319, 1, 0.9)), "two small": ((30, 4, 0.5), (30, 4, 0.1))}
"""Questions, samples and accuracy of each task."""


def macro(name: str, kind: str, effect: str | None, experiments: int = EXPERIMENTS) -> float:
    """Coverage of the interval of a mean over tasks, or with an effect of the difference of two."""
    rng = rng_of("macro", name, kind, effect)
    ends, truth = [], 0.0
    for questions, samples, p in TASKS[name]:
        if effect is None:
            values = rng.binomial(samples, difficulty(rng, kind, p, (experiments, questions))) / samples
            ends.append(means.mean_interval(values, samples, samples))
            truth += p / len(TASKS[name])
        else:
            differences, true = twins(rng, questions, samples, kind, p, effect, 0.3, experiments)
            ends.append(pairs.difference_interval(differences))
            truth += true / len(TASKS[name])
    _, low, high = several.macro_interval(*(np.array([end[i] for end in ends]) for i in range(3)))
    return held(low, high, truth)


def macro_alarms(name: str, kind: str, effect: str, experiments: int = EXPERIMENTS) -> float:
    """Percentage of p-values of a difference of means over tasks below 0.05 where nothing changed on average."""
    rng, parts = rng_of("macro alarms", name, kind, effect), []
    for questions, samples, p in TASKS[name]:
        parts.append(twins(rng, questions, samples, kind, p, effect, 0.0, experiments)[0] / questions)
    weighted = np.concatenate(parts, axis=1)
    return 100 * float(np.mean(pairs.sign_flips(weighted / np.abs(weighted).max(), 0) < means.LEVEL))


def seeds(questions: int, count: int, spread: float, p: float, effect: str, experiments: int = EXPERIMENTS,
          ) -> tuple[float, float, float]:
    """(coverage of the mean, coverage of the paired difference, false alarms in percent) with `count` training seeds, one
    sample; a seed moves each question by 4·difficulty·(1 - difficulty) of a normal deviation of that spread."""
    rng = rng_of("seeds", questions, count, spread, p, effect)
    base = difficulty(rng, "beta", p, (experiments, 1, questions))

    def run(gain: float) -> np.ndarray:
        moved = rng.normal(0, spread, (experiments, count, 1)) * 4 * base * (1 - base)
        chances = np.clip(base + gain * (1 - base) + (1 - gain) * moved, 0, 1)
        return (rng.random((experiments, count, questions)) < chances) * 1.0

    gain = 0.3 if effect == "gain" else 0.0
    a, b = run(0.0), run(gain)
    _, low, high = several.seeds_interval(a)
    _, below, above, p_value = several.seeds_difference(b - a)
    alarms = math.nan if gain else 100 * float(np.mean(p_value < means.LEVEL))
    return held(low, high, p), held(below, above, gain * (1 - p)), alarms


def needed(p: float, questions: int, samples: int) -> float:
    """smallest_detectable, in points, of two like models at accuracy p on beta questions."""
    differences, _ = twins(rng_of("needed"), 200_000, samples, "beta", p, "same", 0.0, 1)
    half = float(stats.t.ppf(0.975, questions - 1)) * float(differences.std()) / math.sqrt(questions)
    return 100 * statistics.smallest_detectable(half, questions)


def by_accuracy(cell: Callable[[float], float | None]) -> list[float | None]:
    return [cell(p) for p in ACCURACIES]


def accuracy_rows() -> Iterator[Row]:
    for questions, samples in itertools.product(QUESTIONS, (1, 4, 32)):
        for kind in (("any",) if samples == 1 else (*KINDS, "few")):
            yield f"{questions} x {samples}, {kind}", by_accuracy(
                lambda p, q=questions, s=samples, k=kind: accuracy(q, s, "alike" if k == "any" else k, p))


def pass_rows() -> Iterator[Row]:
    for questions, (samples, k), kind in itertools.product(QUESTIONS, ((4, 2), (4, 4), (32, 4), (32, 8), (32, 32)), KINDS):
        yield f"{questions} x {samples}, k = {k}, {kind}", by_accuracy(
            lambda p, q=questions, s=samples, k=k, d=kind:
            None if q * (1 - pass_truth(d, p, k)) < 2 else pass_at_k(q, s, k, d, p))


def majority_rows() -> Iterator[Row]:
    for questions, (samples, k) in itertools.product(QUESTIONS, ((4, 4), (8, 4), (8, 8), (32, 8))):
        yield f"{questions} x {samples}, k = {k}", [majority_at_k(questions, samples, k, mix) for mix in TYPES]


def paired_rows() -> Iterator[Row]:
    for questions, samples, kind, effect in itertools.product(QUESTIONS, (1, 4, 32), KINDS[:1] + KINDS[1:2] + KINDS[3:],
                                                              ("same", "other", "gain")):
        if (kind, effect) != ("alike", "other"):
            yield f"{questions} x {samples}, {kind}, {effect}", by_accuracy(
                lambda p, q=questions, s=samples, k=kind, e=effect: paired(q, s, k, p, e))


def alarm_rows() -> Iterator[Row]:
    for questions, samples, (kind, effect) in itertools.product(
            QUESTIONS, (1, 4, 32), (("alike", "same"), ("beta", "same"), ("beta", "other"))):
        yield f"{questions} x {samples}, {kind}, {effect}", by_accuracy(
            lambda p, q=questions, s=samples, k=kind, e=effect: false_alarms(q, s, k, p, e))


def power_rows() -> Iterator[Row]:
    for questions, samples, kind in itertools.product(QUESTIONS, (1, 4, 32), ("alike", "beta")):
        yield f"{questions} x {samples}, {kind}", by_accuracy(lambda p, q=questions, s=samples, k=kind: power(q, s, k, p)[1])


def macro_rows() -> Iterator[Row]:
    for name, kind in itertools.product(TASKS, ("beta", "two levels")):
        yield f"{name}, {kind}", [macro(name, kind, None), macro(name, kind, "same"), macro(name, kind, "gain"),
                                  macro_alarms(name, kind, "same"), macro_alarms(name, kind, "other")]


def seed_rows() -> Iterator[Row]:
    for questions, count, spread in itertools.product(QUESTIONS, (2, 3, 5), (0.0, 0.01, 0.03)):
        found: list[float | None] = []
        for p in (0.2, 0.5, 0.9):
            covered, difference, alarms = seeds(questions, count, spread, p, "same")
            found += [covered, difference, alarms]
        yield f"{questions} questions, {count} seeds, spread {spread}", found


def needed_rows() -> Iterator[Row]:
    for questions, samples in itertools.product(QUESTIONS, (1, 4, 16, 32)):
        yield f"{questions} x {samples}", by_accuracy(lambda p, q=questions, s=samples: needed(p, q, s))


SHARES = [f"{100 * p:g}%" for p in ACCURACIES]
TABLES: dict[str, tuple[list[str], tuple[float, float] | None, Callable[[], Iterator[Row]]]] = {
    "accuracy": (SHARES, OK, accuracy_rows), "pass": (SHARES, OK, pass_rows), "majority": (list(TYPES), OK, majority_rows),
    "paired": (SHARES, OK, paired_rows), "alarms": (SHARES, (3.0, 6.0), alarm_rows),
    "power": (SHARES, (76.0, 84.0), power_rows),
    "macro": (["mean", "difference, same", "difference, gain", "alarms, same", "alarms, other"], None, macro_rows),
    "seeds": ([f"{100 * p:g}%: {what}" for p in (0.2, 0.5, 0.9) for what in ("mean", "difference", "alarms")], None,
              seed_rows),
    "needed": (SHARES, None, needed_rows),
}
"""Name -> columns, range outside which a cell is marked, rows."""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=TABLES, action="append", help="this table; may be given several times")
    for name in parser.parse_args().only or TABLES:
        columns, good, rows = TABLES[name]
        print(f"\n### {name}\n\n| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
        outside = count = 0
        for label, cells in rows():
            shown = []
            for cell in cells:
                if cell is None or math.isnan(cell):
                    shown.append("")
                    continue
                bad = good is not None and not good[0] <= cell <= good[1]
                outside, count = outside + bad, count + 1
                shown.append(f"{cell:.1f}{'*' if bad else ''}")
            print(f"| {label} | {' | '.join(shown)} |", flush=True)
        if good is not None:
            print(f"\n{count - outside} of {count} cells lie in {good[0]:g} to {good[1]:g}.")


if __name__ == "__main__":
    main()
