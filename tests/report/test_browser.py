"""Both pages in a real browser: no error, nothing loaded, tables that sort, figures that show, any theme, any width."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
from artifacts import HOST, realistic, write
from stores import Setting, analysed, store

from upft import dossier
from upft.ledger import Ledger
from upft.stages import report

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason=browser.HINT)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    path = browser.program()
    if path is None:
        pytest.skip(browser.HINT)
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=path,
                                         args=["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])])
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    spec, inputs = realistic(root / "cell")
    for role, (name, key, files, lines) in analysed(Setting(looked=True)).items():
        inputs[role] = write(root / "cell" / name / key, files, Ledger(seconds=5), lines, {"spec": {"of": role}})
    (root / "one").mkdir()
    report.run(spec, inputs, root / "one", HOST)
    looked = [Setting(prefix_len=t, seed=seed, tasks=("gsm8k",), looked=True) for t in (4, 8) for seed in (0, 1)]
    return {"one": root / "one" / "report.html", "many": dossier.write(store(root / "store"), root / "many"),
            "looked": dossier.write(store(root / "looked store", looked), root / "looked")}


@pytest.fixture
def show(chromium: Any, pages: dict[str, Path]) -> Iterator[Any]:
    """show(name, width, scheme) -> the page; afterwards: no word on the console, no error, no request but for the page."""
    opened, told, asked = [], [], []

    def show(name: str, width: int = 1200, scheme: str = "light") -> Any:
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(pages[name].as_uri())
        page.wait_for_load_state("networkidle")
        opened.append(context)
        return page

    yield show
    for context in opened:
        context.close()
    assert told == []
    assert asked
    assert {url for url in asked if url not in {page.as_uri() for page in pages.values()}} == set()


@pytest.mark.parametrize("name", ["one", "many", "looked"])
@pytest.mark.parametrize("width", [375, 1200])
def test_the_page_is_no_wider_than_the_screen(show: Any, name: str, width: int) -> None:
    page = show(name, width)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("""[...document.querySelectorAll('main, h1, p, figure, .scroll, .sides, pre, dl')]
        .filter(one => one.getBoundingClientRect().right > innerWidth + 0.5).map(one => one.outerHTML.slice(0, 80))""") == []


@pytest.mark.parametrize("name", ["one", "many", "looked"])
def test_dark_and_light_can_be_read(show: Any, name: str) -> None:
    def light(colour: str) -> float:
        """Relative luminance (WCAG 2)."""
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    grounds = []
    for scheme in ("light", "dark"):
        page = show(name, scheme=scheme)
        ground = light(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        grounds.append(ground)
        for what in ("p", "h1", "td", "th", ".note", "figcaption", "svg text", ".below"):
            if not page.locator(what).count():
                continue
            field = "fill" if what == "svg text" else "color"
            ink = light(page.evaluate(f"getComputedStyle(document.querySelector('{what}')).{field}"))
            contrast = (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05)
            assert contrast >= 4.5, (scheme, what, contrast)
    assert grounds[0] > 0.8
    assert grounds[1] < 0.05


@pytest.mark.parametrize(("name", "least"), [("one", 8), ("many", 4), ("looked", 7)])
def test_figures_are_there_and_seen(show: Any, name: str, least: int) -> None:
    page = show(name)
    figures = page.locator("figure svg")
    assert figures.count() >= least
    for place in range(figures.count()):
        box = figures.nth(place).bounding_box()
        assert box["width"] > 300
        assert box["height"] > 100
        strokes = page.evaluate("""svg => [...svg.querySelectorAll('path')].filter(path => {
            const style = getComputedStyle(path), box = path.getBoundingClientRect();
            return (style.stroke !== 'none' || style.fill !== 'none') && box.width + box.height > 5; }).length""",
                                figures.nth(place).element_handle())
        assert strokes > 5
        named = figures.nth(place).get_attribute("aria-labelledby")
        assert len(page.locator(f"#{named}").text_content()) > 40


def column(page: Any, table: str, place: int) -> list[str]:
    return page.locator(f"{table} tbody tr td:nth-child({place})").all_text_contents()


def test_tables_sort_by_number_and_by_text(show: Any) -> None:
    page = show("many")
    table = "#table-unsupervised + .scroll table"
    heads = page.locator(f"{table} thead th").all_text_contents()
    before = {place: column(page, table, place + 1) for place in range(len(heads))}
    assert heads == ["method", "mean", "gsm8k", "math500", "aime24", "gpqa", "t", "p", "training questions", "seeds",
                     "length"]  # all cells are of one model and data
    place = heads.index("gsm8k") + 1

    def values() -> list[float]:
        return [float(re.match(r"\d+\.\d", text)[0]) for text in column(page, table, place)]  # type: ignore[index]

    was = values()
    button = page.locator(f"{table} thead th:nth-child({place}) button")
    button.click()
    assert values() == sorted(was)
    assert values() != was
    assert page.locator(f"{table} thead th:nth-child({place})").get_attribute("aria-sort") == "ascending"
    button.click()
    assert values() == sorted(was, reverse=True)
    length = heads.index("t") + 1
    page.locator(f"{table} thead th:nth-child({length}) button").click()
    found = column(page, table, length)
    numbers = [int(text) for text in found if text.isdigit()]
    assert numbers == [8, 8, 32, 32]  # ours and the published one, by value: as text 32 would come before 8
    assert not any(text.isdigit() for text in found[4:])
    page.locator(f"{table} thead th:nth-child(1) button").focus()
    page.keyboard.press("Enter")
    methods = column(page, table, 1)
    methods = page.locator(f"{table} tbody tr td:nth-child(1)").evaluate_all("cells => cells.map(cell => cell.dataset.sort)")
    assert methods == sorted(methods, key=str.lower)
    assert {place: sorted(column(page, table, place + 1)) for place in before} == {
        place: sorted(texts) for place, texts in before.items()}, "a cell was lost"


@pytest.mark.parametrize(("width", "seen"), [(1280, ["mean", "gsm8k", "math500", "aime24", "gpqa", "t"]), (390, ["mean"])])
def test_what_was_found_is_on_the_screen_before_what_it_was_found_with(show: Any, width: int, seen: list[str]) -> None:
    page = show("many", width)
    for name in ("unsupervised", "supervised"):
        table = f"#table-{name} + .scroll table"
        there = page.locator(f"{table} thead th").evaluate_all(
            "heads => heads.filter(one => one.getBoundingClientRect().right <= innerWidth).map(one => one.textContent)")
        assert there[:1 + len(seen)] == ["method", *seen]
        tallest = max(page.locator(f"{table} tbody tr").evaluate_all("rows => rows.map(row => row.offsetHeight)"))
        assert tallest <= 130, "a row of more than six lines"
        assert page.locator(f"{table} td .aside").first.text_content() == "t\u00a0=\u00a08, p\u00a0=\u00a00.1"


def test_the_policy_forbids_what_a_model_could_have_smuggled_in(chromium: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    """The same page with a script and an image of somebody else's: neither is obeyed."""
    text = pages["many"].read_text(encoding="utf-8")
    evil = tmp_path / "evil.html"
    evil.write_text(text.replace("</main>", "<script>window.caught = 1</script><img src='file:///nothing.png'></main>"),
                    encoding="utf-8")
    page, told = chromium.new_page(), []
    page.on("console", lambda message: told.append(message.text))
    page.goto(evil.as_uri())
    assert page.evaluate("window.caught") is None
    assert sum("Content Security Policy" in line for line in told) == 2
    page.close()
