"""Test the report in a real browser: it renders, sends no requests, fits a phone screen, and is accessible."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from claris_kaggle.core.paths import RunDir
from claris_kaggle.ensembling.runs import load_run
from tests.conftest import build_once, open_page


@pytest.fixture(scope="module")
def pages(finished: RunDir, report: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of one run with pictures, and that of two of which one is no more than its predictions."""
    from claris_kaggle.reporting.report import write_report

    def build(folder: Path) -> None:
        bare = RunDir(folder / "bare")
        bare.root.mkdir(parents=True)
        for path in (finished.oof, finished.test):
            shutil.copy(path, bare.root)
        ledger = folder / "ledger.csv"
        ledger.write_text(LEDGER, "utf-8")
        write_report([finished, bare], folder / "two.html", ledger=ledger)

    return {"one": report, "two": build_once(tmp_path_factory, "report-of-two", build) / "two.html"}


LEDGER = """time,ref,file,sha256,runs,commit,oof_auc,oof_low,oof_high,public,private,status
2026-01-02T03:04:05Z,1,a.csv,aa,finished,c,0.9712,0.9650,0.9760,0.9601,0.9588,complete
"""


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [("one", 360, "light"), ("one", 1280, "dark"), ("two", 360, "dark"), ("two", 1280, "light")],
)
def test_the_report_renders_alone_and_fits(
    browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    page, faults = open_page(browser, pages[name].as_uri(), width, scheme)
    assert not faults
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    tables = "[...document.querySelectorAll('.wide')]"
    assert not page.evaluate(f"{tables}.filter(one => one.scrollWidth > one.clientWidth).map(one => one.ariaLabel)")
    label = page.locator(".rows td").first.evaluate("one => getComputedStyle(one, '::before').content")
    assert (label != "none") == (width == 360), "narrow tables name the column of each value"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == (scheme == "dark")
    charts = page.locator(".chart svg")
    assert charts.count() >= 6 and all(box["width"] > 200 for box in (one.bounding_box() for one in charts.all()))
    strokes = page.evaluate("[...document.querySelectorAll('.chart path')].map(e => getComputedStyle(e).stroke)")
    assert not [stroke for stroke in strokes if "var(" in stroke or "254, 0" in stroke]
    page.close()


@pytest.mark.parametrize(("name", "scheme"), [("one", "light"), ("one", "dark"), ("two", "light")])
def test_no_rule_of_accessibility_is_broken(browser: Any, pages: dict[str, Path], name: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not here: pip install '.[dev]'")
    page, _ = open_page(browser, pages[name].as_uri(), 1280, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    found = axe.Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"]})
    assert not found.response["violations"], found.generate_report()
    assert len(found.response["passes"]) > 20  # the rules were looked at, and there was something to look at
    page.close()


def test_the_report_can_be_walked_by_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    page, _ = open_page(browser, pages["one"].as_uri(), 1280, "light")
    page.keyboard.press("Tab")
    skip = page.evaluate("[document.activeElement.className, document.activeElement.getBoundingClientRect().left]")
    assert skip[0] == "skip" and skip[1] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    closed = page.locator("details:not([open])").first
    summary = closed.locator("summary").element_handle()
    summary.focus()
    page.keyboard.press("Enter")
    assert summary.evaluate("one => one.parentElement.open")
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(e => +e.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    page.close()


def test_on_paper_everything_is_open_and_light(browser: Any, pages: dict[str, Path]) -> None:
    page, _ = open_page(browser, pages["one"].as_uri(), 800, "dark")
    is_open = "document.querySelector('dl.words').checkVisibility()"
    assert not page.evaluate(is_open)
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(is_open) and page.locator("nav").is_hidden()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.close()


def test_curves_can_be_hidden_and_read_at_the_pointer(browser: Any, pages: dict[str, Path], finished: RunDir) -> None:
    page, faults = open_page(browser, pages["one"].as_uri(), 1280, "light")
    chart = page.locator(".chart", has_text="AUC of each fold and of all folds pooled")
    chart.scroll_into_view_if_needed()
    box = chart.locator("svg").bounding_box()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.5 * box["height"])
    name, false, true = re.fullmatch(
        r"(\S.*): false positive rate ([\d.]+), true positive rate ([\d.]+)",
        chart.locator(".reading").inner_text(),
    ).groups()  # type: ignore[union-attr]
    oof = load_run(finished).oof
    rows = np.ones(len(oof.ids), bool) if name == "all" else oof.fold == int(name.split()[1])
    points = np.array(roc_curve(oof.labels[rows], oof.probabilities[rows], drop_intermediate=False)[:2]).T
    assert np.abs(points - [float(false), float(true)]).max(axis=1).min() < 0.005
    first, curve = chart.locator(".series button").first, chart.locator("[data-series='1']")
    first.click()
    assert first.get_attribute("aria-pressed") == "false" and not curve.is_visible()
    first.click()
    assert curve.is_visible() and not faults
    assert chart.locator(".series").inner_text().split("\n")[:2] == ["Show:", "fold 0"]
    page.close()


def test_pictures_are_drawn_and_their_maps_over_them(browser: Any, pages: dict[str, Path]) -> None:
    page, _ = open_page(browser, pages["one"].as_uri(), 1280, "light")
    sizes = page.evaluate("""() => Promise.all([...document.querySelectorAll('.patch image')].map(async one => {
        const image = new Image(); image.src = one.getAttribute('href'); await image.decode();
        return [image.naturalWidth, image.naturalHeight] }))""")
    assert [96, 96] in sizes and all(width == height for width, height in sizes)
    page.close()
