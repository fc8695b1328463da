"""results.json of one cell and of many: what is written, the JSON Schemas and docs/report.md against each other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from artifacts import HOST, answer, diagnose, evaluated, making, realistic, spec, write
from stores import Setting, analysed, store
from test_methods import vstar

from upft import dossier
from upft.ledger import Ledger
from upft.report import paper
from upft.stages import report

FOLDER = Path(paper.__file__).parent
DOCS = Path(__file__).parents[2] / "docs" / "report.md"


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(found)
    return found


def told(what: Any, inputs: Any, out: Path) -> dict[str, Any]:
    out.mkdir()
    report.run(what, inputs, out, HOST)
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def test_a_cells_results_keep_to_their_schema(tmp_path: Path) -> None:
    whole, inputs = realistic(tmp_path / "cell")
    for role, (name, key, files, lines) in analysed(Setting(looked=True)).items():
        inputs[role] = write(tmp_path / "cell" / name / key, files, Ledger(seconds=5), lines, {"spec": {"of": role}})
    plain = making(tmp_path / "plain", diagnosed=diagnose(4, 12))
    (plain["train"] / "spec.json").write_text(json.dumps({"stage": "train", "spec": {"seed": 7}}))
    for side in ("base", "trained"):
        plain[f"{side}:toy"] = evaluated(tmp_path / "plain", side, [answer(f"{n}", n < 5) for n in range(10)])
    chosen, of = vstar(tmp_path / "vstar")
    found = [told(whole, inputs, tmp_path / "one"), told(spec("toy"), plain, tmp_path / "two"),
             told(chosen, of, tmp_path / "three")]
    assert found[0]["analyses"]
    assert found[1]["train_seed"] == 7
    assert found[2]["choosing"]
    for one in found:
        jsonschema.validate(one, schema("cell"))
        short = {name: value for name, value in one.items() if name != "tasks"}
        for broken in ({**one, "more": 1}, {**one, "schema": 2}, short):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(broken, schema("cell"))
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(one, schema("results"))


def test_analyses_keep_to_the_schema_of_many(tmp_path: Path) -> None:
    looked = [Setting(prefix_len=t, seed=seed, tasks=("gsm8k",), looked=True) for t in (4, 8) for seed in (0, 1)]
    dossier.write(store(tmp_path / "store", looked), tmp_path / "out", missing=["prefix.len=16"])
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(found["analyses"]) == 6
    jsonschema.validate(found, schema("results"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, schema("cell"))


def rows(title: str) -> list[tuple[list[str], list[str]]]:
    """(paths, names told of them) of each row of the table below a heading."""
    text = DOCS.read_text(encoding="utf-8")
    part = text[text.index(f"### {title}\n"):]
    lines = re.findall(r"^\| (`.*?) \| (.*) \|$", part.partition("\n##")[0], re.MULTILINE)
    return [(re.findall(r"`([^`]+)`", first), re.findall(r"`(\w+)`", second)) for first, second in lines]


def at(root: dict[str, Any], node: dict[str, Any], path: str) -> dict[str, Any]:
    """The schema of a path such as `settings[].tasks` or `tasks.TASK.several[]`; of what may be null, of the rest."""
    for name in ["", *path.split(".")]:
        if name:
            word = name.removesuffix("[]")
            node = node["additionalProperties"] if word.isupper() else node["properties"][word]
        node = resolved(root, node)
        if name.endswith("[]"):
            node = resolved(root, node["items"])
    return node


def resolved(root: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node or "anyOf" in node:
        node = root["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node["anyOf"][-1]
    return node


@pytest.mark.parametrize(("title", "name"), [("Of many cells", "results"), ("Of one cell", "cell")])
def test_the_documents_tables_name_what_the_schema_has(title: str, name: str) -> None:
    root, told_of = schema(name), rows(title)
    assert len(told_of) > 12
    paths = [path for found, _ in told_of for path in found]
    assert {path.partition(".")[0].removesuffix("[]") for path in paths} == set(root["properties"])
    checked = 0
    for found, names in told_of:
        for path in found:
            node = at(root, root, path)  # each path is one
            properties = set(node.get("properties", {}))
            if not properties or "additionalProperties" not in node:
                continue
            deeper = {other[len(path) + 1:].partition(".")[0].removesuffix("[]") for other in paths
                      if other.startswith(f"{path}.")}
            assert properties <= set(names) | deeper, path
            inner = {key for one in properties for key in resolved(root, node["properties"][one]).get("properties", {})}
            assert set(names) <= properties | inner | {"base", "ours", "paper", "TASK"}, path
            checked += 1
    assert checked >= 5
