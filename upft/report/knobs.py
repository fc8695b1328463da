"""What settings were told -> what sets them apart, by the keys that a user types: `train.lr=1e-05`, `eval.limit=50`.

Pure. Knows which key of the configuration each leaf of a stage's spec comes from (`upft.plan` fills them in).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MOST = 4
"""Keys to show, unless it takes more to tell settings apart."""
SOURCE = {**{name: name for name in ("limit", "question_field", "answer_field", "answer_format", "wrong_fields")},
          "source.id": "id", "source.revision": "revision", "source.file": "file",
          "source.sha256": "path", **{f"source.{name}": f"arithmetic.{name}" for name in (
              "split", "questions", "seed", "steps_min", "steps_max", "number_max")}}
MODEL = {"model.source.id": "model.id", "model.source.revision": "model.revision", "model.source.sha256": "model.path",
         "model.trust_remote_code": "model.trust_remote_code", "prompt.system_prompt": "model.system_prompt",
         "prompt.user_template": "model.user_template", "sampling.dtype": "model.dtype", "context": "model.paper_context"}
DRAWN = ("engine", "temperature", "top_p", "top_k")
STAGES: Mapping[str, Mapping[str, str]] = {
    "samples": {**{name: f"sample.{name}" for name in ("n", "max_tokens", "trace_ratio", "trace_max_tokens", "logprobs")},
                **{f"sampling.{name}": f"sample.{name}" for name in DRAWN},
                **{f"questions.{name}": f"data.{key}" for name, key in SOURCE.items()}},
    "pilot": {"n": "diagnose.n", "max_tokens": "diagnose.longest", "questions.limit": "diagnose.questions"},
    "diagnosis": {name: f"diagnose.{name}" for name in ("longest", "agreement")},
    "rows": {"prefix_len": "prefix.len", "max_length": "train.max_length", "traces": "method.n", "cap": "method.cap",
             **{name: f"prefix.{name}" for name in ("unit", "ratio", "suffix", "eos", "keep_unfinished")}},
    "pairs": {"cap": "method.verifier.pairs", "traces": "method.n", "max_length": "train.max_length",
              "keep_unfinished": "prefix.keep_unfinished"},
    "verifier": {name: f"method.verifier.{name}" for name in ("lr", "epochs", "batch_size", "beta")},
    "candidates": {"n": "method.verifier.n", "sampling.temperature": "method.verifier.temperature"},
}
"""Role -> leaf of its spec -> key."""
ASKED = {**{name: name for name in ("n", "max_tokens", "protocol")}, **{f"sampling.{name}": name for name in DRAWN},
         "questions.limit": "limit"}
"""Of an evaluation: leaf -> key of the group eval, where it is the same for all tasks."""
BY_PROTOCOL = ("n", "temperature", "prompt", "options")
"""Keys of eval.tasks.TASK that stand under the protocol's name."""
Leaf = tuple[str, Any]


def leaves(value: Any, path: str = "") -> Iterator[Leaf]:
    """(path with points, value) of everything in nested mappings."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from leaves(one, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def differ(told: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """For each of several settings, what it has that another has not, as `key=value`. told: role -> spec of each."""
    if len(told) < 2:
        return [() for _ in told]
    every = [_keys(one) for one in told]
    split = {name for one in every for name, values in one.items() if len({repr(value) for value in values.values()}) > 1}
    flat = [_flat(one, split) for one in every]
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if _apart(key, flat)]
    for most in range(min(MOST, len(keys)), len(keys) + 1):
        found = [tuple(f"{key}={shown(one[key], key)}" for key in keys[:most] if key in one) for one in flat]
        if len(set(found)) == len(found):
            break
    return found


def order(knobs: Sequence[str]) -> list[tuple[str, int, float, str]]:
    """To sort settings by: numbers by value, so that 2e-05 comes before 0.0001."""
    out = []
    for knob in knobs:
        key, _, value = knob.partition("=")
        try:
            out.append((key, 0, float(value), value))
        except ValueError:
            out.append((key, 1, 0.0, value))
    return out


def shown(value: Any, key: str = "") -> str:
    """A value as it is typed; of a file's content hash eight digits."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return f"[{','.join(shown(one) for one in value)}]"
    text = " ".join(str(value).split())
    return f"sha256:{text[:8]}" if key.endswith("path") and re.fullmatch("[0-9a-f]{64}", text) else text


def _keys(told: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Key -> where in the specs -> value. Of an evaluation's keys that hold for all tasks `where` is the task."""
    out: dict[str, dict[str, Any]] = {}
    tasks = dict.fromkeys(role.rpartition(":")[2] for role in told if role.startswith(("base:", "trained:")))
    if tasks:
        out["eval.tasks"] = {"": ",".join(tasks)}
    for role, spec in told.items():
        kind, _, of = role.removeprefix("judged:").partition(":")
        for leaf, value in leaves(spec):
            if leaf == "type" or leaf.endswith(".type") or leaf in ("seed", "task"):
                continue
            key, where = _key("judged" if role.startswith("judged:") else kind, of.rpartition(":")[2], leaf)
            out.setdefault(key, {}).setdefault(where, value)
    return out


def _key(kind: str, task: str, leaf: str) -> tuple[str, str]:
    """(key, where) of a leaf. where: the task, of a key of the group eval; the model that is asked does not matter."""
    if kind in STAGES and leaf in STAGES[kind]:
        return STAGES[kind][leaf], ""
    if leaf in MODEL and kind != "judged":
        return MODEL[leaf], ""
    if kind == "train":
        return f"train.{leaf}", ""
    if kind == "judged":
        return f"judge.{leaf.removeprefix('model.source.')}", ""
    if kind in ("base", "trained", "generator", "candidates"):
        if leaf in ASKED:
            return f"eval.{ASKED[leaf]}", task
        name = {"wording": "prompt"}.get(leaf, SOURCE.get(leaf.removeprefix("questions."), leaf))
        return ("method.verifier.score", "") if leaf == "score" else (f"eval.tasks.{task}.{name}", "")
    return f"{kind}.{leaf}", ""


def _flat(one: Mapping[str, Mapping[str, Any]], split: set[str]) -> dict[str, Any]:
    """Key -> value. split: keys of the group eval that are not the same for all tasks of some setting: told by task."""
    protocol = next(iter(one.get("eval.protocol", {"": ""}).values()))
    out = {}
    for key, values in one.items():
        if key not in split:
            out[key] = next(iter(values.values()))
            continue
        name = key.removeprefix("eval.")
        for task, value in values.items():
            out[f"eval.tasks.{task}.{f'{protocol}.' if name in BY_PROTOCOL else ''}{name}" if task else key] = value
    return {key: out[key] for key in sorted(out, key=lambda key: (key != "eval.protocol", key))}


def _apart(key: str, flat: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a key is worth telling: it differs, and not only because another does that stands for it."""
    values = {repr(one[key]) for one in flat if key in one}
    everywhere = all(key in one for one in flat)
    if len(values) < 2 and everywhere:
        return False
    parent = key.rpartition(".")[0]
    if any(parent in one for one in flat):  # adapters, where another setting has none
        return len(values) > 1 or key == "train.lora.rank"
    if key.startswith("eval.tasks.") and len(values) < 2:
        return False  # some were not asked that task, or ask it by another protocol
    followed = {"eval.protocol"} if re.match(r"eval\.(n|temperature|tasks\.)|model\.paper_context", key) else (
        {"data.id", "model.id"} if key.endswith(("revision", "path", ".file")) else set())
    return not any(len({repr(one.get(lead)) for one in flat}) > 1 and _follows(key, lead, flat) for lead in followed)


def _follows(key: str, lead: str, flat: Sequence[Mapping[str, Any]]) -> bool:
    """Whether settings that agree in `lead` agree in `key`."""
    found: dict[str, set[str]] = {}
    for one in flat:
        found.setdefault(repr(one.get(lead)), set()).add(repr(one.get(key)))
    return all(len(values) == 1 for values in found.values())
