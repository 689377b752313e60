"""Test what makes commands fast without comparing times, and that each benchmark runs."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.paths import DataDir
from claris_kaggle.data.batches import EpochBatches, TrainSet, _Block
from claris_kaggle.data.pack import Pack
from claris_kaggle.inference.forward import _view_logits, predict_ids
from claris_kaggle.models.factory import create_model
from claris_kaggle.models.weights import read_weights
from claris_kaggle.runtime.distributed import World
from claris_kaggle.runtime.loading import prefetch_to_device
from claris_kaggle.training.learner import _Learner, _train_step
from tests.conftest import ROOT, TINY, claris, contents, environment

CPU = torch.device("cpu")
ALONE = World(0, 0, 1, CPU)
# What makes the host wait for a GPU: to look at a value, to send a new constant, to check an inverse.
WAITING = ("_local_scalar_dense", "lift_fresh", "nonzero", "linalg_inv_ex", "is_nonzero", "equal")


class NoWaiting(TorchDispatchMode):
    """Fails where an operation would wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in WAITING, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def trainset() -> TrainSet:
    """Forty patches of noise."""
    ids = [f"{number:040x}" for number in range(40)]
    pixels = np.random.default_rng(0).integers(0, 256, (40, 96, 96, 3), dtype=np.uint8)
    return TrainSet(Pack(ids, pixels, Path()), ids, np.arange(40, dtype=np.int64) % 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_and_a_prediction_wait_for_nothing_that_the_device_has_still_to_compute(
    trainset: TrainSet, precision: str
) -> None:
    """As on a GPU: the fused optimizer, turns on the device."""
    config = TrainConfig(batch_size=20, color=1.0, stain=0.1, ema=0.9, precision=precision)
    learner = _Learner(config, ALONE, create_model("tiny"))
    learner.optimizer = torch.optim.AdamW(learner.model.parameters(), lr=0.0, fused=True)
    batches = EpochBatches(trainset, config, epoch=0, rank=0, world_size=1, transform_on_host=False)
    first, second = batches[0], batches[1]
    _train_step(learner, first, 1e-3)  # constants are sent once
    with NoWaiting():
        _train_step(learner, second, 1e-3)
        with torch.inference_mode():
            _view_logits(learner.model.eval(), second.images, config, 8)
    with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
        learner.loss_sum.item()
    assert learner.global_step == 2 and int(learner.skipped_steps) == 0


def test_batches_are_sent_one_ahead_in_their_order() -> None:
    loaded: list[int] = []

    def load() -> Any:
        for number in range(4):
            loaded.append(number)
            yield _Block(torch.tensor([number]), torch.full((1, 2), number))

    seen = []
    for block in prefetch_to_device(load(), CPU):
        seen.append(int(block.rows))
        assert len(loaded) == min(len(seen) + 1, 4) and bool((block.images == seen[-1]).all())
    assert seen == [0, 1, 2, 3] and list(prefetch_to_device([], CPU)) == []


def test_each_patch_is_read_once_for_all_eight_views(trainset: TrainSet) -> None:
    class Counted(np.ndarray):
        reads: list[int]

        def __getitem__(self, rows: Any) -> Any:
            if isinstance(rows, np.ndarray):
                self.reads.extend(rows.tolist())
            return np.asarray(self)[rows]

    pixels = trainset.pack.pixels.view(Counted)
    pixels.reads = []
    pack = Pack(trainset.ids, pixels, Path())
    predict_ids(create_model("tiny"), pack, trainset.ids, ALONE, TrainConfig(precision="fp32"), views=8)
    assert sorted(pixels.reads) == list(range(40))


def test_a_compiled_learner_keeps_the_names_of_its_weights() -> None:
    config = TrainConfig(precision="fp32", ema=0.9)
    plain, compiled = (_Learner(config, ALONE, create_model("tiny"), compiled=one) for one in (False, True))
    assert compiled.wrapped is not compiled.model
    assert list(compiled.state()["model"]) == list(plain.state()["model"]) == list(create_model("tiny").state_dict())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with g++ alone")
@pytest.mark.parametrize("nproc", [1, 2])
def test_compiled_training_ends_with_the_same_weights_but_for_rounding(
    generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path, nproc: int
) -> None:
    for name, flags in (("plain", []), ("compiled", ["--compile"])):
        where = ["--data", generated.root, "--cache", cache, "--folds", fold_file, "--run", tmp_path / name]
        done = claris(
            "train", *where, *TINY, "--fold", 0, "--nproc", nproc, "--lr", 1e-3, "--ema", 0, *flags, deadline=900
        )
        assert done.returncode == 0, done.stderr
    plain, compiled = (read_weights(tmp_path / name / "fold0/model.safetensors") for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-2, atol=1e-4)


def test_measurements_end_in_time_with_at_least_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import timing

    now = [0.0]

    def measure_rate() -> float:
        now[0] += 10
        return 1.0

    monkeypatch.setattr(timing.time, "monotonic", lambda: now[0])
    for end, rounds in ((0, 1), (29, 2), (30, 3), (math.inf, 5)):
        now[0] = 0.0
        assert timing.interleave({"one": measure_rate}, 5, warm_up=0, end=end) == {"one": [1.0] * rounds}


def test_the_time_of_the_gpu_benchmarks_is_divided_among_all_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    """A section that reaches its limit leaves the others their share, and one that ends early leaves them its rest."""
    from benchmarks.gpu import __main__ as sections

    monkeypatch.setattr(sections, "option", lambda name, default: "300")
    monkeypatch.setattr(sections, "QUICK", True)
    for used in (0.5, 1.0):
        now, limits = [0.0], []

        def run_section(name: str, limit: float) -> int:
            limits.append(limit)  # noqa: B023
            now[0] += used * limit  # noqa: B023
            return 0

        monkeypatch.setattr(sections.time, "monotonic", lambda now=now: now[0])
        monkeypatch.setattr(sections, "run_section", run_section)
        with pytest.raises(SystemExit) as ended:
            sections.main()
        assert ended.value.code == 0 and now[0] <= 300.001
        shares = [share for _, share in sections.SECTIONS.values()]
        assert len(limits) == len(shares)
        assert all(limit >= 300 * share - 0.001 for limit, share in zip(limits, shares, strict=True))


def test_the_page_of_speeds_holds_what_the_benchmarks_have_kept() -> None:
    from benchmarks.page import PAGE, format_page, read_results

    assert PAGE.read_text("utf-8") == format_page(read_results())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["input_path", "packing", "training", "batch_norm", "inference", "whole", "tables", "startup", "scaling"],
)
def test_each_benchmark_can_be_tried_and_then_keeps_nothing(name: str) -> None:
    before = contents(ROOT / "docs" / "performance")
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "ratio to the first row" in done.stdout and contents(ROOT / "docs" / "performance") == before


@pytest.mark.slow
def test_each_command_is_measured_at_two_sizes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.full_size", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "| check the submission |" in done.stdout and (tmp_path / "full_size.json").exists()


def test_the_simulated_gains_of_each_way_to_combine_runs_are_finite() -> None:
    from benchmarks.ensembling import SETTINGS, measure_gains

    found = measure_gains(next(one for one in SETTINGS if one.patches * one.slides <= 300), 0)
    assert {"mean", "rank", "stack", "auto"} <= found.applied.keys()
    assert all(map(math.isfinite, found.applied.values()))


@pytest.mark.slow
def test_other_libraries_do_the_same_work_as_ours_and_write_the_same_file(tmp_path: Path) -> None:
    """Libraries that are not installed are left out. timm is always there."""
    from benchmarks.timing import Grid, read_result

    before = contents(ROOT / "docs" / "performance")
    command = [sys.executable, "-m", "benchmarks.peers", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert contents(ROOT / "docs" / "performance") == before
    kept = read_result(tmp_path / "peers.json")
    assert isinstance(kept, Grid)
    rows = {(row[0], row[1]): dict(zip(kept.columns, row, strict=True)) for row in kept.rows}
    assert {("train and predict", "claris"), ("train and predict", "timm"), ("predict", "claris")} <= rows.keys()
    for (task, _), row in rows.items():
        measured = ["s", "CPU s", "prediction images/s", "MB", "lines"]
        assert all(float(row[name].replace(",", "")) > 0 for name in measured), row
        assert bool(row["training images/s"]) == (task == "train and predict")


def test_the_scripts_of_other_libraries_run_without_the_lines_that_are_not_counted() -> None:
    from benchmarks.peers.__main__ import COMMANDS, PREDICTOR, SCRIPTS, TRAINERS, count_user_lines

    for peer in (*TRAINERS, PREDICTOR):
        lines = (SCRIPTS / peer.script).read_text("utf-8").splitlines()
        counted = "\n".join(line for line in lines if not line.endswith("# measured"))
        compile(counted, peer.script, "exec")
        assert "clock" not in counted and "predictions.csv" in counted
        assert 4 * count_user_lines(COMMANDS) < count_user_lines(SCRIPTS / peer.script) < len(lines)


@pytest.mark.slow
def test_the_script_for_a_gpu_can_be_tried_anywhere_and_tells_of_every_part(tmp_path: Path) -> None:
    from benchmarks.timing import Grid, format_result, read_result

    before = contents(ROOT / "docs" / "performance")
    command = ["bash", str(ROOT / "benchmarks" / "on_a_gpu.sh"), "--quick", "--out", str(tmp_path / "out")]
    there = {**environment(), "PYTHON": sys.executable}
    done = subprocess.run(command, cwd=tmp_path, env=there, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(ROOT / "docs" / "performance") == before
    names = ("training", "inference", "training sizes", "inference sizes", "loading")
    assert all(f"section {name}: done" in done.stdout for name in names)
    assert done.stdout.strip().splitlines()[-1].startswith("all parts done")
    kept = {path.stem: read_result(path) for path in (tmp_path / "out").glob("*.json")}
    assert sorted(kept) == sorted(f"gpu_{name.replace(' ', '_')}" for name in names)
    for result in kept.values():
        rows = len(result.rows) if isinstance(result, Grid) else len(result.rates)
        assert rows >= 4 and len(format_result(result).splitlines()) == rows + 2 and result.machine


def test_the_script_for_a_gpu_goes_on_after_a_part_that_fails_and_says_so(tmp_path: Path) -> None:
    """The interpreter ends each part with exit code 3."""
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho called >>" + str(tmp_path / "calls") + "\nexit 3\n")
    broken.chmod(0o755)
    command = ["bash", str(ROOT / "benchmarks" / "on_a_gpu.sh"), "--quick", "--out", str(tmp_path / "out")]
    there = {**environment(), "PYTHON": str(broken)}
    done = subprocess.run(command, env=there, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "A PART FAILED" in done.stdout.splitlines()[-1]
    assert len((tmp_path / "calls").read_text().splitlines()) == 3  # tests, benchmarks and summary
