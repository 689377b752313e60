"""Test the report: its numbers are those of the files, for any run, and it shows the most informative patches."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import spearmanr

from claris_kaggle.core.files import read_json, write_json
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.patches import patch_id, read_patch
from claris_kaggle.ensembling.ensemble_runs import describe_run, ensemble_runs
from claris_kaggle.ensembling.runs import load_run
from claris_kaggle.evaluation.auc_intervals import measure
from claris_kaggle.evaluation.metrics import auc
from claris_kaggle.evaluation.predictions import Oof, read_oof, write_run_oof, write_test
from claris_kaggle.evaluation.run_metrics import run_metrics
from claris_kaggle.reporting import charts, gallery, templates
from claris_kaggle.reporting.gallery import _confident_errors
from claris_kaggle.reporting.report import (
    _compare_configs,
    _Confusion,
    _count_confusion,
    _describe_section,
    _format_typed_path,
    _mean_rate,
    _read_histories,
    write_report,
)
from tests.support.handmade import make_run, put_with_slides, watch_work

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bare(finished: RunDir, tmp_path: Path) -> RunDir:
    """No more than the two files of predictions, in a folder whose name a page or a chart might stumble over."""
    place = RunDir(tmp_path / '_$x$ <b>&"')
    place.root.mkdir()
    for path in (finished.oof, finished.test):
        shutil.copy(path, place.root)
    return place


@pytest.fixture(scope="module")
def page(report: Path) -> str:
    """The report of the finished run with pictures."""
    return report.read_text("utf-8")


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no charts, where only what stands beside them is looked at."""
    blank = charts._Drawing("<svg></svg>", "")
    monkeypatch.setattr(charts, "_draw_chart", lambda *arguments, **named: blank)


def pictures(page: str) -> list[np.ndarray]:
    """The pictures on the page, in its order."""
    contents = [base64.b64decode(text) for text in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    return [np.asarray(Image.open(io.BytesIO(content))) for content in contents]


def said(page: str) -> str:
    """The text of the page, blanks made one."""
    body = re.sub(r"<style.*?</style>|<svg.*?</svg>|<script.*?</script>", " ", page[page.index("<body") :], flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body)).replace("\xa0", " ")


def test_the_report_holds_everything_itself(page: str) -> None:
    assert page.count('class="chart"') == 7 and "@import" not in page
    assert page.count("<script") == page.count("<script>") == 1 and "fetch(" not in page
    links = re.findall(r'(?:src|href)="([^"]{1,40})', page)
    assert links and all(link.startswith(("#", "data:")) for link in links)
    names = re.findall(r' id="([^"]*)"', page)
    assert len(names) == len(set(names))
    assert not [link for link in links if link[0] == "#" and link[1:] not in names]
    assert "fe00" not in re.sub(r"base64,[^\"]*", "", page)  # every colour's code became its name


def test_the_figures_are_those_of_the_predictions(page: str, finished: RunDir) -> None:
    run, text = load_run(finished), said(page)
    assert "These patches are synthetic." in text
    found = run_metrics(run.oof, run.slides)
    overall = found.overall
    low, high = overall.auc_interval
    assert f"{overall.auc:.4f} 95 % interval {low:.4f} to {high:.4f}, cluster bootstrap over slides" in text
    for row in found.folds:
        assert re.search(rf"{row.fold} {row.patches} \S+ % \d+ {row.auc:.4f}", text)
    counts = _count_confusion(run)
    assert sum(astuple(counts)) == len(run.oof.ids)
    assert f"{counts.missed_malignant}" in text and f"precision {precision(counts):.1f} %" in text
    assert f"Predictions are the mean of 8 views. {'Config'}" in text and "torch" in text


def precision(counts: _Confusion) -> float:
    return 100 * counts.true_malignant / (counts.true_malignant + counts.false_malignant)


def test_pictures_are_the_pixels_of_the_patches_that_are_named(page: str, finished: RunDir) -> None:
    oof = load_run(finished).oof
    rows = [*gallery._confident_errors(oof), *gallery._least_certain(oof)]
    names = re.findall(r'class="id">([^<]+)<', page)
    assert names == [oof.ids[row] for row in rows]
    found = pictures(page)
    assert [patch_id(one) for one in found if one.shape == (96, 96, 3)] == names
    assert sum(one.shape[2] == 4 for one in found) == len(rows)  # each with its map


def test_views_and_share_in_the_centre_are_those_of_the_folds_own_weights(
    page: str, finished: RunDir, generated: DataDir
) -> None:
    from claris_kaggle.core.config import TrainConfig
    from claris_kaggle.inference.evidence import centre_share, explain
    from claris_kaggle.models.factory import create_model
    from claris_kaggle.models.weights import load_finished

    oof, text = load_run(finished).oof, said(page)
    row = gallery._confident_errors(oof)[0]
    config = TrainConfig.from_json(read_json(finished.config), finished.config)
    model = create_model(config.model)
    load_finished(finished.fold(int(oof.fold[row])), model)
    pixels = read_patch(generated.patches("train") / f"{oof.ids[row]}.tif")[None]
    found = explain(model, pixels, config, views=8)
    views = found.view_probabilities[:, 0]
    assert found.maps is not None and found.probabilities[0] == pytest.approx(oof.probabilities[row], abs=1e-5)
    called = "malignant" if oof.probabilities[row] >= 0.5 else "benign"
    agreeing = int(((views >= 0.5) == (called == "malignant")).sum())
    share = 100 * centre_share(found.maps, config.crop)[0]
    said_of_views = f"{agreeing} of 8 views predict {called}, {views.min():.2f} to {views.max():.2f}"
    strongest = f"strongest cell {np.abs(found.maps[0]).max():.2g} in log-odds"
    assert f"{said_of_views} {share:.0f} % of the map in the centre {strongest}" in text
    drawn = next(one for one in pictures(page) if one.shape[2] == 4).astype(int)
    assert ((drawn[:, :, 0] > drawn[:, :, 2]) == (found.maps[0] > 0)).all()  # orange evidence for malignant
    assert np.argmax(drawn[:, :, 3]) == np.argmax(np.abs(found.maps[0]))


@pytest.mark.usefixtures("no_charts")
def test_a_run_of_a_gpu_is_explained_in_the_arithmetic_of_a_cpu(
    finished: RunDir, generated: DataDir, page: str, tmp_path: Path
) -> None:
    run = RunDir(shutil.copytree(finished.root, tmp_path / finished.root.name))
    write_json(run.config, {**read_json(run.config), "precision": "fp16"})
    again = write_report([run], tmp_path / "report.html", data=generated).read_text("utf-8")
    assert re.findall(r'<image [^>]*href="([^"]+)"', again) == re.findall(r'<image [^>]*href="([^"]+)"', page)


@pytest.mark.usefixtures("no_charts")
def test_only_the_patches_that_are_shown_are_read(
    finished: RunDir, generated: DataDir, page: str, tmp_path: Path
) -> None:
    data = DataDir(tmp_path / "data")
    data.patches("train").mkdir(parents=True)
    for name in set(re.findall(r'class="id">([^<]+)<', page)):
        shutil.copy(generated.patches("train") / f"{name}.tif", data.patches("train"))
    again = write_report([finished], tmp_path / "report.html", data=data).read_text("utf-8")
    assert len(pictures(again)) == len(pictures(page))


@pytest.mark.usefixtures("no_charts")
def test_pictures_from_a_pack_are_the_same(finished: RunDir, cache: Path, page: str, tmp_path: Path) -> None:
    again = write_report([finished], tmp_path / "report.html", cache=cache).read_text("utf-8")
    assert all((one == two).all() for one, two in zip(pictures(again), pictures(page), strict=True))


@pytest.mark.usefixtures("no_charts")
def test_without_data_the_page_lists_the_patches_and_says_how_to_see_them(finished: RunDir, tmp_path: Path) -> None:
    page = write_report([finished], tmp_path / "report.html").read_text("utf-8")
    oof = load_run(finished).oof
    assert f"claris report {finished.root} --out report.html --data DIR" in page and "<image" not in page
    assert _format_typed_path(Path.cwd() / "runs" / "my run") == "'runs/my run'"
    assert all(oof.ids[row] in page for row in gallery._confident_errors(oof))


def test_two_files_are_enough_and_what_is_unknown_is_said(bare: RunDir, generated: DataDir, tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")  # without a slide map
    data.root.mkdir()
    for name in ("train", "train_labels.csv", "sample_submission.csv"):
        (data.root / name).symlink_to(generated.root / name)
    page = write_report([bare], tmp_path / "report.html", data=data).read_text("utf-8")
    text = said(page)
    assert "_$x$ &lt;b&gt;" in page and "<b>&" not in page
    for words in (
        "no fold file, so the slides are unknown", "no fold0/history.csv", "no config. Recipe, network, times",
        "No views and no map: _$x$", "assuming independent patches", "slides not known",
    ):  # fmt: skip
        assert words in text
    assert {one.shape for one in pictures(page)} == {(96, 96, 3)}


@pytest.mark.usefixtures("no_charts")
def test_a_page_of_real_patches_has_no_banner_and_an_ensemble_of_synthetic_ones_has(
    finished: RunDir, bare: RunDir, generated: DataDir, tmp_path: Path
) -> None:
    assert "synthetic." not in said(write_report([bare], tmp_path / "report.html").read_text("utf-8"))
    data = DataDir(tmp_path / "data")
    data.root.mkdir()
    for path in (generated.labels, generated.sample):  # without the mark
        shutil.copy(path, data.root)
    ensemble_runs([finished], data, tmp_path / "s.csv", keep=RunDir(tmp_path / "kept"))
    assert "are synthetic." in said(write_report([RunDir(tmp_path / "kept")], tmp_path / "b.html").read_text("utf-8"))


def test_runs_are_compared_on_the_same_patches(finished: RunDir, bare: RunDir, tmp_path: Path) -> None:
    run = load_run(finished)
    labels, values = run.oof.labels, run.oof.probabilities
    right = (0.4 + 0.2 * labels).astype(np.float32)
    write_run_oof(bare.oof, Oof(run.oof.ids, labels, run.oof.fold, right))
    text = said(write_report([finished, bare], tmp_path / "report.html").read_text("utf-8"))
    name = r"_\$x\$ &lt;b&gt;&amp;&#34;"
    assert "2 runs side by side" in text and re.search(name + " against the others", text)
    expected = measure(labels, right, run.slides).compare(measure(labels, values, run.slides))
    low, high = expected.interval
    correlation = spearmanr(right, values).statistic
    row = rf"finished {1 - auc(labels, values):.4f} \S+ to \S+ (\S+|below 0.001) {correlation:.3f} "
    assert re.search(row, text) and f"{low:+.4f} to {high:+.4f}" in text
    assert f"The OOF AUC of the plain mean of all runs is {auc(labels, (right + values) / 2):.4f}" in text


@pytest.mark.usefixtures("no_charts")
@pytest.mark.parametrize("runs", [1, 3])
def test_each_run_and_their_mean_is_resampled_once_and_each_table_read_once(
    runs: int, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [put_with_slides(tmp_path, make_run(f"run{seed}", seed)).root for seed in range(runs)]
    resampled, read = watch_work(monkeypatch)
    assert call("report", *places, "--out", tmp_path / "report.html")[0] == 0
    means = int(runs > 1)  # the mean of all runs
    assert len(resampled) == len(set(resampled)) == runs + means
    assert len(read) == len(set(read)) == 3 * runs


@pytest.mark.usefixtures("no_charts")
def test_a_report_reads_named_columns_of_other_tools(call: Call, tmp_path: Path) -> None:
    run = put_with_slides(tmp_path, make_run("other", 1)).root
    for name in ("oof.csv", "test.csv"):
        (run / name).write_text((run / name).read_text("utf-8").replace("probability", "xx", 1), "utf-8")
    typed = ["report", run, "--out", tmp_path / "report.html"]
    assert call(*typed)[0] == 1
    assert call(*typed, "--columns", "xx=probability")[0] == 0
    assert call(*typed, "--columns", "xx=score")[0] == 2


@pytest.mark.usefixtures("no_charts")
def test_runs_over_other_patches_are_shown_and_not_compared(finished: RunDir, bare: RunDir, tmp_path: Path) -> None:
    run = load_run(finished)
    write_run_oof(bare.oof, Oof(run.oof.ids[:-1], run.oof.labels[:-1], run.oof.fold[:-1], run.oof.probabilities[:-1]))
    text = said(write_report([finished, bare], tmp_path / "report.html").read_text("utf-8"))
    assert "different patches or labels" in text and "1 training id in only one of them" in text


@pytest.mark.usefixtures("no_charts")
def test_damaged_weights_cost_the_maps_of_their_fold_alone(
    finished: RunDir, generated: DataDir, page: str, tmp_path: Path
) -> None:
    shutil.copytree(finished.root, tmp_path / "run")
    run = RunDir(tmp_path / "run")
    oof = read_oof(run.oof)
    run.fold(int(oof.fold[_confident_errors(oof)[0]])).weights.write_bytes(b"x")
    text = write_report([run], tmp_path / "report.html", data=generated).read_text("utf-8")
    assert "not the weights of the finished fold" in text
    assert 0 < sum(one.shape[2] == 4 for one in pictures(text)) < sum(one.shape[2] == 4 for one in pictures(page))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: run.fold(0).history.write_text("epoch,loss\n1,2\n"), "history.csv: the header is"),
        (lambda run: run.fold(0).history.write_bytes(run.fold(0).history.read_bytes()[:-5]), "history.csv: cut off"),
        (lambda run: run.metrics.write_text("{"), "metrics.json: not a complete JSON"),
    ],
)
def test_a_faulty_file_is_one_line_and_the_page_stays(
    call: Call, finished: RunDir, tmp_path: Path, spoil: Callable[[RunDir], object], words: str
) -> None:
    shutil.copytree(finished.root, tmp_path / "run")
    out = tmp_path / "report.html"
    out.write_text("the page before")
    spoil(RunDir(tmp_path / "run"))
    code, _, told = call("report", tmp_path / "run", "--out", out)
    assert code == 1 and words in told and told.count("\n") == 1
    assert out.read_text() == "the page before"


def test_the_rate_of_all_folds_is_their_images_by_their_seconds() -> None:
    slow = pd.DataFrame({"seconds": [30.0, 10.0], "images_per_second": [10.0, 30.0]})
    fast = pd.DataFrame({"seconds": [10.0], "images_per_second": [60.0]})
    assert _mean_rate([slow, fast]) == pytest.approx((300 + 300 + 600) / 50)
    assert _mean_rate([fast.assign(seconds=0.0)]) == 60


def test_epochs_are_whole_numbers_even_where_there_is_but_one() -> None:
    one = pd.DataFrame({"epoch": [1.0], "train_loss": [0.6], "valid_loss": [0.5], "auc": [0.8]})
    for drawing in charts._draw_learning("a", {0: one}):
        assert "1.02" not in re.findall(r"<text[^>]*>([^<]*)</text>", drawing.svg)


def test_the_verb_prints_the_page_and_refuses_other_names(call: Call, finished: RunDir, tmp_path: Path) -> None:
    out, ledger = tmp_path / "report.html", tmp_path / "ledger.csv"
    header = "time,ref,file,sha256,runs,commit,oof_auc,oof_low,oof_high,public,private,status\n"
    ledger.write_text(header + "2026-01-02T03:04:05Z,7,a.csv,aa,first,c,0.97,0.96,0.98,0.95,0.94,complete\n")
    code, shown, _ = call("report", finished.root, "--out", out, "--ledger", ledger)
    assert code == 0 and shown == f"{out}\n"
    assert "7: public 0.9500 lies below the OOF interval" in out.read_text("utf-8")
    code, _, told = call("report", finished.root, "--out", tmp_path / "report.pdf")
    assert code == 2 and "ends in .html" in told
    code, _, told = call("report", finished.root, "--out", out, "--data", tmp_path)
    assert code == 2 and "the competition's folder" in told


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1, width=32)), min_size=1, max_size=60))
def test_the_patches_chosen_are_the_worst_and_the_least_certain(rows: list[tuple[bool, float]]) -> None:
    labels = np.array([label for label, _ in rows], dtype=np.int8)
    values = np.array([value for _, value in rows], dtype=np.float32)
    oof = Oof([f"{row:03d}" for row in range(len(rows))], labels, np.zeros(len(rows), dtype=np.int64), values)
    errors, unsure = gallery._confident_errors(oof), gallery._least_certain(oof)
    loss = np.abs(values - labels)
    wrong = [row for row in range(len(rows)) if (values[row] >= 0.5) != labels[row]]
    assert len(errors) == min(gallery._SHOWN_PATCHES, len(wrong)) and set(errors) <= set(wrong)
    assert sorted(loss[errors], reverse=True) == sorted(loss[wrong], reverse=True)[: gallery._SHOWN_PATCHES]
    away = np.abs(values - 0.5)
    assert sorted(away[unsure]) == sorted(away)[: gallery._SHOWN_PATCHES]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=3000))
def test_a_thinned_curve_keeps_its_ends_and_its_points(values: list[float]) -> None:
    across, up = np.sort(values), np.linspace(0, 1, len(values))
    few, of_up = charts._thin_curve(across, up)
    assert len(few) <= charts._POINTS + 2 and (few[0], few[-1]) == (across[0], across[-1])
    assert set(zip(few, of_up, strict=True)) <= set(zip(across, up, strict=True))


def test_charts_of_many_patches_stay_small(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = 5_000
    labels = (generator.random(rows) < 0.4).astype(np.int8)
    values = (1 / (1 + np.exp(-2 * labels + 1 + generator.normal(0, 1, rows)))).astype(np.float32)
    run = RunDir(tmp_path / "run")
    run.root.mkdir()
    ids = [f"{row:040x}" for row in range(rows)]
    write_run_oof(run.oof, Oof(ids, labels, np.arange(rows) % 5, values))
    write_test(run.test, ids[:500], values[:500])
    assert write_report([run], tmp_path / "report.html").stat().st_size < 200_000


def test_letters_and_lines_stand_out_in_light_and_dark() -> None:
    """WCAG AA: 4.5 to 1 for letters, 3 to 1 for what is drawn."""
    css = (Path(templates.__file__).parent / "page.css.jinja").read_text("utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w+)", part)) for part in css.split("* { box-sizing")[0].split("@media")
    )
    drawn = [name for name in charts._NAMES if name not in ("ink", "muted", "line")]
    for colours in (light, dark):
        for ground in ("paper", "card", "tint"):
            assert all(contrast(colours[name], colours[ground]) >= 4.5 for name in ("ink", "muted", "accent"))
        assert all(contrast(colours[name], colours["card"]) >= 3 for name in drawn)


def contrast(one: str, other: str) -> float:
    """Of two colours, 1 to 21, as WCAG 2 counts it."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.usefixtures("no_charts")
def test_copies_of_fold_folders_are_no_folds(finished: RunDir, tmp_path: Path) -> None:
    run = RunDir(shutil.copytree(finished.root, tmp_path / finished.root.name))
    for name in ("fold0_old", "fold0_1", "fold01", "fold"):
        shutil.copytree(run.fold(0).root, run.root / name)
    assert list(run.fold_dirs()) == run.finished_folds() == list(_read_histories(run)) == [0, 1, 2]
    assert describe_run(run).weights_sha256 == describe_run(finished).weights_sha256
    write_report([run], tmp_path / "report.html")


def test_configs_of_other_tools_may_hold_lists() -> None:
    configs = {"a": {"lrs": [1, 2], "steps": {"n": 1}}, "b": {"lrs": [1, 3], "steps": {"n": 1}}}
    assert _compare_configs(configs).fields == {"lrs": [[1, 2], [1, 3]]}


def test_a_ledger_that_is_named_must_be_there(call: Call, finished: RunDir, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    code, shown, said = call("report", finished.root, "--out", out, "--ledger", tmp_path / "nosuch.csv")
    assert (code, shown) == (2, "") and "nosuch.csv: no such file" in said and not out.exists()


def test_one_fold_has_no_spread_between_folds(finished: RunDir) -> None:
    run = load_run(finished)
    oof = replace(run.oof, fold=np.zeros_like(run.oof.fold))
    assert run_metrics(oof).overall.fold_auc_std is None
    section = _describe_section(replace(run, oof=oof), finished, "run1", None, None)
    assert section.overall.fold_auc_mean == section.folds[0].auc


@pytest.mark.usefixtures("no_charts")
def test_the_page_says_what_the_run_costs(finished: RunDir, tmp_path: Path) -> None:
    page = write_report([finished], tmp_path / "page.html").read_text("utf-8")
    assert "0.000581 GFLOP an image; about" in page and "on two T4s (estimated)" in page


@pytest.mark.usefixtures("no_charts")
def test_the_next_command_is_named(
    call: Call, finished: RunDir, bare: RunDir, generated: DataDir, tmp_path: Path
) -> None:
    out, ensemble = tmp_path / "report.html", f"next: claris ensemble {finished.root}"
    told = call("report", finished.root, "--out", out)[2]
    assert f"next: claris report {finished.root} --out {out} --data DIR\n" in told
    told = call("report", finished.root, "--out", out, "--data", generated.root)[2]
    assert f"{ensemble} --data {generated.root} --out submission.csv\n" in told
    copy = shutil.copytree(finished.root, tmp_path / "copy")
    told = call("report", finished.root, copy, "--out", out, "--data", generated.root)[2]
    assert f"{ensemble} {copy} --data {generated.root} --out submission.csv\n" in told
    assert "next: " not in call("report", finished.root, bare.root, "--out", out, "--data", generated.root)[2]


@pytest.mark.usefixtures("no_charts")
def test_a_fold_given_as_a_run_is_described_as_a_part_of_its_run(finished: RunDir, tmp_path: Path) -> None:
    text = said(write_report([RunDir(finished.fold(0).root)], tmp_path / "report.html").read_text("utf-8"))
    assert "OOF AUC of fold 0 only" in text and "cluster bootstrap over slides" in text
    assert "tiny from random weights" in text and "Validation AUC" in text
    assert "no config" not in text and "no fold file" not in text and "Caution" not in text


@pytest.mark.usefixtures("no_charts")
def test_slides_that_one_run_knows_hold_for_the_others_over_the_same_patches(
    finished: RunDir, bare: RunDir, tmp_path: Path
) -> None:
    text = said(write_report([bare, finished], tmp_path / "report.html").read_text("utf-8"))
    assert text.count("cluster bootstrap over slides") >= 3 and "assuming independent patches" not in text
