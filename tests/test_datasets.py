"""Questions from files: formats, and every kind of bad row named by file and line."""

from __future__ import annotations

import json

import pytest

from upft.choices import AnswerFormat
from upft.datasets import load
from upft.errors import DataError
from upft.specs import ContentRef, Generated, HubRef, QuestionsSpec


def spec(path, question="question", answer=None, fmt=AnswerFormat.plain, limit=None) -> QuestionsSpec:
    return QuestionsSpec(ContentRef("0", str(path)), question, answer, fmt, limit)


ROWS = [{"question": "1+1?", "answer": "so 2\n#### 2"}, {"question": "2+2?", "answer": "#### 1,004"}]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_formats_read_the_same(kind, tmp_path):
    import csv

    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(r) for r in ROWS) + "\n\n")
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["question", "answer"])
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    got = load(spec(path, answer="answer", fmt=AnswerFormat.gsm8k))
    assert [(q.text, q.answer.replace(",", "")) for q in got.rows] == [("1+1?", "2"), ("2+2?", "1004")]
    assert [q.answer for q in load(spec(path)).rows] == [None, None]


def test_duplicates_are_counted_and_kept_once(write_jsonl):
    path = write_jsonl([{"question": "a"}, {"question": "b"}, {"question": " a "}, {"question": "a"}])
    got = load(spec(path))
    assert [q.text for q in got.rows] == ["a", "b"]
    assert got.duplicates == 2


def test_limit_takes_the_first(write_jsonl):
    path = write_jsonl([{"question": str(i)} for i in range(10)])
    assert [q.text for q in load(spec(path, limit=3)).rows] == ["0", "1", "2"]


@pytest.mark.parametrize(("lines", "names"), [
    ('{"question": "a"}\n{"question": \n', ["line 2", "not JSON"]),
    ('{"question": "a"}\n[1, 2]\n', ["line 2", "list"]),
    ('{"question": "a"}\n{"problem": "b"}\n', ["line 2", "no 'question'", "question_field", "problem"]),
    ('{"question": "a"}\n{"question": "  "}\n', ["line 2", "'question' is empty"]),
    ('{"question": ["a"]}\n', ["line 1", "'question' is a list"]),
    ('{"question": null}\n', ["line 1", "no 'question'"]),
    ("\n\n", ["holds no questions"]),
])
def test_bad_rows_are_named(lines, names, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(lines)
    refused(path, names)


def refused(path, names):
    """The file is refused, and the message holds its path and these."""
    with pytest.raises(DataError) as refusal:
        load(spec(path))
    for name in [str(path), *names]:
        assert name in str(refusal.value)


@pytest.mark.parametrize(("name", "raw", "names"), [
    ("a.jsonl", '{"question": "a"}\n{"question": "café"}\n'.encode("latin-1"), ["line 2 is not in UTF-8", "save the file as"]),
    ("a.csv", "question\na\ncafé\n".encode("latin-1"), ["line 3 is not in UTF-8", "save the file as"]),
    ("a.json", '[{"question":\n"café"}]'.encode("latin-1"), ["line 2 is not in UTF-8", "save the file as"]),
    ("a.csv", "question\na\n".encode("utf-16"), ["line 1 is not in UTF-8"]),
    ("a.jsonl", b'{"question": "half of \\ud83d"}', ["line 1: 'question'", "lone surrogate"]),
    ("a.jsonl", b'{"question": "a"}\n{"question": ' + b"[" * 100_000, ["line 2 is not JSON"]),
    ("a.json", b"[" * 100_000, ["is not JSON", "list of rows"]),
    ("a.csv", b"q,answer\na?,1,2\n", ["line 2 has 3 cells, its header 2", "double quotes"]),  # else 'a?' and '1' were read
    ("a.csv", b'problem,answer\n"two\nlines",1\nb,2\n', ["line 3 has no 'question'", "problem"]),
    ("a.csv", b'question\na\n"b\nc\nd\n', ["is not CSV", "quotes"]),  # else one question of three
])
def test_files_that_are_not_what_they_seem_are_named(name, raw, names, tmp_path):
    path = tmp_path / name
    path.write_bytes(raw)
    refused(path, names)


@pytest.mark.parametrize(("name", "raw", "text"), [
    ("a.jsonl", b'\xef\xbb\xbf{"question": "a?"}\n', "a?"),
    ("a.json", b'\xef\xbb\xbf[{"question": "a?"}]', "a?"),
    ("a.csv", b"\xef\xbb\xbfquestion\r\na?\r\n", "a?"),  # as Excel writes it
    ("a.csv", b"question,answer\na?,1,,\n", "a?"),
    ("a.csv", b'question\n"' + b"x" * 200_000 + b'"\n', "x" * 200_000),
    ("a.jsonl", '{"question": "a\u2028b"}\n'.encode(), "a\u2028b"),
])
def test_files_from_other_programs_are_read(name, raw, text, tmp_path):
    (tmp_path / name).write_bytes(raw)
    assert [q.text for q in load(spec(tmp_path / name)).rows] == [text]


def test_a_parquet_file_whose_text_is_not_unicode_is_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    latin = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xe9"))
    pq.write_table(pa.table({"question": latin}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet cannot be read"):
        load(spec(tmp_path / "a.parquet"))


@pytest.mark.parametrize(("fmt", "text", "names"), [
    (AnswerFormat.gsm8k, "the answer is 3", ["line 1", "'answer' has no gold answer", "####"]),
    (AnswerFormat.boxed, "the answer is 3", ["line 1", "'answer' has no gold answer", "boxed"]),
])
def test_answer_without_its_mark(fmt, text, names, write_jsonl):
    path = write_jsonl([{"question": "a", "answer": text}])
    with pytest.raises(DataError) as refusal:
        load(spec(path, answer="answer", fmt=fmt))
    for name in names:
        assert name in str(refusal.value)


def test_unknown_kind_of_file_and_broken_parquet(tmp_path):
    for name, part in {"a.txt": "unknown kind of file '.txt'", "a.parquet": "not a Parquet file"}.items():
        (tmp_path / name).write_text("x")
        with pytest.raises(DataError, match=part):
            load(spec(tmp_path / name))


def test_hub_file_out_of_reach_names_the_way_out():
    source = HubRef("nobody/nothing", "0" * 40, "a.jsonl")
    with pytest.raises(DataError, match=r"nobody/nothing .* cannot be fetched") as refusal:
        load(QuestionsSpec(source, "question", None, AnswerFormat.plain, None))
    assert "data.path=FILE" in refusal.value.remedy


def test_generated_questions_and_an_exhausted_space(monkeypatch):
    got = load(QuestionsSpec(Generated("test", 50, 0, 2, 4, 20), "question", None, AnswerFormat.plain, 20))
    assert len(got.rows) == 20
    assert all(q.answer for q in got.rows)
    monkeypatch.setattr("upft.toy.arithmetic._PATIENCE", 50)  # exhausting the whole space takes minutes
    with pytest.raises(DataError, match=r"arithmetic\.questions=1000000"):
        load(QuestionsSpec(Generated("test", 1_000_000, 0, 1, 1, 5), "question", None, AnswerFormat.plain, None))


@pytest.mark.real
@pytest.mark.parametrize(("file", "question", "answer", "fmt", "count"), [
    ("gsm8k/train.jsonl", "question", "answer", AnswerFormat.gsm8k, 7473),
    ("gsm8k/test.jsonl", "question", "answer", AnswerFormat.gsm8k, 1319),
    ("math500/test.jsonl", "problem", "expected_answer", AnswerFormat.plain, 500),
    ("math500/test.jsonl", "problem", "solution", AnswerFormat.boxed, 500),
    ("aime24/test.jsonl", "question", "answer", AnswerFormat.plain, 30),
])
def test_real_files(file, question, answer, fmt, count, real_data):
    got = load(spec(real_data / file, question, answer, fmt))
    assert len(got.rows) + got.duplicates == count
    assert all(q.answer for q in got.rows)
