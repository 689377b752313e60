"""Test `claris classify`: the run's probabilities, for files of any kind and size, marked as not for diagnosis."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from claris_kaggle.core.errors import ClarisError, RunError, UsageError
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.arrays import Pixels
from claris_kaggle.data.patches import read_patch
from claris_kaggle.evaluation.predictions import read_test
from claris_kaggle.inference.fold_models import FoldModels, load_trained
from claris_kaggle.reporting.pictures import MAP_LIMITS, _png_uri, _tint, draw_heat, draw_map, jpeg_uri
from claris_kaggle.serving.classify import NOTICE, ClassifyJob, classify_files, classify_image
from claris_kaggle.serving.images import _window_starts
from tests.conftest import claris, open_page

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def trained(finished: RunDir) -> FoldModels:
    return load_trained(finished.root)


@pytest.fixture
def scan(generated: DataDir, tmp_path: Path) -> Path:
    """A picture of 3 x 2 patches and a bit."""
    patches = [read_patch(path) for path in sorted(generated.patches("test").iterdir())[:6]]
    whole = np.concatenate([np.concatenate(patches[:3], axis=1), np.concatenate(patches[3:], axis=1)], axis=0)
    Image.fromarray(np.pad(whole, ((0, 10), (0, 7), (0, 0)), mode="reflect")).save(tmp_path / "scan.png")
    return tmp_path / "scan.png"


def test_answers_are_those_that_the_run_predicted(trained: FoldModels, finished: RunDir, generated: DataDir) -> None:
    test = read_test(finished.test)
    paths = [generated.patches("test") / f"{name}.tif" for name in test.ids]
    found = [one for one in classify_files(trained, paths) if not isinstance(one, ClarisError)]
    assert [one.name for one in found] == [str(path) for path in paths]
    np.testing.assert_allclose([one.probability for one in found], test.probabilities, rtol=0, atol=1e-6)
    one = found[0]
    assert list(one.fold_probabilities) == [0, 1, 2] and len(one.view_probabilities) == 8
    assert np.mean(list(one.fold_probabilities.values())) == pytest.approx(one.probability, abs=1e-6)
    assert np.mean(one.view_probabilities) == pytest.approx(one.probability, abs=1e-6)
    assert one.map is not None and one.map.sum() + one.bias == pytest.approx(one.log_odds, abs=1e-5)
    assert one.centre_share is not None and 0 <= one.centre_share <= 1 and one.calibrated is not None
    assert {one.verdict for one in found} <= {"benign", "malignant"}


def test_a_larger_image_is_its_windows(trained: FoldModels, scan: Path) -> None:
    pixels = np.asarray(Image.open(scan))
    job = ClassifyJob(views=1, stride=48)
    found = classify_image(trained, pixels, "scan", job)
    heat = found.heat
    assert heat is not None and heat.probabilities.shape == (4, 6)
    assert (heat.tops[-1], heat.lefts[-1]) == (pixels.shape[0] - 96, pixels.shape[1] - 96)
    for row, column in ((0, 0), (1, 2), (3, 5)):
        top, left = heat.tops[row], heat.lefts[column]
        one = classify_image(trained, pixels[top : top + 96, left : left + 96], "window", job)
        assert one.probability == pytest.approx(heat.probabilities[row, column], abs=1e-5)
    assert found.probability == pytest.approx(heat.probabilities.max(), abs=1e-5)
    assert np.array_equal(found.patch, pixels[found.top : found.top + 96, found.left : found.left + 96])
    assert found.malignant_windows == (heat.probabilities >= 0.5).mean()


@given(st.integers(96, 2000), st.integers(1, 96))
@settings(deadline=None)
def test_windows_cover_the_side_and_never_leave_it(side: int, stride: int) -> None:
    starts = _window_starts(side, stride)
    assert starts[0] == 0 and starts[-1] == side - 96
    assert len(starts) == 1 or 0 < np.diff(starts).min() <= np.diff(starts).max() <= stride


def test_the_verb_prints_a_row_an_image_and_that_it_is_no_diagnosis(
    call: Call, finished: RunDir, generated: DataDir, scan: Path
) -> None:
    patch = sorted(generated.patches("test").iterdir())[0]
    code, shown, said = call("classify", "--run", finished.root, patch, scan, "--views", 1)
    page = f"next: claris classify --run {finished.root} {patch} {scan} --views 1 --html answers.html"
    assert code == 0 and said.splitlines() == ["only one view, so there is no range over views (-)", page]
    header, first, second, last = shown.splitlines()
    assert header.split() == ["probability", "answer", "folds", "views", "centre", "image"]
    assert re.fullmatch(rf"0\.\d{{4}} +(benign|malignant|uncertain) +[\d.]+ to [\d.]+ +- +\d+% +{patch}.*", first)
    assert re.search(
        r"scan\.png \([\d.]+% of 40 windows malignant; highest \d+ px from the left, \d+ px from the top\)", second
    )
    assert last == NOTICE


def test_json_and_page_say_the_same_and_hold_all_they_need(
    call: Call, finished: RunDir, generated: DataDir, scan: Path, tmp_path: Path
) -> None:
    folder, page = generated.patches("test"), tmp_path / "answers.html"
    code, shown, _ = call("classify", "--run", finished.root, scan, folder, "--views", 1, "--json", "--html", page)
    found = json.loads(shown)
    assert code == 0 and found["notice"] == NOTICE and found["faults"] == [] and len(found["images"]) == 71
    assert found["run"]["folds"] == [0, 1, 2] and found["run"]["views"] == 1 and 0 < found["run"]["oof_auc"] <= 1
    first = found["images"][0]
    assert first["width"] == 295 and first["windows"]["lefts"][-1] == 199 and len(first["map"]) == 12
    text = page.read_text()
    assert text.count(NOTICE) == 2 and text.count("<section id=") == 71
    assert "The networks were trained on synthetic patches" in text
    assert "Overview" in text and str(tmp_path) not in text and str(generated.root) not in text
    assert "<script" not in text and not re.search(r"(src|href)=\"(?!data:|#image-)", text)
    assert text.count("<img ") == text.count(' alt="') == 1 + 2 * 71
    assert text.count(MAP_LIMITS) == text.count("no range over views (-)") == 1
    strongest = f"{np.abs(np.array(first['map'])).max():.2g}"
    assert f"<span>−{strongest}</span><span>0</span><span>+{strongest}</span>" in text
    assert "<span>0</span><span>0.500</span><span>1</span>" in text
    assert f"{first['probability']:.3f}" in text


def test_a_faulty_file_is_named_and_the_others_are_done(
    call: Call, finished: RunDir, generated: DataDir, tmp_path: Path
) -> None:
    patches = sorted(generated.patches("test").iterdir())[:3]
    (tmp_path / "cut.tif").write_bytes(patches[0].read_bytes()[:9999])
    (tmp_path / "page.png").write_text("<html>")
    Image.new("RGB", (64, 64)).save(tmp_path / "small.png")
    names = [patches[0], tmp_path / "cut.tif", patches[1], tmp_path / "page.png", tmp_path / "no.png", patches[2]]
    rows = tmp_path / "answers.csv"
    code, shown, said = call("classify", "--run", finished.root, *names, "--views", 1, "--csv", rows)
    assert code == 1 and [row.split()[7] for row in shown.splitlines()[1:-1]] == list(map(str, patches))
    written = rows_of(rows)
    assert [row["name"] for row in written] == list(map(str, names))
    assert [bool(row["error"]) for row in written] == [not row["answer"] for row in written] == [False, True] * 2 + [
        True, False,
    ]  # fmt: skip
    assert "cut.tif: damaged or cut off" in written[1]["error"] and written[1]["error"] in said
    assert written[0]["fold_low"] and not written[0]["view_low"]  # one view has no range
    assert (
        "cut.tif: damaged or cut off" in said
        and "page.png: not a readable image" in said
        and "no.png: file not found" in said
    )
    assert said.splitlines()[-1] == "claris: 3 of 6 images not classified"
    code, shown, said = call("classify", "--run", finished.root, tmp_path / "small.png", "--json")
    assert code == 1 and "64 x 64 pixels; expected at least 96 x 96" in said and said.count("\n") == 1
    assert len(json.loads(shown)["faults"]) == 1


def test_names_that_are_no_text_are_spelt_out(call: Call, finished: RunDir, generated: DataDir, tmp_path: Path) -> None:
    source = sorted(generated.patches("test").iterdir())[0]
    good, bad = (tmp_path / os.fsdecode(name) for name in (b"good\xe9.tif", b"bad\xe9.tif"))
    try:
        good.write_bytes(source.read_bytes())
        bad.write_text("bad")
    except OSError:
        pytest.skip("this disk takes no such names")
    page = tmp_path / "page.html"
    code, shown, said = call("classify", "--run", finished.root, good, bad, source, "--html", page)
    assert (
        code == 1
        and r"good\udce9.tif" in shown
        and str(source) in shown
        and r"bad\udce9.tif: not a readable image" in said
    )
    assert r"good\udce9.tif" in page.read_text("utf-8") and r"bad\udce9.tif" in page.read_text("utf-8")


def test_a_tilde_may_begin_a_name_and_a_long_name_stops_nobody(
    call: Call, finished: RunDir, generated: DataDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~t.tif").write_bytes(sorted(generated.patches("test").iterdir())[0].read_bytes())
    code, shown, said = call("classify", "--run", finished.root, "n" * 300 + ".tif", "~t.tif")
    assert code == 1 and "~t.tif" in shown and "File name too long" in said and "1 of 2 images" in said


def test_what_the_disk_refuses_anywhere_is_one_line(call: Call, generated: DataDir, tmp_path: Path) -> None:
    where = ["--data", generated.root, "--out", tmp_path / "s.csv"]
    code, shown, said = call("ensemble", "n" * 300, *where)
    assert (code, shown) == (1, "") and said.count("\n") == 1 and "File name too long" in said
    program = [sys.executable, "-m", "claris_kaggle", "completion", "bash"]
    full = subprocess.run(["sh", "-c", '"$@" > /dev/full', "sh", *program], capture_output=True, text=True)
    assert full.returncode == 1 and "no space left" in full.stderr and full.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--threshold", "high"], "a number between 0 and 1, or oof"),
        (["--threshold", "1.5"], "--threshold is 1.5"),
        (["--stride", "97"], "--stride is 97"),
        (["--views", "3"], "--views is 3"),
        (["--max-pixels", "5"], "--max-pixels is 5"),
        (["--html", "answers.txt"], "ends in .html"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_code_2(
    call: Call, finished: RunDir, generated: DataDir, flags: list[str], words: str
) -> None:
    code, shown, said = call("classify", "--run", finished.root, generated.patches("test"), *flags)
    assert code == 2 and words in said and said.count("\n") == 1


def test_too_many_windows_are_refused(trained: FoldModels) -> None:
    with pytest.raises(UsageError, match=r"windows with a stride of 1; .*larger --stride"):
        classify_image(trained, np.zeros((500, 500, 3), dtype=np.uint8), "large", ClassifyJob(stride=1))
    with pytest.raises(UsageError, match=r"uint8 \[H, W, 3\]"):
        classify_image(trained, np.zeros((95, 500, 3), dtype=np.uint8))


def test_the_runs_own_threshold_can_be_asked_for(call: Call, finished: RunDir, generated: DataDir) -> None:
    patch = sorted(generated.patches("test").iterdir())[0]
    code, shown, _ = call("classify", "--run", finished.root, patch, "--threshold", "oof", "--json")
    overall = json.loads(finished.metrics.read_text())["overall"]
    assert code == 0 and json.loads(shown)["images"][0]["threshold"] == overall["best_threshold"]


def test_a_run_in_the_making_answers_with_the_folds_that_are_finished(
    call: Call, finished: RunDir, generated: DataDir, tmp_path: Path
) -> None:
    run = RunDir(shutil.copytree(finished.root, tmp_path / "run"))
    run.metrics.unlink()
    run.fold(1).weights_manifest.unlink()
    patch = sorted(generated.patches("test").iterdir())[0]
    code, shown, _ = call("classify", "--run", run.root, patch, "--json")
    found = json.loads(shown)
    assert code == 0 and found["run"]["folds"] == [0, 2] and found["images"][0]["calibrated"] is None
    code, _, said = call("classify", "--run", run.root, patch, "--threshold", "oof")
    assert code == 2 and "run has no OOF predictions" in said
    run.fold(0).weights.write_bytes(run.fold(0).weights.read_bytes()[:-1])
    with pytest.raises(RunError, match="not the weights of the finished fold"):
        load_trained(run.root)
    for fold in (0, 2):
        run.fold(fold).weights_manifest.unlink()
    with pytest.raises(RunError, match="no finished fold"):
        load_trained(run.root)
    with pytest.raises(RunError, match=r"a folder of runs; expected one run. Give .*/run$"):
        load_trained(tmp_path)


def test_one_fold_alone_gets_its_statistics_from_predict_and_has_no_range(
    call: Call, finished: RunDir, generated: DataDir, cache: Path, tmp_path: Path
) -> None:
    run = RunDir(shutil.copytree(finished.root, tmp_path / "run"))
    for path in (run.statistics, run.metrics, run.fold(0).weights_manifest, run.fold(2).weights_manifest):
        path.unlink()
    code, _, said = call("predict", "--data", generated.root, "--run", run.root, "--cache", cache)
    assert code == 0 and "fold 0, 2 without weights" in said
    assert run.statistics.read_bytes() == finished.statistics.read_bytes()
    patch, page = sorted(generated.patches("test").iterdir())[0], tmp_path / "page.html"
    code, shown, said = call("classify", "--run", run.root, patch, "--fast", "--html", page)
    assert code == 0 and "image_statistics.json" not in said
    assert said.count("only one fold and one view, so there is no range (-)") == 1
    assert re.fullmatch(r"[\d.]+ +[a-z]+ +- +- +\d+% +.*", shown.splitlines()[1])
    text = page.read_text()
    assert text.count("Only one fold and one view, so there is no range (-).") == 1
    assert text.count("<td>-</td>") == 2 and not re.search(r"[\d.]+ to [\d.]+", text)
    assert '<svg class="strip"' not in text and "<h1>Classification of images</h1>" in text


@pytest.mark.parametrize("command", ["classify --run FOLD IMAGE", "serve --run FOLD --port 0", "export FOLD --out NEW"])
def test_the_folder_of_a_fold_names_its_run(
    call: Call, finished: RunDir, generated: DataDir, tmp_path: Path, command: str
) -> None:
    image = sorted(generated.patches("test").iterdir())[0]
    values = {"FOLD": finished.fold(0).root, "IMAGE": image, "NEW": tmp_path / "new"}
    code, shown, said = call(*(values.get(word, word) for word in command.split()))
    assert (code, shown) == (1, "") and said.count("\n") == 1
    assert "fold0: the folder of one fold; expected " in said and f"Give the run's folder: {finished.root}\n" in said


def test_the_folder_of_a_fold_is_recognised_from_inside(
    call: Call, finished: RunDir, generated: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.fold(0).root)
    code, _, said = call("predict", "--data", generated.root, "--run", ".")
    assert code == 1 and f"Give the run's folder: {finished.root}\n" in said


@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_every_reason_of_the_overview_is_readable_without_scrolling(
    browser: Any, call: Call, finished: RunDir, generated: DataDir, tmp_path: Path, width: int
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    long = tmp_path / f"{'long_name_' * 9}.png"
    Image.fromarray(noise).save(long)
    patch, out = sorted(generated.patches("test").iterdir())[0], tmp_path / "page.html"
    assert call("classify", "--run", finished.root, long, patch, "--html", out)[0] == 0
    page, faults = open_page(browser, out.as_uri(), width, "light")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    card = page.locator(".overview").bounding_box()
    for cell in page.locator(".overview td").all():
        box = cell.bounding_box()
        assert box is None or card["x"] <= box["x"] and box["x"] + box["width"] <= card["x"] + card["width"]
    reason = page.locator(".overview .reason").first
    assert "does not resemble" in reason.inner_text() and reason.bounding_box()["width"] >= 250
    assert reason.bounding_box()["height"] < 120 and not faults
    page.close()


def test_pictures_show_what_speaks_for_and_against_in_its_place() -> None:
    grey = np.full((96, 96, 3), 128, dtype=np.uint8)
    parts = np.zeros((3, 3), dtype=np.float32)
    parts[0, 2], parts[2, 0] = 2, -1
    drawn = draw_map(grey, parts, 96).astype(int)
    assert drawn.shape == (96, 96, 3)
    assert drawn[3, 93, 0] > drawn[3, 93, 2] and drawn[93, 3, 2] > drawn[93, 3, 0]
    assert drawn[3, 3].tolist() == [128, 128, 128] and drawn[32, 40].tolist() == drawn[50, 63].tolist() == [0, 0, 0]
    assert (draw_map(grey, np.ones((2, 2), dtype=np.float32), 64)[:16] == 128).all()
    assert np.array_equal(_tint(grey, np.zeros((96, 96))), grey)
    pink = np.broadcast_to(np.array([230, 120, 180], dtype=np.uint8), grey.shape)
    assert np.ptp(draw_map(pink, parts, 96)[3, 3]) == 0  # the stain's colour is no evidence


def test_a_picture_to_look_at_is_small_and_shows_the_patch(generated: DataDir) -> None:
    patch = read_patch(sorted(generated.patches("test").iterdir())[0])
    exact, small = _png_uri(patch), jpeg_uri(patch)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(small.split(",")[1]))))
    assert len(small) < len(exact) / 2 and np.abs(shown.astype(int) - patch).mean() < 6


def test_heat_lies_where_the_windows_are_and_not_on_the_rim() -> None:
    white = np.full((192, 288, 3), 255, dtype=np.uint8)
    tops, lefts = _window_starts(192, 96), _window_starts(288, 96)
    probabilities = np.full((2, 3), 0.1, dtype=np.float32)
    probabilities[1, 2] = 0.9
    drawn = draw_heat(white, tops, lefts, probabilities, 0.5).astype(int)
    assert drawn.shape == white.shape and (drawn[:32] == 255).all() and (drawn[:, :32] == 255).all()
    assert drawn[140, 240, 0] > drawn[140, 240, 2] and drawn[40, 40, 0] < drawn[40, 40, 2]


def test_a_process_of_its_own_answers_too(finished: RunDir, generated: DataDir, tmp_path: Path) -> None:
    test = read_test(finished.test)
    for name in test.ids[:5]:
        shutil.copy(generated.patches("test") / f"{name}.tif", tmp_path)
    done = claris("classify", "--run", finished.root, tmp_path, "--json")
    assert done.returncode == 0 and done.stderr == ""
    answers = {Path(one["name"]).stem: one["probability"] for one in json.loads(done.stdout)["images"]}
    np.testing.assert_allclose([answers[name] for name in test.ids[:5]], test.probabilities[:5], rtol=0, atol=1e-6)
    assert len(answers) == 5


def test_subfolders_csv_and_the_fast_way(
    call: Call, finished: RunDir, generated: DataDir, scan: Path, tmp_path: Path
) -> None:
    deeper = tmp_path / "scans" / "deeper"
    deeper.mkdir(parents=True)
    shutil.copy(scan, deeper)
    shutil.copy(sorted(generated.patches("test").iterdir())[0], deeper.parent)
    rows, page = tmp_path / "answers.csv", tmp_path / "answers.html"
    flags = ["--recursive", "--fast", "--csv", rows, "--html", page, "--json"]
    code, shown, _ = call("classify", "--run", finished.root, deeper.parent, *flags)
    found = json.loads(shown)
    aucs = {one["fold"]: one["auc"] for one in json.loads(finished.metrics.read_text())["folds"]}
    assert (
        code == 0 and found["run"]["views"] == 1 and found["run"]["folds"] == [max(aucs, key=lambda fold: aucs[fold])]
    )
    assert len(found["images"]) == 2
    large = next(one for one in found["images"] if one["windows"])
    assert large["windows"]["lefts"] == [0, 64, 128, 192, 199]
    for row, one in zip(rows_of(rows), found["images"], strict=True):
        assert row["name"] == one["name"] and row["answer"] == one["answer"]
        assert float(row["probability"]) == one["probability"] and row["reasons"] == "; ".join(one["reasons"])
    assert ">deeper/<wbr>scan.png</a>" in page.read_text() and str(tmp_path) not in page.read_text()
    code, shown, _ = call("classify", "--run", finished.root, scan, "--fast", "--stride", 96, "--views", 4, "--json")
    again = json.loads(shown)
    assert again["run"]["views"] == 4 and again["images"][0]["windows"]["lefts"] == [0, 96, 192, 199]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_folds_or_views_on_both_sides_of_the_threshold_are_uncertain(trained: FoldModels, generated: DataDir) -> None:
    pixels = read_patch(sorted(generated.patches("test").iterdir())[0])
    found = classify_image(trained, pixels)
    middle = (min(found.fold_probabilities.values()) + max(found.fold_probabilities.values())) / 2
    split = classify_image(trained, pixels, job=ClassifyJob(threshold=middle))
    above = sum(value >= middle for value in split.fold_probabilities.values())
    assert split.answer == "uncertain" and split.verdict in ("benign", "malignant") and 0 < above < 3
    assert any(one.startswith(f"{above} of 3 folds say malignant, the others benign") for one in split.reasons)
    clear = classify_image(trained, pixels, job=ClassifyJob(threshold=0.001))
    assert (clear.answer, clear.verdict, clear.reasons) == ("malignant", "malignant", [])


def draw_gradient(side: int) -> Pixels:
    """Draw a square that is greener from top to bottom and redder from left to right."""
    red, green = np.meshgrid(np.linspace(0, 255, side), np.linspace(0, 255, side))
    return np.stack([red, green, np.full_like(red, 120)], axis=2).astype(np.uint8)


def test_what_does_not_resemble_the_training_patches_is_uncertain(trained: FoldModels, generated: DataDir) -> None:
    patch = read_patch(sorted(generated.patches("test").iterdir())[0])
    gradient = draw_gradient(96)
    noise = np.random.default_rng(0).integers(0, 256, patch.shape, dtype=np.uint8)
    job = ClassifyJob(views=1, threshold=0.0001)
    for pixels in (noise, gradient, 255 - patch):
        (reason,) = classify_image(trained, pixels, job=job).reasons
        assert reason.startswith("the patch does not resemble the training patches in colour and texture")
    white = classify_image(trained, np.full_like(patch, 250), job=job)
    assert white.answer == "uncertain" and white.reasons == ["no tissue: the patch is only background"]
    assert classify_image(trained, patch, job=job).answer == "malignant"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_patch_in_an_image_of_another_kind_is_uncertain(
    trained: FoldModels, generated: DataDir, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    patch, white = read_patch(sorted(generated.patches("test").iterdir())[0]), np.full((288, 288, 3), 250, np.uint8)
    job = ClassifyJob(views=1, stride=96, threshold=0.0001)
    for around, dissimilar in ((draw_gradient(288), 8), (white, 0), (np.tile(patch, (3, 3, 1)), 0)):
        pixels = around.copy()
        pixels[96:192, 96:192] = patch
        found = classify_image(trained, pixels, job=job)
        reason = "8 of 9 windows do not resemble the training patches"
        assert (reason in found.reasons) == (dissimilar > 0) and found.verdict == "malignant"
        assert found.answer == "uncertain" or not found.reasons
        windows = found.to_json()["windows"]
        assert isinstance(windows, dict) and (windows["number"], windows["dissimilar"]) == (9, dissimilar)
    assert found.answer == "malignant" and found.reasons == []


def test_a_tenth_of_the_windows_may_be_of_another_kind(trained: FoldModels, generated: DataDir) -> None:
    patch, other = read_patch(sorted(generated.patches("test").iterdir())[0]), draw_gradient(96)
    job = ClassifyJob(views=1, stride=96, threshold=0.0001)
    for number, expected in ((1, []), (2, ["2 of 10 windows do not resemble the training patches"])):
        row = np.concatenate([patch] * (10 - number) + [other] * number, axis=1)
        reasons = classify_image(trained, row, job=job).reasons
        assert [reason for reason in reasons if "windows" in reason] == expected


def test_a_run_without_statistics_says_so_once(
    call: Call, finished: RunDir, generated: DataDir, scan: Path, tmp_path: Path
) -> None:
    run = RunDir(shutil.copytree(finished.root, tmp_path / "run"))
    run.statistics.unlink()
    code, shown, said = call("classify", "--run", run.root, generated.patches("test"), "--views", 1, "--json")
    assert code == 0 and said.count("no image_statistics.json") == 1
    assert {one["resemblance"]["distance"] for one in json.loads(shown)["images"]} == {None}
    large = json.loads(call("classify", "--run", run.root, scan, "--fast", "--json")[1])["images"][0]
    assert large["windows"]["dissimilar"] is None and not any("resemble" in reason for reason in large["reasons"])
    run.statistics.write_text("{}")
    code, _, said = call("classify", "--run", run.root, generated.patches("test"))
    assert code == 1 and "image_statistics.json: damaged or of another format" in said and said.count("\n") == 1
