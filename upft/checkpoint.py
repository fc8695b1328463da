"""Training checkpoints: one format for one device, DDP and FSDP, readable on any number of ranks.

Floor 4. `FOLDER/step-00000123/` holds safetensors files and JSON, no pickle. Each rank writes the rows it holds;
the folder gets its name when every byte of it is on disk, so that a kill at any moment leaves the one before it
usable. When to save, and what the state means, is not known here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor, Shard

from upft.errors import StoreError
from upft.hashing import digest, file_sha256

MANIFEST = "manifest.json"
STATE = "state.json"
FORMAT = 1
PART_BYTES = 5 * 10**9
"""A file holds about this much; so does the host's copy of tensors of a GPU while they are written."""
READ_BYTES = 2**28
"""What is read at once."""
NAME = re.compile(r"step-(\d{8,})(\.old)?")


@dataclass(frozen=True)
class Piece:
    """Rows offset .. offset + rows of a tensor (a scalar has one row), under its name in a file."""

    file: str
    offset: int
    rows: int


@dataclass(frozen=True)
class Entry:
    """A tensor: number format, whole shape, and where its rows are."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint. state: what was handed to `save`; entries: its tensors by name."""

    path: Path
    step: int
    state: dict[str, Any]
    entries: Mapping[str, Entry]

    def load(self, into: Mapping[str, torch.Tensor]) -> None:
        """Fill tensors in place, on any device: plain ones, or DTensors in shards of dim 0 over any number of ranks.

        Only the rows that are wanted are read. Tensors that are not asked for are left alone. Raises StoreError,
        before anything is filled, for one that is missing or has another shape or number format.
        """
        for name, target in into.items():
            entry = self.entries.get(name)
            if entry is None:
                raise self._unfit(f"has no tensor {name}")
            if (tuple(target.shape), _format(target)) != (entry.shape, entry.dtype):
                raise self._unfit(f"has {name} as {list(entry.shape)} {entry.dtype}, and the run has "
                                  f"{list(target.shape)} {_format(target)}")
        with ExitStack() as stack, torch.no_grad(), _reading(self.path):
            files: dict[str, Any] = {}
            for name, target in into.items():
                for piece in self.entries[name].pieces:
                    if piece.file not in files:
                        files[piece.file] = stack.enter_context(safe_open(self.path / piece.file, framework="pt"))
                    _fill(target, piece, files[piece.file], name)

    def own(self, rank: int) -> dict[str, torch.Tensor]:
        """The tensors that `rank` saved as its own; none when there was no such rank."""
        start = _own(rank, "")
        out = {name: torch.empty(entry.shape, dtype=getattr(torch, entry.dtype))
               for name, entry in self.entries.items() if name.startswith(start)}
        self.load(out)
        return {name.removeprefix(start): tensor for name, tensor in out.items()}

    def _unfit(self, what: str) -> StoreError:
        return StoreError(f"checkpoint {self.path} {what}: it is of another model or other settings",
                          f"train with what it was made with, or remove {self.path.parent} to start anew")


def save(folder: Path, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any], rank: int = 0, world: int = 1,
         barrier: Callable[[], None] = lambda: None, *, own: Mapping[str, torch.Tensor] | None = None, keep: int = 1) -> Path:
    """Write a checkpoint; every rank calls this with the same names. Returns its folder, complete on return.

    tensors: plain ones are the same on all ranks (rank 0 writes them); of a DTensor in shards of dim 0 each rank
    writes its rows. state: plain JSON, rank 0's is kept. own: tensors that differ between ranks, such as random
    states. keep: how many checkpoints stay; older ones go when the new one is complete. Beside the tensors
    themselves it needs no memory on a CPU, and about PART_BYTES of the host's on a GPU. Raises StoreError when
    it cannot be written; the ranks that could are then left at the barrier, so such an error must end the run.
    """
    final = folder / f"step-{step:08d}"
    work = final.with_name(final.name + ".partial")
    text = json.dumps(state, indent=1, allow_nan=False) + "\n"
    with _writing(folder):
        if rank == 0:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
        barrier()
        _write_rank(work, tensors, own or {}, rank, world)
        barrier()
        if rank == 0:
            (work / STATE).write_text(text, encoding="utf-8")
            _write_manifest(work, step, world)
            if final.exists():  # damaged, else the run would have gone on from it; until the next line it still counts
                os.rename(final, _free(final.with_name(final.name + ".old")))
            os.rename(work, final)
            _sync_folder(folder)
            earlier = [path for s, path in _found(folder) if s < step]
            for _, path in _found(folder):
                if path != final and path not in earlier[:keep - 1]:
                    torn = _free(path.with_name(path.name + ".partial"))
                    os.rename(path, torn)  # so that a removal cut short is not taken for a checkpoint
                    shutil.rmtree(torn)
        barrier()
    return final


def latest(folder: Path, rank: int = 0, note: Callable[[str], None] = lambda text: None) -> Checkpoint | None:
    """The newest checkpoint that is complete and intact, None where there is none.

    Every byte is read and checked; one that is damaged is passed over, and `note` is told why. Rank 0 removes
    what a kill left behind. Reading takes a while for a large model: of several ranks let rank 0 look, tell the
    others the step, and have them open it with `at`.
    """
    if rank == 0:
        for path in folder.glob("step-*.partial"):
            shutil.rmtree(path, ignore_errors=True)
    for _, path in _found(folder):
        try:
            return _open(path, check=True)
        except StoreError as error:
            note(f"{error.what}: passed over")
    return None


def at(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of a step, its data unchecked. Raises StoreError when it is not there or cannot be read."""
    for found, path in _found(folder):
        if found == step:
            return _open(path, check=False)
    raise StoreError(f"there is no checkpoint of step {step} in {folder}", "all ranks must see the same folder")


def _write_rank(work: Path, tensors: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], rank: int,
                world: int) -> None:
    """This rank's rows in files of about PART_BYTES, and a list of both. Files are hashed while the next is written."""
    entries: dict[str, Entry] = {}
    part: dict[str, torch.Tensor] = {}
    sums: dict[str, Future[dict[str, Any]]] = {}

    def finish() -> None:
        if part:
            save_file(part, work / file)
            sums[file] = pool.submit(_sealed, work / file)
            part.clear()

    with ThreadPoolExecutor(1) as pool:
        file, size = "", 0
        for name, tensor in [*tensors.items(), *((_own(rank, name), t) for name, t in own.items())]:
            if name in tensors and not _writes(tensor, rank):
                continue
            offset, local = _rows(name, tensor)
            rows = local.shape[0] if local.ndim else 1
            if rows == 0 and tensor.numel() > 0:
                continue  # a short tensor has no rows for the last ranks
            nbytes = local.numel() * local.element_size()
            if not part or size + nbytes > PART_BYTES:
                finish()
                file, size = f"rank-{rank}-of-{world}.part-{len(sums)}.safetensors", 0
            entries[name] = Entry(_format(tensor), tuple(tensor.shape), (Piece(file, offset, rows),))
            local = local.to("cpu").contiguous()
            begin = local.data_ptr()
            shared = any(begin < o.data_ptr() + o.nbytes and o.data_ptr() < begin + nbytes for o in part.values())
            part[name] = local.clone() if shared else local  # safetensors refuses such, as those of tied names
            size += nbytes
        finish()
        report = {"files": {file: done.result() for file, done in sums.items()},
                  "tensors": {name: asdict(entry) for name, entry in entries.items()}}
    (work / f"rank-{rank}-of-{world}.json").write_text(json.dumps(report), encoding="utf-8")


def _write_manifest(work: Path, step: int, world: int) -> None:
    """Join the lists of all ranks, and see that no row is missing."""
    files: dict[str, Any] = {STATE: _sealed(work / STATE)}
    entries: dict[str, Any] = {}
    for rank in range(world):
        listed = work / f"rank-{rank}-of-{world}.json"
        report = json.loads(listed.read_text(encoding="utf-8"))
        listed.unlink()
        files |= report["files"]
        for name, entry in report["tensors"].items():
            entries.setdefault(name, {**entry, "pieces": []})["pieces"] += entry["pieces"]
    for name, entry in entries.items():
        if sum(piece["rows"] for piece in entry["pieces"]) != (entry["shape"][0] if entry["shape"] else 1):
            raise StoreError(f"the ranks do not hold all rows of {name} between them", "this is a defect; please report it")
    body = {"format": FORMAT, "step": step, "files": files, "tensors": entries}
    (work / MANIFEST).write_text(json.dumps({"sha256": digest(body), "body": body}), encoding="utf-8")
    _sealed(work / MANIFEST)
    _sync_folder(work)


def _open(path: Path, check: bool) -> Checkpoint:
    """Raises StoreError for what is damaged; with `check`, every file is read."""
    with _reading(path):
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        body = manifest["body"]
        if digest(body) != manifest["sha256"]:
            raise ValueError(f"{MANIFEST} has other contents than were written")
        if body["format"] != FORMAT:
            raise ValueError(f"its format is {body['format']}, and this version reads {FORMAT}")
        for file, wanted in body["files"].items() if check else ():
            if (path / file).stat().st_size != wanted["bytes"] or file_sha256(path / file) != wanted["sha256"]:
                raise ValueError(f"{file} has other contents than were written")
        entries = {name: Entry(e["dtype"], tuple(e["shape"]), tuple(Piece(**piece) for piece in e["pieces"]))
                   for name, e in body["tensors"].items()}
        return Checkpoint(path, body["step"], json.loads((path / STATE).read_text(encoding="utf-8")), entries)


def _found(folder: Path) -> list[tuple[int, Path]]:
    """Checkpoints of a folder, newest first; one that is being replaced comes after what replaces it."""
    matches = [(m, path) for path in folder.glob("step-*") if (m := NAME.fullmatch(path.name))]
    return [(int(m[1]), path) for m, path in sorted(matches, key=lambda found: (-int(found[0][1]), found[0][2] is not None))]


def _rows(name: str, tensor: torch.Tensor) -> tuple[int, torch.Tensor]:
    """(first row, rows): what this rank holds of a tensor, without its gradient's history."""
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return 0, tensor
    local, mesh = tensor.to_local(), tensor.device_mesh
    cut = [(dim, placed) for dim, placed in enumerate(tensor.placements) if not placed.is_replicate()]
    if not cut:
        return 0, local
    dim, placed = cut[0]
    if len(cut) == 1 and type(placed) is Shard and placed.dim == 0:
        length = -(-tensor.shape[0] // mesh.size(dim))  # as torch.chunk cuts
        offset = min(tensor.shape[0], length * mesh.get_local_rank(dim))
        if local.shape[0] == min(length, tensor.shape[0] - offset):
            return offset, local
    raise StoreError(f"{name} lies over the ranks as {tensor.placements}, which a checkpoint cannot hold",
                     "shard parameters once, over their dim 0")


def _writes(tensor: torch.Tensor, rank: int) -> bool:
    """Whether this rank writes what it holds: of equal copies one is enough."""
    if not isinstance(tensor, DTensor):
        return rank == 0
    return all(tensor.device_mesh.get_local_rank(dim) == 0 for dim, placed in enumerate(tensor.placements)
               if placed.is_replicate())


def _fill(target: torch.Tensor, piece: Piece, file: Any, name: str) -> None:
    """Copy the rows that `target` holds here out of a piece. file: an open safetensors file."""
    offset, local = _rows(name, target)
    if local.ndim == 0:
        local.copy_(file.get_tensor(name))
        return
    rows = file.get_slice(name)
    begin, end = max(offset, piece.offset), min(offset + local.shape[0], piece.offset + piece.rows)
    some = max(1, READ_BYTES // max(1, local[:1].numel() * local.element_size()))
    for low in range(begin, end, some):
        high = min(low + some, end)
        local[low - offset:high - offset].copy_(rows[low - piece.offset:high - piece.offset])


def _own(rank: int, name: str) -> str:
    return f"rank-{rank}.{name}"


def _format(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _free(path: Path) -> Path:
    """The path, with nothing there."""
    if path.exists():
        shutil.rmtree(path)
    return path


def _sealed(path: Path) -> dict[str, Any]:
    """Force a file to disk; its size and SHA-256."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StoreError(f"cannot write a checkpoint into {folder}: {error}",
                         "free some space or mend its permissions, then run the same command: it goes on from the "
                         "last checkpoint") from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:  # foreign bytes
        raise StoreError(f"checkpoint {path} is damaged: {error}",
                         f"remove {path}, then run the same command: it goes on from an older one or anew") from error
