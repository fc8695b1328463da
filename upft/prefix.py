"""Training rows: which tokens a question carries, and which of them are supervised.

Floor 3: ids in, ids out; knows no tokenizer and no model. A *prefix row* is the prompt (with the task
suffix) and the first t sampled ids, closed by a supervised EOS. A *trace row* is the prompt that was sampled
from and the whole sampled trace. The prompt is never supervised. (arXiv:2503.02875, section 3.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from upft.errors import DataError, StoreError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

UNSUPERVISED = -100
"""Label of a position that carries no loss (the convention of `F.cross_entropy`)."""
FILE = "rows.arrow"


@dataclass(frozen=True)
class Row:
    """One training sequence. labels[i] is input_ids[i] where supervised, else -100 (not shifted)."""

    question_id: str
    kind: str
    input_ids: list[int]
    labels: list[int]

    def __post_init__(self) -> None:
        if all(label == UNSUPERVISED for label in self.labels):
            raise DataError(f"row of question {self.question_id} has nothing supervised",
                            "leave the question out: a row without supervised tokens has no loss")

    @property
    def supervised(self) -> int:
        """Number of supervised tokens."""
        return sum(label != UNSUPERVISED for label in self.labels)


def question_id(text: str) -> str:
    """16 hex digits that name a question by its text."""
    return hashlib.blake2b(text.strip().encode(), digest_size=8).hexdigest()


def carries_trace(question: str, ratio: float) -> bool:
    """Whether a question carries a whole trace at structure-tuning ratio p.

    A hash of its id falls below the ratio: independent of file order, and nested (the 5% are among the 10%).
    """
    drawn = hashlib.blake2b(f"structure-tuning:{question}".encode(), digest_size=8).digest()
    return int.from_bytes(drawn) / 2**64 < ratio


def first_words(text: str, count: int) -> str:
    """The first `count` whitespace-separated words of a text, joined by single spaces: newlines are lost.

    What the paper's public code trains on. (Before EOS it has one more space, which is left out here.)
    """
    return " ".join(text.split()[:count])


def prefix_row(question_id: str, prompt_ids: Sequence[int], completion_ids: Sequence[int], prefix_len: int,
               eos_id: int, stop_ids: Iterable[int], eos: bool = True) -> Row:
    """Prompt, then the first `prefix_len` sampled ids, then EOS.

    A completion that ended by itself within the prefix keeps the stop token it sampled and gets no second one.
    """
    cut = list(completion_ids[:prefix_len])
    ended = bool(cut) and cut[-1] in set(stop_ids)
    if eos and not ended:
        cut.append(eos_id)
    return _row(question_id, "prefix", prompt_ids, cut)


def trace_row(question_id: str, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> Row:
    """Prompt, then the whole sampled trace with the stop token it sampled (none is forced on a cut trace)."""
    return _row(question_id, "trace", prompt_ids, list(completion_ids))


def _row(question_id: str, kind: str, prompt_ids: Sequence[int], completion: list[int]) -> Row:
    return Row(question_id, kind, [*prompt_ids, *completion], [UNSUPERVISED] * len(prompt_ids) + completion)


def write_rows(path: Path, rows: Iterable[Row], batch: int = 4096) -> None:
    """Write rows as an Arrow IPC file."""
    import pyarrow as pa

    schema = pa.schema([("question_id", pa.string()), ("kind", pa.string()),
                        ("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])
    pending: list[Row] = []
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:

        def flush() -> None:
            columns = {name: [getattr(row, name) for row in pending] for name in schema.names}
            writer.write_table(pa.table(columns, schema=schema))
            pending.clear()

        for row in rows:
            pending.append(row)
            if len(pending) >= batch:
                flush()
        if pending:
            flush()


class RowTable(Sequence[Row]):
    """Rows on disk, memory-mapped: opening costs no memory to speak of, a row is read when asked for."""

    def __init__(self, table: pa.Table) -> None:
        import numpy as np
        import pyarrow.compute as pc

        self._table = table.combine_chunks()
        ids, labels = self._table["input_ids"], self._table["labels"]
        self.lengths: np.ndarray = np.asarray(pc.list_value_length(ids).to_numpy(), dtype=np.int64)
        """Tokens of each row: [rows]."""
        flat = pc.list_flatten(labels).to_numpy()
        ends = np.cumsum(self.lengths)
        counts = np.concatenate([[0], np.cumsum(flat != UNSUPERVISED)])
        self.supervised: np.ndarray = counts[ends] - counts[ends - self.lengths]
        """Supervised tokens of each row: [rows]."""
        heads = flat[(ends - self.lengths)[self.lengths > 0]] != UNSUPERVISED if len(flat) else np.zeros(0, dtype=bool)
        self.predicted: np.ndarray = self.supervised - heads
        """Supervised tokens that a token precedes, which are those with a loss: [rows]."""

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        one = self._table.slice(int(index) % len(self), 1).to_pylist()[0]
        return Row(one["question_id"], one["kind"], one["input_ids"], one["labels"])

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(len(self)))


def read_rows(path: Path) -> RowTable:
    """Open rows written by `write_rows`. Raises StoreError when the file is not of that kind."""
    import pyarrow as pa

    try:
        return RowTable(pa.ipc.open_file(pa.memory_map(str(path))).read_all())
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(f"{path} cannot be read as rows: {error}",
                         "build the artifact again with run.repair=true") from error
