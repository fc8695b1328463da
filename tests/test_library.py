"""The library example of the README runs as it stands there, and its parts do what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import upft

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


def readme_example() -> str:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    return next(block for block in blocks if block.startswith("import upft"))


def test_readme_example_runs_and_is_short(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = readme_example()
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    said = capsys.readouterr().out
    assert re.search(r"\d+\.\d% \[\d+\.\d, \d+\.\d\]", said)
    before, after = names["before"], names["after"]
    assert isinstance(before, upft.Scores)
    assert before.correct.shape == after.correct.shape
    assert 0.2 < before.accuracy.value < 0.9


def test_training_leaves_the_original_alone_and_learns():
    import torch

    base = upft.load("tiny")
    weights = {k: v.clone() for k, v in base.model.state_dict().items()}
    rows = upft.upft_rows(base, upft.arithmetic("train", 64), prefix_len=8, ratio=0.1)
    trained = upft.train(base, rows, lr=1e-3, epochs=2, batch_size=16)
    assert all(torch.equal(v, weights[k]) for k, v in base.model.state_dict().items())
    assert any(not torch.equal(v, weights[k]) for k, v in trained.model.state_dict().items())


def test_rows_agree_with_the_pipeline_rule():
    base = upft.load("tiny")
    questions = upft.arithmetic("train", 100)
    rows = upft.upft_rows(base, questions, prefix_len=5, ratio=0.2)
    kinds = {row.question_id: row.kind for row in rows}
    from upft.prefix import carries_trace

    assert {kinds[q.id] == "trace" for q in questions if q.id in kinds and carries_trace(q.id, 0.2)} == {True}
    eos = base.tokenizer.eos_token_id
    for row in rows:
        supervised = [label for label in row.labels if label != -100]
        assert supervised[-1] == eos
        if row.kind == "prefix":
            assert len(supervised) <= 6
            assert "Please provide the initial step" in base.tokenizer.decode(row.input_ids)


def test_words_of_the_same_samples():
    """By decoded content: the sampled tokens' own words, and no newline where tokens keep theirs."""
    from upft.choices import CutUnit

    base, texts = upft.load("tiny"), {}
    questions = upft.arithmetic("train", 60)
    for unit in CutUnit:
        rows = upft.upft_rows(base, questions, prefix_len=24, ratio=0.0, unit=unit)
        texts[unit] = [base.tokenizer.decode([x for x in row.labels if x != -100], skip_special_tokens=True) for row in rows]
        assert all(row.labels[-1] == base.tokenizer.eos_token_id for row in rows)
    assert texts[CutUnit.word] == [" ".join(text.split()) for text in texts[CutUnit.token]]
    assert texts[CutUnit.word] != texts[CutUnit.token]


def test_short_sampling_is_the_prefix_of_a_long_one():
    base = upft.load("tiny")
    questions = upft.arithmetic("test", 20)
    short, long = (upft.sample(base, questions, max_tokens=k, n=2, seed=3) for k in (6, 12))
    assert [r.ids for r in short] == [r.ids[:6] for r in long]


def test_question_without_gold_answer_is_refused():
    question = upft.Question("q", "How many?", None)
    with pytest.raises(ValueError, match="no gold answer"):
        upft.evaluate(upft.load("tiny"), [question])


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        upft.lod  # noqa: B018
