"""The door's manners: an error that a person can mend becomes one message and an exit status.

Top floor; used by run.py and by every `python -m upft.X`. Exit statuses of all of them: 0 done; 2 what was asked for cannot be
done (an option, a key, a value, a file that cannot be used: the same command ends the same way); 1 it was begun and something
broke down, or a defect, with its traceback; 130 stopped by Ctrl+C, 143 by
SIGTERM.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from upft.choices import Style
from upft.errors import Terminated, UpftError

WANTS_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR", "") not in ("", "0")
"""What the user set, read before `one_message` sets it for its own purpose."""


_json = False


def speak(style: Style) -> None:
    """How the error that ends the run is told from now on; before, the command line says whether as JSON."""
    global _json
    _json = style is Style.json


def tell(message: str, plain: str = "error: {}") -> None:
    """The last word, on standard error: one JSON object where the run speaks so, else as `plain` has it."""
    if _json or "run.console=json" in sys.argv:
        from upft.console import line

        what, _, remedy = message.partition("\n  remedy: ")
        sys.stderr.write(line("error", what, {"remedy": remedy or None}))
    else:
        print(plain.format(message), file=sys.stderr)


def flag_first(*names: str) -> None:
    """A flag of the command line wherever it stands: argparse takes no words on both sides of one."""
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in names)


@contextmanager
def one_message(status: int | None = None) -> Iterator[None]:
    """At the door: print one clear message for an error a person can mend and exit with the error's status.

    status: instead of the error's, for commands that only look at what is there: nothing in them can break down.

    Hydra prints its own text and exits unless HYDRA_FULL_ERROR is set, so it is set here while our own
    reading of the exception takes over; a user who sets it gets the traceback.
    """
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    except KeyboardInterrupt as error:
        tell("stopped; finished stages stay in the store, run the same command to go on", "\n{}")
        sys.exit(143 if isinstance(error, Terminated) else 130)
    except Exception as error:
        if WANTS_TRACEBACK:
            raise
        message = explain(error)
        if message is None:
            raise
        tell(message)
        sys.exit(status or (error.status if isinstance(error, UpftError) else 2))
    finally:  # not for the processes that the caller starts later
        if before is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def explain(error: BaseException) -> str | None:
    """The message for an error a person can mend; None for a defect of ours."""
    if isinstance(error, UpftError):
        return str(error)
    if "hydra" not in sys.modules:
        return None
    from upft import refusals

    return refusals.explain(error)
