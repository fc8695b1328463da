"""Grading one answer: find it in a completion, compare it with the gold answer.

Floor 3: text in, a verdict out; no model, no file. docs/grading.md says how answers are found and compared.
`upft.graders` does the same in processes with a time limit that nothing outlives.
"""

from upft.grading.compare import Verdict, compare, grade, settle
from upft.grading.extraction import NO_ANSWER, extract, reopened
from upft.grading.key import GoldError, check, gold
from upft.grading.voting import vote

__all__ = ["NO_ANSWER", "GoldError", "Verdict", "check", "compare", "extract", "gold", "grade", "reopened", "settle", "vote"]
