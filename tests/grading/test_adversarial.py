"""No wrong answer of the hand-made list is accepted, no right one refused; hostile text costs nothing."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from adversarial import RIGHT, WRONG

from upft.choices import AnswerKind
from upft.graders import Graders
from upft.grading import NO_ANSWER, extract, grade, reopened, settle, vote

TWINS = [("1/2", r"\frac12", "0.5", r"$\dfrac{1}{2}$", "x = 0.5", ".50", "½"), ("1234", "1,234", "$1{,}234", "1234.00",
    "1 234"),
         ("{1,2}", r"\{2, 1\}", "1, 2", "2 and 1"), ("(1, 2)", "(1.0,2)"), (r"\text{Tuesday}", "tuesday", "Tuesday."),
         ("-2.5", r"-2\frac12", "-5/2"), (r"2\sqrt{3}", r"2 \sqrt3", "2√3"), ("2500", r"2.5\times10^3", "2.5e3")]


@pytest.mark.parametrize(("kind", "key", "text"), WRONG)
def test_no_wrong_answer_is_accepted(kind: AnswerKind, key: str, text: str) -> None:
    verdict = grade(text, key, kind)
    assert not verdict.right, verdict


@pytest.mark.parametrize(("kind", "key", "text"), RIGHT)
def test_every_right_answer_is_accepted(kind: AnswerKind, key: str, text: str) -> None:
    verdict = grade(text, key, kind)
    assert verdict.right, verdict


def test_the_list_is_long_enough_and_each_entry_stands_once() -> None:
    assert min(len(set(WRONG)), len(set(RIGHT))) >= 150
    assert len(set(WRONG)) == len(WRONG)
    assert len(set(RIGHT)) == len(RIGHT)
    assert not set(WRONG) & set(RIGHT)


@pytest.mark.parametrize("twins", TWINS)
def test_ballots_of_equal_answers_are_equal(twins: tuple[str, ...]) -> None:
    assert len({vote(answer) for answer in twins}) == 1


def test_ballots_of_different_answers_differ() -> None:
    ballots = [vote(twins[0]) for twins in TWINS]
    others = ["1/3", "(2,1)", "[1,2]", "{1,3}", "2.5", "-2", r"3\sqrt{2}", "x", "y", "Thursday", "1 2", "12"]
    assert len({*ballots, *map(vote, others)}) == len(ballots) + len(others)
    assert vote("(b)", AnswerKind.choice) == vote(r"\text{B}", AnswerKind.choice) == "B"
    assert vote("0.1 meV", AnswerKind.science) == vote(r"10^{-4}\ \text{eV}", AnswerKind.science)
    assert vote("0.1 meV", AnswerKind.science) != vote("0.1 MeV", AnswerKind.science)


def test_answers_that_vote_alike_are_the_same_answer() -> None:
    """Over the list: where a completion's ballot is the gold answer's, the grader accepts it."""
    alike = 0
    for kind, key, text in [*WRONG, *RIGHT]:
        answer = extract(text, kind)
        if answer is not None and vote(answer, kind) == vote(key, kind):
            alike += 1
            verdict = grade(text, key, kind)
            if verdict.reason != "another unit" and key != "x=5":  # ballots have no unit, and a lone number no name
                assert verdict.right, (kind, key, text)
    assert alike > 100


def test_thoughts_that_a_template_opened_are_no_answer() -> None:
    prompt = "<|User|>What is 2+3?<|Assistant|><think>\n"
    assert extract(reopened(prompt, "2+3 is 5, so [cut]")) is None
    assert extract(reopened(prompt, r"2+3 is 5.</think> \boxed{5}")) == "5"
    assert extract(reopened("What is 2+3?", "It is 5")) == "5"
    assert extract(reopened("<think></think>", "It is 5")) == "5"
    assert grade(r"<think>\boxed{5}", "5").reason == NO_ANSWER


PIECES = ["\\boxed{", "}", "{", "(", ")", "[", "]", "$", "$$", "\\(", "\\[", "\\]", "\\frac", "\\sqrt", "^", "_", "!", "10^",
    "9" * 30, "answer is ",
          "Answer: ", "#### ", "A", "(B)", "**", "option C", "<think>", "</think>", "\x00", "\ud800", "é", "𝟙", "\n", " ",
          ",", ".", "-", "/", "%",
          "\\text{", "\\begin{pmatrix}", "\\\\", "&", "x", "=", "1", "2.5", "\\times", "eV", "~", "and ", "\\cdot", "∞", "|",
          "<", "\\le", "10⁻⁴",
          "\\binom", "\\sum", "\\left", "\\right", "'", '"', "`", "is ", "not ", "\t", "\u202e", "½", "°", "\\"]


def hostile(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(PIECES, k=rng.randint(1, 40))) for _ in range(count)]


def test_no_text_makes_reading_raise() -> None:
    for number, text in enumerate(hostile(6000, seed=1)):
        for kind in AnswerKind:
            answer = extract(text, kind)
            if answer is not None:
                vote(answer, kind)
                settle(answer, ("5", "x+1", "B", "10^-4 eV")[number % 4], kind)


@pytest.mark.slow
def test_no_text_breaks_the_graders() -> None:
    texts = hostile(3000, seed=2)
    kinds = list(AnswerKind)
    with Graders(2, limit_s=2.0) as graders:
        for number, text in enumerate(texts):
            graders.put(number, "\\boxed{" + text + "}" if number % 2 else text, ("5", "x+1", r"(2,\infty)")[number % 3],
                        kinds[number % 3])
        verdicts = dict(graders.rest())
    assert sorted(verdicts) == list(range(3000))
    assert {v.reason for v in verdicts.values()}.isdisjoint({"grader died"})


HUGE = ["\\boxed{", "}", "{", "$", "\\(", "\\[", "(", "9", "9,", "1 ", "a", " ", "\n", "answer is ", "answer", "answer:",
    "#### ", "A", "**", "(B)",
        "\\", "\\\\", "<think>", "</think>", "\\text{", "\\frac", "^", "-", ".", "option A is ", "the correct choice is ",
        "not the answer is ",
        "Answer\n", "**Answer**\n\n", "\\boxed{\\text{", "x=", "*", "is ", "1/", "%", ":", "I choose ", "10^{"]


@pytest.mark.slow
def test_a_megabyte_is_read_in_passing() -> None:
    """In a process of its own with a few seconds of processor time: a search that runs away ends it."""
    script = """
import signal, sys
from upft.choices import AnswerKind
from upft.grading import extract, grade, vote
signal.setitimer(signal.ITIMER_PROF, 60)
for piece in PIECES:
    text = (piece * (1_000_000 // len(piece) + 1))[:1_000_000]
    for kind in AnswerKind:
        for whole in (text, "<think>" + text + "</think>" + text, "the answer is " + text,
        "\\\\boxed{" + text + "}", text + "5"):
            answer = extract(whole, kind)
            if answer is not None:
                vote(answer, kind)
        grade("\\\\boxed{" + text + "}", "5", kind)
""".replace("PIECES", repr(HUGE))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode != -signal.SIGPROF, "too slow"
    assert done.returncode == 0, done.stderr


TOWERS = [f"{a}^{{{b}^{{{c}}}}}" for a in (2, 9, 99) for b in (9, 99) for c in (9, 999)] + [
    "9" * 299, "(" * 150 + "x" + ")" * 149, r"\sqrt{" * 60 + "2" + "}" * 60, "((x+1)^{99})^{99}", "(x+y+z+w)^{99}", "99999!",
    "(9!)!", "9!!!",
    r"\binom{99999}{50000}", "1/" * 100 + "1", "x^" * 100 + "x", r"\frac{" * 100, "|" * 200, r"\int_0^1 x dx",
    r"\sin(" * 12 + "x" + ")" * 12,
    "10^{-999999999}", "1e999", "1e-999", "0.1^{9999}", r"\log_{10}(10^{10^{10}})", "+".join(f"x_{{{n}}}" for n in range(40)),
    "2^" * 50 + "2"]


@pytest.mark.slow
def test_towers_are_refused_or_cut_off_in_time() -> None:
    keys = ["5", "x^2+1", r"(2,\infty)", r"\{1,2\}"]
    with Graders(2, limit_s=2.0) as graders:
        asked = [(tower, key) for tower in TOWERS for key in keys]
        for number, (tower, key) in enumerate(asked):
            graders.put(number, f"\\boxed{{{tower}}}", key, AnswerKind.math)
        verdicts = dict(graders.rest())
    assert [(asked[n], v) for n, v in verdicts.items() if v.right] == []
    assert len(verdicts) == len(asked)
    assert all(v.reason and not re.search("died", v.reason) for v in verdicts.values())
