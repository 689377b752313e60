"""Test several processes, torchrun and several machines: the results of one process, and one run at a time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from claris_kaggle.core.paths import DataDir, RunDir
from tests.conftest import DEADLINE, ROOT, TINY, TwoProcessRun, claris, environment
from tests.support import ddp_steps
from tests.support.runs import (
    copy_run,
    free_port,
    kill_all,
    places,
    predictions_of,
    start,
    wait_for_line,
)


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [2, 3])
def test_predictions_of_a_whole_run_are_the_same_bytes(
    finished: RunDir, generated: DataDir, cache: Path, tmp_path: Path, nproc: int
) -> None:
    run = copy_run(finished, tmp_path / "run", predicted=False)
    done = claris("predict", *places(generated, cache, run), "--nproc", nproc)
    assert done.returncode == 0, done.stderr
    assert predictions_of(run) == predictions_of(finished.root)
    assert done.stdout.count("fold all") == 1


def test_three_processes_train_exactly_the_mean_gradient(generated: DataDir, cache: Path, tmp_path: Path) -> None:
    """Without batch norm in the way, three ranks take the same steps as one process, but for rounding."""
    ddp_steps.main(str(generated.root), str(cache), str(tmp_path / "1.pt"))
    command = [sys.executable, "-m", ddp_steps.__name__, "3", generated.root, cache, tmp_path / "3.pt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE, env=environment())
    assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / name, weights_only=True) for name in ("1.pt", "3.pt"))
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
    for name, value in one["model"].items():
        torch.testing.assert_close(other["model"][name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_processes_train_and_predict_a_fold_and_speak_once(of_two: TwoProcessRun) -> None:
    assert of_two.train.stdout == f"{of_two.run.root}\n" and of_two.train.stderr.count("fold 0 epoch 2/2") == 1
    assert "fold 1, 2 without weights" in of_two.predict.stderr
    assert set(predictions_of(of_two.run.root)) == {"fold0/oof.csv", "fold0/test.csv"}


@pytest.mark.slow
def test_the_users_own_torchrun_trains_the_same_bytes(
    of_two: TwoProcessRun, generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = ["train", *places(generated, cache, tmp_path / "run"), "--folds", str(fold_file), *TINY, "--fold", "0"]
    done = subprocess.run(
        [*command, "-m", "--", "claris_kaggle", *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'run'}\n"
    assert RunDir(tmp_path / "run").fold(0).weights.read_bytes() == of_two.run.fold(0).weights.read_bytes()


@pytest.mark.slow
def test_a_machine_with_another_fold_file_is_refused(
    generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    other = tmp_path / "other.csv"
    assert call("folds", "--data", generated.root, "--k", 3, "--seed", 7, "--out", other)[0] == 0
    rendezvous = [
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        str(free_port()),
    ]
    both = [
        subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", *rendezvous, "--node-rank", str(number), "-m", "--",
                "claris_kaggle", "train", *places(generated, cache, tmp_path / "run"), "--folds", str(path), *TINY,
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment(),
        )
        for number, path in enumerate((fold_file, other))
    ]  # fmt: skip
    said = [process.communicate(timeout=DEADLINE)[1] for process in both]
    assert all(process.returncode for process in both)
    assert "other.csv" in said[1] and "rank 0" in said[1] and "Copy the same file to every machine" in said[1]
    assert not list((tmp_path / "run").glob("fold*/last.ckpt"))


@pytest.mark.slow
def test_two_machines_train_as_one(
    of_two: TwoProcessRun, generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    """Two nodes of one process each, on loopback, give the bytes of two processes on one machine."""
    arguments = ["train", "--folds", str(fold_file), *TINY, "--fold", "0"]
    port = free_port()
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "t",
             "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1",
             "-m", "--", "claris_kaggle", *arguments, *places(generated, cache, tmp_path / "nodes")],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    ended = [node.communicate(timeout=DEADLINE) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], ended[0][1] + ended[1][1]
    assert RunDir(tmp_path / "nodes").fold(0).weights.read_bytes() == of_two.run.fold(0).weights.read_bytes()


@pytest.mark.slow
def test_a_second_torchrun_is_refused_while_the_first_works(
    finished: RunDir, generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    where = [*places(generated, cache, tmp_path / "run"), "--folds", fold_file, *TINY, "--epochs", 100_000]
    process = start("train", *where)
    try:
        wait_for_line(process, ("epoch 1/",))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        done = subprocess.run(
            [*command, "-m", "--", "claris_kaggle", "train", *map(str, where)], capture_output=True, text=True,
            timeout=DEADLINE, env=environment(),
        )  # fmt: skip
        assert done.returncode != 0 and "in use by process" in done.stderr
    finally:
        kill_all(process)
        assert process.stderr is not None
        process.stderr.close()
