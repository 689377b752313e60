"""Test the commands on a GPU: killed and resumed, with torchrun, compiled, and with several ranks on one GPU."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.paths import DataDir
from claris_kaggle.data.tables import read_labels, read_sample
from claris_kaggle.evaluation.predictions import read_oof, read_test
from claris_kaggle.models.weights import read_weights
from claris_kaggle.training.setup import _create_network
from tests.conftest import DEADLINE, ROOT, TINY, claris, environment
from tests.support.runs import kill_all, places, start, wait_for_line

# Distance of two runs' weights, as a share of the way that they came: algorithms and the order of sums differ.
TOLERANCE = 0.15
STRONG = ["--lr", "1e-2", "--ema", "0", "--fold", "0"]


def train(data: DataDir, cache: Path, folds: Path, run: Path, *flags: object) -> list[object]:
    return ["train", *places(data, cache, run), "--folds", folds, *TINY, *STRONG, *flags]


def finish(arguments: list[object]) -> str:
    """Run the command and return its log."""
    done = claris(*arguments, deadline=DEADLINE)
    assert done.returncode == 0, done.stderr
    return done.stderr


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    # Without a network the name of the machine may not resolve.
    options = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "1"]
    command = [sys.executable, "-m", "torch.distributed.run", *options]
    return subprocess.run(
        [*command, *map(str, arguments)], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=DEADLINE
    )


def read_history(run: Path) -> list[dict[str, float]]:
    with (run / "fold0/history.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def uninterrupted(
    generated: DataDir, cache: Path, fold_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """Train fold 0 on the GPU without interruption, and return the run and the log."""
    run = tmp_path_factory.mktemp("runs") / "uninterrupted"
    return run, finish(train(generated, cache, fold_file, run))


def read_final_weights(run: Path) -> torch.Tensor:
    """Return all weights of the fold as one vector, without running statistics."""
    found = read_weights(run / "fold0/model.safetensors")
    return torch.cat([value.flatten() for name, value in sorted(found.items()) if name.endswith(("weight", "bias"))])


def create_initial_weights(run: Path) -> torch.Tensor:
    """Return the initial weights of the fold as one vector."""
    config = TrainConfig.from_json(json.loads((run / "config.json").read_text()), run)
    begun = sorted(_create_network(config, 0).state_dict().items())
    return torch.cat([value.flatten() for name, value in begun if name.endswith(("weight", "bias"))])


def assert_similar(run: Path, other: Path) -> None:
    """Check that two trainings end with weights within the tolerance and with the same losses."""
    begun, one, two = create_initial_weights(run), read_final_weights(run), read_final_weights(other)
    assert float((one - two).norm()) < TOLERANCE * float((one - begun).norm())
    for row, same in zip(read_history(run), read_history(other), strict=True):
        assert same["train_loss"] == pytest.approx(row["train_loss"], abs=0.02)


def test_a_killed_training_on_a_gpu_is_resumed_and_predicts_each_id_once(
    uninterrupted: tuple[Path, str], generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    run, often = tmp_path / "run", ("--checkpoint-minutes", 0.0001)
    arguments = train(generated, cache, fold_file, run, *often)
    with start(*arguments) as process:
        checkpoint, deadline = run / "fold0/last.ckpt", time.monotonic() + DEADLINE
        wait_for_line(process, ("training tiny",))
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert process.poll() is None
        kill_all(process)
    said = finish(arguments)
    assert "resuming from epoch" in said and len(read_history(run)) == 2
    assert_similar(uninterrupted[0], run)
    finish(["predict", *places(generated, cache, run)])
    ids, labels = read_labels(generated.labels)
    oof, test = read_oof(run / "fold0/oof.csv"), read_test(run / "fold0/test.csv")
    assert len(set(oof.ids)) == len(oof.ids) and set(oof.ids) < set(ids)
    assert [labels[ids.index(one)] for one in oof.ids] == oof.labels.tolist()
    assert sorted(test.ids) == sorted(read_sample(generated.sample))


def test_predict_writes_on_a_gpu_what_it_writes_on_a_cpu(
    uninterrupted: tuple[Path, str], generated: DataDir, cache: Path, tmp_path: Path
) -> None:
    found = []
    for name, cards in (("gpu", os.environ.get("CUDA_VISIBLE_DEVICES", "0")), ("cpu", "")):
        run = tmp_path / name
        shutil.copytree(uninterrupted[0], run)
        command = [sys.executable, "-m", "claris_kaggle", "predict", *places(generated, cache, run)]
        there = {**environment(), "CUDA_VISIBLE_DEVICES": cards}
        done = subprocess.run(command, env=there, capture_output=True, text=True, timeout=DEADLINE)
        assert done.returncode == 0, done.stderr
        found.append((read_oof(run / "fold0/oof.csv"), read_test(run / "fold0/test.csv")))
    for one, other in zip(*found, strict=True):
        assert one.ids == other.ids and np.ptp(other.probabilities) > 0.01
        np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=0, atol=5e-3)


def test_steps_over_nccl_with_one_rank_are_those_without(tmp_path: Path) -> None:
    out = tmp_path / "found.pt"
    done = torchrun("-m", "tests.gpu.nccl_steps", out)
    assert done.returncode == 0, done.stderr
    found = torch.load(out, weights_only=True)
    assert found["ranks"] == 1 and found["taken"] == 5 and found["backend"].lower() == "nccl"
    assert found["summed"].tolist() == [0, 1, 2, 3] and found["codes"].tolist() == [3]


def test_the_users_own_torchrun_trains_as_the_command_does(
    uninterrupted: tuple[Path, str], generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = torchrun("-m", "--", "claris_kaggle", *train(generated, cache, fold_file, run))
    assert done.returncode == 0, done.stderr
    assert_similar(uninterrupted[0], run)


def test_two_ranks_on_one_card_predict_as_one(
    uninterrupted: tuple[Path, str], generated: DataDir, cache: Path, tmp_path: Path
) -> None:
    found = []
    for nproc in (1, 2):
        run = tmp_path / str(nproc)
        shutil.copytree(uninterrupted[0], run)
        finish(["predict", *places(generated, cache, run), "--nproc", nproc])
        found.append((run / "fold0/oof.csv").read_bytes())
    assert found[0] == found[1]


def test_two_ranks_on_one_card_train(generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path) -> None:
    finish(train(generated, cache, fold_file, tmp_path / "run", "--nproc", 2))
    rows = read_history(tmp_path / "run")
    assert len(rows) == 2 and all(np.isfinite(row["train_loss"]) for row in rows)


def test_compiled_training_is_the_eager_one_but_for_rounding(
    uninterrupted: tuple[Path, str], generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    finish(train(generated, cache, fold_file, run, "--compile"))
    assert_similar(uninterrupted[0], run)


def test_compilation_is_measured_before_it_is_used(
    generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    said = finish(train(generated, cache, fold_file, tmp_path / "run", "--compile", "auto"))
    assert "torch.compile: " in said and "which failed" not in said
