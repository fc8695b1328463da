"""Worker: the rate of a large matrix product on this machine, the ceiling of any training on it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import measure

if __name__ == "__main__":
    task = json.loads(Path(sys.argv[1]).read_text())
    rates = {dtype: measure.matmul_ceiling(task["device"], dtype, task["size"]) for dtype in task["dtypes"]}
    Path(sys.argv[2]).write_text(json.dumps(rates))
