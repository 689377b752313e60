"""Test a cuDNN call that fails on a GPU: all ranks repeat the work with safer settings."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from claris_kaggle.core.errors import CudnnError
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.models.factory import create_model, fuse_batch_norm
from claris_kaggle.runtime.cudnn_fallback import convert_cudnn_failures, move_network
from tests.conftest import DEADLINE, TINY, TwoProcessRun, claris, environment
from tests.support.runs import copy_run, places, predictions_of, weights_of

FAILURE = "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"
# Python runs this in every process that it starts with this folder on its path: the last rank's convolutions fail
# as cuDNN does, from the given call on, while the condition holds.
HOOK = f"""
import os, pathlib
import torch

world, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", 1), ("RANK", 0)))
once = pathlib.Path(__file__).with_name("failed-once")
calls, whole = [0], torch.nn.Conv2d._conv_forward


def is_channels_last(inputs):
    return inputs.is_contiguous(memory_format=torch.channels_last) and not inputs.is_contiguous()


def first_time():
    return not once.exists() and once.touch() is None


def conv_forward(self, inputs, weight, bias):
    calls[0] += 1
    if rank == world - 1 and calls[0] >= {{call}} and ({{condition}}):
        raise RuntimeError("{FAILURE}")
    return whole(self, inputs, weight, bias)


torch.nn.Conv2d._conv_forward = conv_forward
"""


@pytest.fixture
def fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let convolutions of started processes fail from that call on, while the condition holds."""

    def install(condition: str, call: int = 1) -> None:
        folder = tmp_path / "hook"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(HOOK.format(condition=condition, call=call))
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return install


def train(data: DataDir, cache: Path, folds: Path, run: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    """Train one fold, with a checkpoint after each step."""
    flags = ("--fold", 0, "--checkpoint-minutes", "0.0001", *flags)
    return claris("train", *places(data, cache, run), "--folds", folds, *TINY, *flags)


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [1, 2])
def test_training_goes_on_from_its_checkpoint_without_autotuning_and_ends_with_the_same_bytes(
    fail: Callable[..., None],
    finished: RunDir, of_two: TwoProcessRun, generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path,
    nproc: int,
) -> None:  # fmt: skip
    unbroken = finished if nproc == 1 else of_two.run
    fail("torch.backends.cudnn.benchmark", call=17)
    done = train(generated, cache, fold_file, tmp_path / "run", "--nproc", nproc)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("retrying") == 1 and "claris:" not in done.stderr
    assert f"fold 0: cuDNN failed on the GPU ({FAILURE}); retrying without autotuning" in done.stderr
    assert "fold 0: resuming from epoch" in done.stderr and done.stdout == f"{tmp_path / 'run'}\n"
    assert RunDir(tmp_path / "run").fold(0).weights.read_bytes() == unbroken.fold(0).weights.read_bytes()


@pytest.mark.slow
def test_two_processes_train_and_predict_with_contiguous_tensors_where_nothing_else_works(
    fail: Callable[..., None], generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    flags = ("--nproc", 2, "--cudnn", "contiguous")
    assert train(generated, cache, fold_file, tmp_path / "contiguous", *flags).returncode == 0
    assert claris("predict", *places(generated, cache, tmp_path / "contiguous"), *flags).returncode == 0
    fail("is_channels_last(inputs)")
    done = train(generated, cache, fold_file, tmp_path / "run", "--nproc", 2)
    assert done.returncode == 0, done.stderr
    said = [line.split("; ")[1] for line in done.stderr.splitlines() if "retrying" in line]
    wanted = ["retrying without autotuning", "retrying with contiguous tensors and without autotuning"]
    assert said == wanted
    done = claris("predict", *places(generated, cache, tmp_path / "run"), "--nproc", 2)
    assert done.returncode == 0, done.stderr
    assert [line.split("; ")[1] for line in done.stderr.splitlines() if "retrying" in line] == wanted
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "contiguous") != {}
    assert predictions_of(tmp_path / "run") == predictions_of(tmp_path / "contiguous") != {}


def test_predictions_after_a_failure_are_those_of_a_plain_run(
    call: Callable[..., tuple[int, str, str]],
    finished: RunDir, generated: DataDir, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The first attempt fails in this process; the second runs in a new one."""
    run = copy_run(finished, tmp_path / "run", predicted=False)
    whole, calls = torch.nn.Conv2d._conv_forward, iter(range(1, 1_000_000))

    def conv_forward(*arguments: torch.Tensor) -> torch.Tensor:
        if next(calls) >= 40:
            raise RuntimeError(FAILURE)
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", conv_forward)
    code, shown, said = call("predict", *places(generated, cache, run), "--nproc", 1)
    assert code == 0, said
    assert said.count("retrying without autotuning") == 1 and "fold all" in shown
    assert predictions_of(run) == predictions_of(finished.root)


@pytest.mark.slow
def test_predictions_of_two_processes_after_a_failure_are_those_of_a_plain_run(
    fail: Callable[..., None], finished: RunDir, generated: DataDir, cache: Path, tmp_path: Path
) -> None:
    run = copy_run(finished, tmp_path / "run", predicted=False)
    fail("first_time()", call=40)
    done = claris("predict", *places(generated, cache, run), "--nproc", 2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("retrying without autotuning") == 1 and "fold all" in done.stdout
    assert predictions_of(run) == predictions_of(finished.root)


@pytest.mark.slow
def test_ranks_of_another_launcher_name_the_flag_to_go_on_with(
    fail: Callable[..., None], generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    fail("torch.backends.cudnn.benchmark")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "claris_kaggle"]
    arguments = ["train", *places(generated, cache, tmp_path / "run"), "--folds", fold_file, *TINY, "--fold", 0]

    def run(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *torchrun, *map(str, arguments), *flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, env=environment())

    done = run()
    assert done.returncode != 0 and "Run the same command with --cudnn no-autotune" in done.stderr
    done = run("--cudnn", "no-autotune")
    assert done.returncode == 0 and (tmp_path / "run/fold0/model.json").exists(), done.stderr


@pytest.mark.slow
def test_a_failure_that_stays_ends_after_three_attempts(
    fail: Callable[..., None], generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    fail("len(inputs) > 2")  # not in the checks of one and two patches before training
    done = train(generated, cache, fold_file, tmp_path / "run")
    assert done.returncode == 1 and done.stderr.count("retrying") == 2, done.stderr
    assert "CUDNN_STATUS_EXECUTION_FAILED" in done.stderr and "Update the GPU driver" in done.stderr


def test_only_failures_of_cudnn_are_converted() -> None:
    no_engine = (
        "FIND was unable to find an engine to execute this computation"  # none of a convolution's algorithms works
    )
    for text, kind in (
        (FAILURE, CudnnError),
        (no_engine, CudnnError),
        (no_engine.replace("FIND", "GET"), CudnnError),
        ("CUDA error: out of memory", RuntimeError),
    ):
        with pytest.raises((CudnnError, RuntimeError)) as caught, convert_cudnn_failures("fold 0", "default"):
            raise RuntimeError(text)
        assert caught.type is kind


def test_a_contiguous_network_sees_contiguous_tensors_alone_and_computes_the_same() -> None:
    model, device = create_model("densenet121", seed=1).eval(), torch.device("cpu")
    images = torch.rand(2, 3, 64, 64).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        wanted = model(images)
        folded = move_network(fuse_batch_norm(model), device, "contiguous")
        layouts = set()
        for part in folded.modules():
            if isinstance(part, torch.nn.Conv2d):
                part.register_forward_pre_hook(lambda _, inputs: layouts.add(inputs[0].is_contiguous()))
                assert part.weight.is_contiguous()
        torch.testing.assert_close(folded(images), wanted, rtol=1e-4, atol=1e-4)
    assert layouts == {True}
