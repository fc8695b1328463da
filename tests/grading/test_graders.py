"""The pool of graders: the same verdicts as `grade`, and no answer that hangs, kills or loses others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from upft.choices import AnswerKind
from upft.errors import GradeError
from upft.graders import Graders
from upft.grading import Verdict, grade

SLOW = r"\boxed{(x+y+z+1)^{60}}"
"""Small to write, minutes of algebra."""
ALGEBRA = [(rf"so \boxed{{(x+{n})^2}}", f"x^2+{2 * n}x+{n * n + n % 2}") for n in range(60)]
"""Every second one is right, and no reading tells."""


def wardens(of: int | None = None) -> list[psutil.Process]:
    return [p for p in psutil.Process(of).children() if "upft.graders.warden" in " ".join(p.cmdline())]


def wait_for(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_verdicts_are_those_of_grade_whatever_the_kind() -> None:
    asked = [*((text, key, AnswerKind.math) for text, key in ALGEBRA),
             ("nothing", "5", AnswerKind.math), (r"\boxed{5", "5", AnswerKind.math), ("it is 016", "16", AnswerKind.math),
             ("the answer is (B).", "B", AnswerKind.choice), ("A cat", "A", AnswerKind.choice),
             (r"\boxed{2.50\times 10^{3}\ \text{eV}}", "2.5 keV", AnswerKind.science),
             ("\x00 \\boxed{\ud800 + x}", "x+1", AnswerKind.math), (r"\boxed{" + "(" * 900 + "}", "x", AnswerKind.math)]
    with Graders(2) as graders:
        for number, (text, key, kind) in enumerate(asked):
            graders.put(number, text, key, kind)
        verdicts = dict(graders.rest())
    assert verdicts == {number: grade(*one) for number, one in enumerate(asked)}
    assert sum(v.right for v in verdicts.values()) == 30 + 3


def test_ready_gives_each_verdict_once_and_rest_the_others() -> None:
    with Graders(1) as graders:
        graders.put(0, "it is 5", "5", AnswerKind.math)
        assert list(graders.ready()) == [(0, Verdict(True, "5", "same text"))]
        assert list(graders.ready()) == []
        for number, (text, key) in enumerate(ALGEBRA):
            graders.put(number, text, key, AnswerKind.math)
        early: list[int] = []
        wait_for(lambda: early.extend(number for number, _ in graders.ready()) or early)
        late = [number for number, _ in graders.rest()]
        assert sorted(early + late) == list(range(60))
        assert list(graders.rest()) == []


def test_an_answer_over_its_time_is_wrong_and_the_others_are_not_lost() -> None:
    with Graders(2, limit_s=1.0) as graders:
        for number, (text, key) in enumerate(ALGEBRA):
            graders.put(number, text, key, AnswerKind.math)
            if number in (10, 30, 31):
                graders.put(1000 + number, SLOW, "x^2+1", AnswerKind.math)
        verdicts = dict(graders.rest())
    slow = {number: v for number, v in verdicts.items() if number >= 1000}
    assert {number: (v.right, v.reason) for number, v in slow.items()} == dict.fromkeys(
        (1010, 1030, 1031), (False, "time limit"))
    assert slow[1010].extracted == "(x+y+z+1)^{60}"
    assert [verdicts[n].right for n in range(60)] == [n % 2 == 0 for n in range(60)]


@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_worker_that_dies_costs_one_answer(with_signal: int) -> None:
    with Graders(1, limit_s=60.0) as graders:
        graders.put(-1, SLOW, "x^2+1", AnswerKind.math)
        for number, (text, key) in enumerate(ALGEBRA):
            graders.put(number, text, key, AnswerKind.math)
        wait_for(lambda: wardens() and wardens()[0].children())
        (worker,) = wardens()[0].children()
        wait_for(lambda: worker.cpu_times().user > 0.3)  # it is at work on the slow one
        os.kill(worker.pid, with_signal)
        verdicts = dict(graders.rest())
    assert verdicts[-1] == Verdict(False, "(x+y+z+1)^{60}", "grader died")
    assert [verdicts[n].right for n in range(60)] == [n % 2 == 0 for n in range(60)]


def test_a_warden_that_dies_is_replaced_and_nothing_is_lost() -> None:
    with Graders(2, limit_s=2.0) as graders:
        graders.put(-1, SLOW, "x^2+1", AnswerKind.math)
        for number, (text, key) in enumerate(ALGEBRA):
            graders.put(number, text, key, AnswerKind.math)
        wait_for(lambda: wardens() and wardens()[0].children())
        workers = wardens()[0].children()
        wardens()[0].kill()
        verdicts = dict(graders.rest())
        wait_for(lambda: all(gone(worker) for worker in workers))
    assert verdicts[-1].reason == "time limit"
    assert [verdicts[n].right for n in range(60)] == [n % 2 == 0 for n in range(60)]


def test_where_processes_cannot_live_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")

    def graded() -> None:
        with Graders(1) as graders:
            graders.put(0, r"\boxed{x+1}", "1+x+0", AnswerKind.math)  # may notice it already
            list(graders.rest())

    with pytest.raises(GradeError, match="died 4 times"):
        graded()


OWNER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs this in the background switches it off
from upft.choices import AnswerKind
from upft.graders import Graders
graders = Graders(2, limit_s=600.0)
for number in range(4):
    graders.put(number, sys.argv[1], "x^2+1", AnswerKind.math)
print("put", flush=True)
try:
    list(graders.rest())
except KeyboardInterrupt:
    graders.close()
    sys.exit(3)
"""


@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_the_processes_end_with_their_owner(with_signal: int) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, SLOW], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                             cwd=Path(__file__).parents[2])
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"put\n"
    wait_for(lambda: wardens(owner.pid) and len(wardens(owner.pid)[0].children()) == 2)
    family = [*wardens(owner.pid), *wardens(owner.pid)[0].children()]
    wait_for(lambda: all(p.cpu_times().user > 0.1 for p in family[1:]))  # in the middle of their work
    owner.send_signal(with_signal)
    assert owner.wait(60) == (3 if with_signal is signal.SIGINT else -with_signal)
    wait_for(lambda: all(gone(process) for process in family))


def test_memory_is_limited() -> None:
    """A worker may not take the machine's memory: what it cannot have is an error of that answer alone."""
    from upft.graders import warden

    script = ("import socket; from upft.graders import warden as w\n"
              "def hog(*a, **k):\n    bytearray(w.MEMORY_BYTES + (1 << 28))\n    return True, 'had it'\n"
              "def safe(*a, **k):\n    try:\n        return hog()\n    except MemoryError:\n        return False, 'refused'\n"
              "w.compare = safe\na, b = socket.socketpair()\na.sendall(b'[1, \"x\", \"y\", \"math\"]\\n')\n"
              "a.shutdown(socket.SHUT_WR)\nw._work(b, 5.0)\nprint(a.recv(100).decode())")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == '[1, false, "refused"]'
    assert warden.MEMORY_BYTES == 2 << 30


def test_starting_imports_no_torch() -> None:
    script = ("import sys; from upft.graders import Graders; import upft.graders.warden\n"
              "print([m for m in ('torch', 'transformers', 'numpy', 'hydra') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]"
