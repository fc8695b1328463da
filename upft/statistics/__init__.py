"""How sure a measured accuracy, and a difference of two, may be.

Floor 3: arrays of 0 and 1 in, intervals and p-values out. A question is the unit: the answers to one question
resemble each other, so questions are counted and the samples of a question only sharpen its value. What an interval
covers is the mean over the population that the questions were drawn from. Refuses to know models, how an answer was
graded, and where it lies.

`correct: [questions, samples]` is a matrix of 0 and 1, `values: [questions]` one number from 0 to 1 a question. Intervals
are at 95%. How often they cover is measured in docs/statistics.md.
"""

from upft.statistics.means import LEVEL, Estimate, accuracy, question_means
from upft.statistics.pairs import GAIN, LOSS, NOISE, Paired, holm, paired, paired_values, smallest_detectable
from upft.statistics.repeated import majority_at_k, majority_values, pass_at_k, pass_values
from upft.statistics.several import (
    detectable_over_seeds,
    macro,
    macro_over_seeds,
    over_seeds,
    paired_macro,
    paired_macro_over_seeds,
    paired_over_seeds,
)

__all__ = [
    "GAIN", "LEVEL", "LOSS", "NOISE", "Estimate", "Paired", "accuracy", "detectable_over_seeds", "holm", "macro",
    "macro_over_seeds", "majority_at_k", "majority_values", "over_seeds", "paired", "paired_macro", "paired_macro_over_seeds",
    "paired_over_seeds", "paired_values", "pass_at_k", "pass_values", "question_means", "smallest_detectable",
]
