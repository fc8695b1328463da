"""The page: whole, self-contained, harmless whatever a model wrote, and showing what results.json says."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from artifacts import HOST, answer, diagnose, evaluated, making, realistic, spec

from upft.report import page
from upft.report.evidence import Answer, Answers
from upft.stages import report

VOID = {"meta", "br", "hr", "img", "input", "link"}
EVIL = "<script>alert('x')</script><img src=\"https://evil.example/x.png\" onerror=alert(1)> & </div></body>"


class Page(HTMLParser):
    """Tags, attributes, visible text; `problems` holds tags that do not close where they should."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.problems: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.problems.append(f"</{tag}> closes {self.open[-1:]}, line {self.getpos()[0]}")
        if tag in self.open:
            while self.open and self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def percent(folder: Path) -> str:
    """Share of right answers, counted from the file itself."""
    right = [json.loads(line)["right"] for line in (folder / "answers.jsonl").open(encoding="utf-8")]
    return f"{100 * sum(right) / len(right):.1f}%"


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Accuracy on arithmetic before and after, as the page should write it."""
    _, inputs = realistic(tmp_path_factory.mktemp("counted"))
    return percent(inputs["base:arithmetic"]), percent(inputs["trained:arithmetic"])


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("cell")
    task_spec, inputs = realistic(root)
    (root / "out").mkdir()
    report.run(task_spec, inputs, root / "out", HOST)
    return (root / "out" / "report.html").read_text()


def evil_page(root: Path) -> str:
    """Everything a model or a data set can write is hostile."""
    inputs = making(root, [{"kind": "prefix", "segments": [[EVIL, False], [EVIL, True]]}])
    for side in ("base", "trained"):
        inputs[f"{side}:t<b>"] = evaluated(root, side, [
            answer(f"{n}", (n % 2 == 0) == (side == "base"), completion=EVIL, question=EVIL, gold=EVIL, extracted=EVIL,
                   style=EVIL) for n in range(4)])
    (root / "out").mkdir()
    report.run(spec("t<b>"), inputs, root / "out", HOST)
    return (root / "out" / "report.html").read_text()


def test_tags_balance_and_ids_are_unique(html: str) -> None:
    found = Page(html)
    assert found.problems == []
    assert found.open == []
    ids = [a["id"] for _, a in found.tags if "id" in a]
    assert len(ids) == len(set(ids)) > 10
    used = set(re.findall(r"url\(#([^)]+)\)", html)) | {str(a["href"])[1:] for _, a in found.tags if "href" in a} \
        | {str(a["aria-labelledby"]) for _, a in found.tags if "aria-labelledby" in a}
    assert used <= set(ids)
    assert used


def test_nothing_is_loaded(html: str, tmp_path: Path) -> None:
    for text in (html, evil_page(tmp_path)):
        found = Page(text)
        names = {tag for tag, _ in found.tags}
        assert text.count("<script") == 1
        assert re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1] == page.script()  # type: ignore[index]
        assert f'content="{page.policy()}"'.replace("'", "&#39;") in text
        assert not names & {"link", "iframe", "img", "object", "embed", "base", "form", "image", "audio", "video"}
        for tag, attributes in found.tags:
            assert not [name for name in attributes if name.startswith("on")], tag
            for name in ("src", "srcset", "href", "xlink:href", "data", "action", "poster"):
                assert str(attributes.get(name) or "#").startswith("#"), (tag, attributes)
        style = text[text.index("<style>"):text.index("</style>")]
        assert not re.search(r"url\(|@import|https?:", style)
    assert not re.search(r"https?:", html)


def test_what_models_write_is_shown_and_never_obeyed(tmp_path: Path) -> None:
    text = evil_page(tmp_path)
    found = Page(text)
    assert found.problems == []
    assert text.count("<script>") == 1  # ours
    assert text.count("&lt;script&gt;") >= 4 * 4  # questions, gold answers, completions on both sides
    assert "t<b>" in found.words
    assert EVIL in "".join(found.text)


def test_findings_and_tables_show_the_results(html: str, changed: tuple[str, str]) -> None:
    words = Page(html).words.replace("\u00a0", " ")
    for text in ("UPFT raised accuracy on arithmetic: {} → {}.".format(*changed),
                 "UPFT did not measurably change accuracy on aime24",
                 "prefix length 8 tokens, 10% whole traces, seed 0", "▲ gain", "inside noise",
                 "mean trained length 15.2 tokens", "rows left out 1 (the whole trace was cut by the length limit)",
                 "responses only", "11,100", "22,000", "node-7", "0f0f0f0f0f + changes", "torch 2.13.0"):
        assert text in words, text


def test_a_change_and_what_it_splits_into_add_up_and_many_tests_are_told(html: str) -> None:
    words = Page(html).words
    said = re.search(r"Of the change of (\S+) points on arithmetic, (\S+) come from opening differently and (\S+) from", words)
    assert said is not None
    whole, coverage, accuracy = (float(text.replace("−", "-")) for text in said.groups())
    assert whole == pytest.approx(coverage + accuracy)
    # arithmetic; aime24 with its maj@8 and pass@8; the mean
    assert "The tables of results hold 5 tests against the base model" in words


def section(html: str) -> str:
    """What stands under `Before training`, markup and all."""
    start = html.index("<h2>Before training: how alike solutions begin</h2>")
    return html[start:html.index("<h2>", start + 4)]


def cells(html: str) -> list[list[str]]:
    """Text of each cell of the first table's body."""
    body = html[html.index("<tbody>"):html.index("</tbody>")]
    return [[Page(cell).words for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)]
            for row in re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.DOTALL)]


def test_how_alike_solutions_begin_is_told_at_a_few_lengths(html: str) -> None:
    found, told = diagnose(8, 24, logprobs=True), section(html)
    curve, suggested = found["curve"], found["suggested"]
    assert 1 < suggested < 24
    assert [row[0] for row in cells(told)] == [str(t) for t in sorted({1, 2, 4, 8, 16, 24, suggested})]
    for row in cells(told):
        t = int(row[0]) - 1
        low, high = (100 * curve[end][t] for end in ("low", "high"))
        assert row[1:] == [f"{100 * curve['agreement'][t]:.1f}%", f"[{low:.1f}, {high:.1f}]",
                           f"{curve['distinct_prefixes'][t]:.1f}", f"{curve['traces_a_prefix'][t]:.1f}", "48",
                           f"{found['entropy']['nats'][t]:.2f}"]
    (marked,) = re.findall(r'<tr class="sum"><th[^>]*>(\d+)</th>', told)
    assert int(marked) == suggested
    words = Page(told).words
    assert f"Suggested prefix length: {suggested} tokens." in words
    assert found["reason"] in words
    for text in ("questions 48", "traces a question 8", "320, 24.0 tokens on average; 0.0% ended by themselves",
                 "64, 193.5 tokens on average, median 193.5", "of these with a box 75.0%", "ended by themselves 100.0%"):
        assert text in words, text
    assert re.findall(r'id="beginnings-alt" hidden>(.*?)</div>', told) == [
        f"Share of pairs of a question&#39;s traces that agree so far: {100 * curve['agreement'][0]:.1f}% at 1 token, "
        f"{100 * curve['agreement'][23]:.1f}% at 24. Entropy of the sampler in nats: 0.50 at position 1, 0.02 at position 24. "
        f"Suggested prefix length: {suggested} tokens."]


@pytest.mark.parametrize("logprobs", [False, True])
def test_with_one_trace_a_question_the_page_says_why_agreement_is_not_known(logprobs: bool, tmp_path: Path) -> None:
    inputs = making(tmp_path, diagnosed=diagnose(1, 8, logprobs))
    inputs["base:toy"] = inputs["trained:toy"] = evaluated(tmp_path, "base", [answer(f"{n}", n > 1) for n in range(4)])
    (tmp_path / "out").mkdir()
    report.run(spec("toy"), inputs, tmp_path / "out", HOST)
    told = section((tmp_path / "out" / "report.html").read_text())
    words = Page(told).words
    assert words.count("One trace of each question was sampled, so how alike two begin is not known") == 1
    assert "Suggested prefix length" not in words
    assert "questions 48" in words
    assert (tmp_path / "out" / "figures" / "beginnings.svg").is_file() == logprobs
    if logprobs:
        assert cells(told) == [["1", "0.50"], ["2", "0.25"], ["4", "0.12"], ["8", "0.06"]]
        assert "agree" not in Page(told[told.index("<table"):]).words
    else:
        assert "<table" not in told


def test_supervised_tokens_are_marked_and_prompts_are_not(html: str) -> None:
    rows = re.findall(r'<div class="tokens">(.*?)</div>', html, re.DOTALL)
    assert len(rows) == 2
    prompt, marked = re.fullmatch(r"(.*?)<mark>(.*?)</mark>", rows[0], re.DOTALL).groups()  # type: ignore[union-attr]
    assert prompt.endswith("&lt;|assistant|&gt;")
    assert marked == "Let&#39;s work step by step. First,&lt;|eos|&gt;"


def test_light_and_dark_and_small_screens(html: str) -> None:
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert "prefers-color-scheme: dark" in html
    found = Page(html)
    tables = sum(tag == "table" for tag, _ in found.tags)
    assert tables == sum(a.get("class") == "scroll" for _, a in found.tags) >= 6
    svg = html[html.index("<svg"):html.rindex("</svg>")]
    assert not re.search(r"#[0-9a-f]{6}\b", svg), "a colour that cannot follow the theme"


def test_figures_stand_alone_and_say_what_they_show(tmp_path: Path, changed: tuple[str, str]) -> None:
    task_spec, inputs = realistic(tmp_path)
    (tmp_path / "out").mkdir()
    report.run(task_spec, inputs, tmp_path / "out", HOST)
    drawn = ElementTree.parse(tmp_path / "out" / "figures" / "accuracy.svg").getroot()
    texts = ["".join(node.itertext()).strip() for node in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("base") == texts.count("UPFT") == 2
    assert {"arithmetic", "aime24", *changed} <= set(texts)
    styles = (tmp_path / "out" / "figures" / "styles-0.svg").read_text()
    assert all(f">{name}<" in styles for name in ("careful", "hasty", "guess"))
    assert (tmp_path / "out" / "figures" / "loss.pdf").read_bytes().startswith(b"%PDF")


def answers(*right: tuple[bool, ...]) -> Answers:
    rows = [Answer.read(answer(f"{q:02d}", r, i)) for q, each in enumerate(right) for i, r in enumerate(each)]
    return Answers.of(rows, "here")


def test_examples_are_gains_and_losses_in_turn() -> None:
    base = answers((False,), (False,), (True,), (True,), (False,), (True,))
    trained = answers((True,), (True,), (True,), (False,), (True,), (True,))
    pairs = page.differing(base, trained)
    assert [(p.base.id, p.base.right, p.trained.right) for p in pairs] == [
        ("00", False, True), ("03", True, False), ("01", False, True), ("04", False, True)]
    assert len(page.differing(base, trained, count=2)) == 2


def test_an_example_shows_the_answers_that_differ() -> None:
    base = answers((True, False, False), (True, True, False))
    trained = answers((True, True, True), (True, False, False))
    (gain, loss) = page.differing(base, trained)
    assert (gain.base.index, gain.base.right, gain.trained.right) == (1, False, True)
    assert (loss.base.right, loss.trained.index, loss.trained.right) == (True, 1, False)


def test_long_completions_lose_their_middle_and_say_so() -> None:
    assert page.shorten(" short ") == ["short"]
    head, cut, tail = page.shorten("a" * 600 + "b" * 400, longest=100)
    assert (head, cut, tail) == ("a" * 60, "… 900 characters …", "b" * 40)


def test_numbers_do_not_break_over_lines() -> None:
    assert page.unbroken("5% → 6%, p < 0.001 [−1.0, 2.0]") == "5%\u00a0→\u00a06%, p\u00a0<\u00a00.001 [−1.0,\u00a02.0]"
