r"""Grading: what is found, what counts as the same answer, and what must never count."""

from __future__ import annotations

import threading
import time

import pytest

from upft.choices import AnswerFormat
from upft.errors import DataError
from upft.grading import NO_ANSWER, GoldError, Verdict, extract, gold, grade


@pytest.mark.parametrize(("text", "answer"), [
    (r"so \boxed{18}.", "18"),
    (r"\boxed{1} and then \boxed{2}", "2"),  # never 12
    (r"\boxed{\frac{1}{2}} but cut off at \boxed{\frac{3", r"\frac{1}{2}"),  # the last complete one
    (r"\boxed{\boxed{7}}", "7"),
    (r"put it in \boxed{}: 4", "4"),
    (r"\boxed{\left\{1, 2\right.}", r"\left\{1, 2\right."),  # escaped braces are not the box's
    (r"\framebox{204} minutes", "204"),
    (r"<think>maybe \boxed{3}</think> It is \boxed{4}", "4"),
    (r"<think>maybe \boxed{3}</think> It is 5 apples.", "5"),
    ("work\n#### 1,234", "1,234"),
    ("#### 5\nno, wait\n#### 6\n", "6"),
    (r"#### 5 and \boxed{6}", "6"),
    ("The answer is 18.", "18"),
    ("The answer is 3.5. That was 2 steps.", "3.5"),
    ("**Answer:** 18 dollars", "18 dollars"),
    (r"The final answer is $\frac{3}{4}$ of the 8 pies.", r"\frac{3}{4}"),
    ("The answer is 18, because 3+15=18 and 2 are left", "18"),
    ("Her answer is wrong. She has 12 left", "wrong"),
    ("The answer is 4? Then she checks.\nThe answer is 5", "5"),
    ("She sells 9 eggs and makes 9*2=18", "18"),
    ("it costs $1,234.50 in all.", "$1,234.50"),
    ("from 5-3", "3"),  # a minus sign between numbers is no sign
    ("it falls to -3", "-3"),
    ("about 3/4 of it", "3/4"),
    ("no number here", None),
    ("", None),
    (r"\boxed{unfinished", None),
])
def test_extract(text: str, answer: str | None) -> None:
    assert extract(text) == answer


@pytest.mark.parametrize(("field", "fmt", "answer"), [
    ("  42 ", AnswerFormat.plain, "42"),
    ("She has 9 * 2 = 18.\n#### 1,234", AnswerFormat.gsm8k, "1234"),
    ("#### 1\n#### -2", AnswerFormat.gsm8k, "-2"),
    (r"Thus $\boxed{\frac{1}{2}}.$", AnswerFormat.boxed, r"\frac{1}{2}"),
])
def test_gold(field: str, fmt: AnswerFormat, answer: str) -> None:
    assert gold(field, fmt) == answer


@pytest.mark.parametrize(("field", "fmt", "named"), [
    ("the answer is 5", AnswerFormat.gsm8k, "####"),
    ("the answer is 5", AnswerFormat.boxed, r"\boxed{}"),
    (r"\boxed{5", AnswerFormat.boxed, r"\boxed{}"),
    ("   ", AnswerFormat.plain, "answer_format=plain"),
])
def test_gold_without_its_marker_names_key_and_remedy(field: str, fmt: AnswerFormat, named: str) -> None:
    with pytest.raises(GoldError) as caught:
        gold(field, fmt)
    assert isinstance(caught.value, DataError)
    assert isinstance(caught.value, ValueError)
    assert named in caught.value.what
    assert f"answer_format={fmt.name}" in caught.value.what
    assert "answer_field" in caught.value.remedy


RIGHT = [
    ("16", "016"), ("1234", "1,234"), ("1,234", "1234"), ("18", "$18"), ("18", r"\$18"), ("18", "18 dollars"),
    ("18", r"18\text{ dollars}"), ("18", "18.00"), ("18", "18."), ("18", "+18"), ("18", "18 apples per day"),
    ("18", "$18$"), ("18", "x = 18"), ("18", r"\$ 18.00"), ("18", r"18\,\text{cm}^2"), ("18", "18 cm^2"),
    ("18", "18 m"), ("18", "18 km/h"), ("18", "**18**"), ("18", r"\textbf{(18)}"), ("3.5", "$3.50"), (r"\$18", "18"),
    ("1234567", "1 234 567"), ("1234567", r"1\,234\,567"), ("1234", r"1{,}234"),
    ("11,111,111,100", r"11,\! 111,\! 111,\! 100"), ("-5", "−5"), ("-5", "- 5"), ("-5", r"-\$5"),
    ("50", "50%"), ("50", r"50\%"), ("0.5", r"50\%"), ("50", "50 percent"), ("50%", "0.5"), ("0.5", ".5"),
    ("0.5", "1/2"), ("1/2", "0.5"), ("1/3", "0.333333"), ("2000000", "2 million"), ("216", "18 dozen"),
    (r"\frac{1}{2}", r"\dfrac12"), (r"\frac{1}{2}", "1/2"), (r"\frac{270}7", r"\frac{270}{7}"),
    (r"\frac{14}{3}", "28/6"), (r"\frac{14}{3}", r"4\frac{2}{3}"), ("137+1/2", r"137\frac{1}{2}"),
    ("137+1/2", "137.5"), ("1+4/5", r"\frac{9}{5}"), (r"\sqrt{51}", "sqrt(51)"), (r"3\sqrt{13}", "3*sqrt(13)"),
    (r"3\sqrt{13}", "3√13"), (r"2\pi", "2π"), (r"2\pi", "2pi"), (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
    (r"1\pm\sqrt{19}", r"1+\sqrt{19},1-\sqrt{19}"), ("1,-2", "-2, 1"), ("3,5,7", r"\{7,5,3\}"),
    ("3,5,7", "3, 5, and 7"), ("(3,4]", r"\left(3,4\right]"), (r"(3,\frac{\pi}{2})", r"\left( 3, \frac{\pi}{2} \right)"),
    (r"(-\infty,2)\cup(3,\infty)", "(-∞, 2) ∪ (3, ∞)"), ("(C)", "C"), ("(C)", r"\text{C}"), ("(C)", "C) ellipse"),
    ("(C)", "c"), ("Evelyn", r"\text{Evelyn}"), (r"\text{Evelyn}", "evelyn"), ("ellipse", "an ellipse"),
    ("4210_{5}", "4210_5"), ("4210_{5}", "4210"), ("30", r"30^{\circ}"), ("30", "30 degrees"), ("30", r"\boxed{30}"),
    ("y=-2x", "-2x"), ("x^2+2x+1", "(x+1)^2"), ("2k+2", "2(k+1)"), ("6-5i", "-5i+6"), ("5r^5", "5 r^{5}"),
    ("8n^2+4n+1", "4n(2n+1)+1"), ("10", "2+8"),
    (r"\begin{pmatrix}1/5\\-18/5\end{pmatrix}", r"\begin{bmatrix} \frac15 \\ -\frac{18}5 \end{bmatrix}"),
    (r"\begin{pmatrix}-2\\7\end{pmatrix}", r"\begin{pmatrix} -2 \\ 7 \end{pmatrix}"),
]


@pytest.mark.parametrize(("key", "answer"), RIGHT)
def test_right_but_odd_forms_are_accepted(key: str, answer: str) -> None:
    verdict = grade(rf"so \boxed{{{answer}}}", key)
    assert verdict.right, verdict.reason


WRONG = [
    ("16", "-16"), ("16", "-016"), ("18", "17"), ("18", "118"), ("18", "18 and 20"), ("18", "1.8"), ("18", "18/2"),
    ("18", "1 8"), ("18", "18x"), ("18", "18 hundredths"), ("18", "18 dollars and 50 cents"), ("2", "2 million"),
    ("2", "2 dozen"), ("2", "20"), ("3", "3 halves"), ("3", "3 times 4"), ("3", "3 less than x"), ("5", "5x"),
    ("5", "x"), ("5", "five"), ("5", "5!"), ("0", ""), ("0", "O"), ("0.5", "50"), ("50", "0.5"), ("50", "0.5%"),
    ("1/3", "0.333"), ("1/3", "3"), ("1", "0.9999"), ("12", "1,2"), ("1,2", "12"), ("1234", "12,34"),
    ("10080", "10,08"), ("11,111,111,100", "11,111,111,1000"), ("2000", "2 thousand 1"), ("7", "7 = 8"),
    ("42", "42 or 43"), ("42", "not 42"), ("42", "between 41 and 43"), ("137+1/2", "137/2"),
    ("(1,2)", "(2,1)"), ("(3,4]", "[3,4)"), ("[3,4]", "(3,4)"), ("1,-2", "1"), ("1,-2", "1,2"),
    (r"\{1,2,3\}", r"\{1,2\}"), (r"1\pm\sqrt{19}", r"1+\sqrt{19}"), ("4210_{5}", "4210_{7}"),
    ("east", "west"), ("east", "seat"), ("even", "odd"), ("even", "neve"), ("Evelyn", "Navin"),
    ("(C)", "(B)"), ("(C)", "B) ellipse"), ("x+1", "x-1"), ("2k+2", "2k"), ("y=-2x", "y=2x"), ("y=-2x", "x=-2y"),
    (r"\sqrt{51}", "51"), (r"\sqrt{51}", "7.14"), (r"\pi", "3.14"), (r"\pi", "22/7"), ("90", r"90\pi"),
    (r"288\pi", "288"), ("5r^5", "5r^4"), ("6-5i", "6+5i"), ("1+274i", "274+i"), ("x^3+3x-6", "x^3+3x+6"),
    (r"\frac{3}{4}", r"\frac{4}{3}"), (r"\frac{3}{4}", "3"), (r"-\frac{3}{4}", r"\frac{3}{4}"),
    (r"11\sqrt2", r"\sqrt{11}"), (r"(-\infty,2)\cup(3,\infty)", r"(-\infty,3)\cup(2,\infty)"),
    (r"(-\infty,0]", r"(-\infty,0)"), ("(a+5)(b+2)", "(a+2)(b+5)"), ("R-r", "r-R"),
    (r"\begin{pmatrix}-2\\-14\end{pmatrix}", r"\begin{pmatrix}-2\\14\end{pmatrix}"),
]


@pytest.mark.parametrize(("key", "answer"), WRONG)
def test_wrong_answers_are_refused(key: str, answer: str) -> None:
    verdict = grade(rf"so \boxed{{{answer}}}", key)
    assert not verdict.right, verdict.reason


def test_verdict_says_what_was_read_and_what_decided() -> None:
    assert grade(r"\boxed{018} or rather \boxed{18 dollars}", "18") == Verdict(True, "18 dollars", "same number")
    assert grade(r"\boxed{19}", "18") == Verdict(False, "19", "another number")
    assert grade("I cannot say", "18") == Verdict(False, None, NO_ANSWER)
    assert grade(r"\boxed{x+2}", "2+x") == Verdict(True, "x+2", "math-verify")


HEAVY = [
    "10^{10^{10}}", "9^{9^{9^{9}}}", "10000000!", "((((3!)!)!)!)!", r"\binom{1000000000}{500000000}", "9999^{9999}",
    "((((2^{99})^{99})^{99})^{99})^{99}", r"\sum_{k=1}^{10^9} \frac{1}{k^2}", "(" * 300 + "2" + ")" * 300,
    r"\sqrt{" * 40 + "2" + "}" * 40, "9" * 5000, "((x+2)^{9})^{9999}",
]
STRANGE = ["\x00", "\\", "}{", "{" * 50, "$", "^", "_", "=", "1/0", "𝟙𝟠", "(" * 5000, "\\frac", "|" * 20, "%", "-", "é" * 400]


@pytest.mark.parametrize("where", ["main thread", "another thread"])
def test_heavy_and_strange_answers_are_wrong_and_soon_done(where: str) -> None:
    verdicts: list[tuple[str, str, Verdict]] = []

    def work() -> None:
        verdicts.extend((answer, key, grade(f"\\boxed{{{answer}}}", key))
                        for answer in HEAVY + STRANGE for key in ("2", "x^2+1", r"(2,\infty)"))

    if where == "main thread":
        work()
    else:
        thread = threading.Thread(target=work, daemon=True)  # must end, and must not need signals
        thread.start()
        thread.join(120)
        assert not thread.is_alive()
    assert len(verdicts) == 3 * len(HEAVY + STRANGE)
    assert [v for v in verdicts if v[2].right] == []


@pytest.mark.parametrize("where", ["main thread", "another thread"])
def test_time_limit_breaks_off_what_is_slow(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from upft.grading import symbolic

    monkeypatch.setattr(symbolic, "TIME_LIMIT_S", 1)
    slow = r"\boxed{(x+y+z+1)^{60}}"  # harmless in size, minutes to compare
    verdicts: list[Verdict] = []
    thread = threading.Thread(target=lambda: verdicts.append(grade(slow, "x^2+1")), daemon=True)
    if where == "main thread":
        verdicts.append(grade(slow, "x^2+1"))
    else:
        thread.start()
        thread.join(120)
    assert [v.reason for v in verdicts] == ["time limit"]
    assert grade(r"\boxed{1+x}", "x+1").right  # and the next answer is graded as if nothing had happened


def test_a_time_limit_strikes_the_work_and_never_the_caller() -> None:
    from upft.grading.symbolic import _in_time

    outcomes: list[str] = []

    def busy() -> str:
        end = time.monotonic() + 0.002
        while time.monotonic() < end:
            pass
        return "done"

    def caller() -> None:
        for _ in range(200):  # works that end about when their time does
            try:
                outcomes.append(_in_time(busy, 0.002))
            except BaseException as error:
                outcomes.append(type(error).__name__)
            for _ in range(1000):
                pass
        outcomes.append("lived")

    thread = threading.Thread(target=caller, daemon=True)
    thread.start()
    thread.join(60)
    assert outcomes[-1] == "lived"
    assert len(outcomes) == 201
    assert set(outcomes) <= {"done", "TimeoutException", "lived"}


def test_a_time_limit_passes_results_and_errors_through() -> None:
    from upft.grading.symbolic import _in_time

    assert _in_time(lambda: 7, 5) == 7
    with pytest.raises(ZeroDivisionError):
        _in_time(lambda: 1 // 0, 5)
