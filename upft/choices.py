"""The words a configuration may choose from. Floor 0."""

from __future__ import annotations

from enum import Enum


class Engine(Enum):
    """Which program samples tokens."""

    auto = "auto"
    vllm = "vllm"
    transformers = "transformers"


class Dtype(Enum):
    """Number format of the weights an engine samples with."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Precision(Enum):
    """Arithmetic of training, and the format of the weights that the optimiser changes."""

    fp32 = "fp32"  # everything in fp32
    bf16_mixed = "bf16_mixed"  # bf16 arithmetic; weights, gradients and optimiser state in fp32
    bf16_stochastic = "bf16_stochastic"  # all in bf16, the new weights and moments rounded up or down by chance
    bf16 = "bf16"  # all in bf16, rounded to the nearest: loses updates at low rates


class CutUnit(Enum):
    """What the prefix length counts."""

    token = "token"  # sampled ids (the paper's text)
    word = "word"  # words first, joined by spaces and tokenised again, then tokens (the paper's code)


class Strategy(Enum):
    """How several devices share a training."""

    auto = "auto"  # single on one device, else ddp
    single = "single"
    ddp = "ddp"  # every device holds the whole model
    fsdp = "fsdp"  # weights, gradients and optimiser state in shards


class Layout(Enum):
    """How the rows of a micro-batch lie."""

    auto = "auto"  # packed where the model's attention allows it, else padded
    packed = "packed"  # end to end, no padding; attention by row
    padded = "padded"  # side by side, padded to the longest


class AnswerFormat(Enum):
    """Where a data set's gold answer stands in its answer field."""

    plain = "plain"  # the field is the answer
    gsm8k = "gsm8k"  # worked solution, then `#### answer`
    boxed = "boxed"  # worked solution with the answer in its last \boxed{}


class AnswerKind(Enum):
    """What the answers of a task are: decides how one is found in a completion and when two are the same."""

    math = "math"
    """A number or a closed form, in plain text or LaTeX: GSM8K, MATH500, AIME, AMC."""
    choice = "choice"
    """The letter of an option, A to J: GPQA with its four options."""
    science = "science"
    """A free answer of a science question: a quantity with unit and power of ten, right where it rounds to the gold
    answer's digits; a formula; a name or a short text. GPQA without options."""


class Protocol(Enum):
    """How a task is put to a model."""

    paper = "paper"  # greedy, one answer, the paper's context limits, no options
    standard = "standard"  # the model's own recommended sampling, as many answers as the task needs, options shown


class Reduction(Enum):
    """How token losses become the loss of a step."""

    sequence = "sequence"  # mean over each row's supervised tokens, then over rows (the paper's code)
    token = "token"  # mean over all supervised tokens of the step


class MethodName(Enum):
    """Training methods."""

    upft = "upft"  # one prefix a question, a nested share of whole traces
    sft = "sft"  # one whole trace a question, whatever it comes to
    rft = "rft"  # whole traces that end right
    vstar = "vstar"  # RFT, and a verifier that chooses among the answers


class Score(Enum):
    """What a verifier ranks the answers to a question by."""

    likelihood = "likelihood"  # log-probability of the answer under the verifier (V-STaR)
    mean = "mean"  # that, divided by the answer's tokens
    reward = "reward"  # how much more likely the verifier finds it than the base model does (DPO's implicit reward)


class TrackerKind(Enum):
    """Where metrics go beside metrics.jsonl."""

    none = "none"
    wandb = "wandb"
    tensorboard = "tensorboard"


class Style(Enum):
    """How a run speaks."""

    auto = "auto"  # live bars and colours on a terminal, plain lines elsewhere
    plain = "plain"  # lines, no colours
    quiet = "quiet"  # warnings only
    json = "json"  # one JSON object a line


class Accelerator(Enum):
    """Device family."""

    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"
