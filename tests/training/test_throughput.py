"""Test the choice of torch.compile by a measurement, and of the number of loader processes by shared memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from claris_kaggle.core.paths import DataDir
from claris_kaggle.runtime import loading
from claris_kaggle.training import learner as learner_module
from claris_kaggle.training import throughput
from claris_kaggle.training.learner import _Learner
from tests.conftest import TINY
from tests.support.runs import places

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (1e6, "images/s instead of 10 per process"),
        (11, "not used"),
        (0, "training without torch.compile, which failed"),
    ],
)
def test_auto_compiles_only_where_it_saves_time_in_the_run(
    call: Call,
    generated: DataDir,
    cache: Path,
    fold_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rate: float,
    said: str,
) -> None:
    """The compiler is replaced, and takes no time; 11 images/s instead of 10 save less than two steps take."""
    compiled = []

    def time_steps(learner: _Learner, batches: object) -> float:
        if learner.compiled and not rate:
            raise torch._dynamo.exc.BackendCompilerFailed(lambda: None, RuntimeError("no g++"), None)
        if learner.compiled and rate == 11:
            monkeypatch.setattr(throughput.time, "perf_counter", lambda: 1e9)
        return rate if learner.compiled else 10.0

    monkeypatch.setattr(throughput, "_time_steps", time_steps)
    monkeypatch.setattr(torch, "compile", lambda network, **_: compiled.append(network) or network)
    arguments = ["train", *places(generated, cache, tmp_path / "run"), "--folds", fold_file, *TINY, "--fold", 0, 1]
    code, _, messages = call(*arguments, "--compile", "auto")
    assert code == 0 and said in messages, messages
    assert messages.count("torch.compile") == 1, "measured once for all folds"
    assert len(compiled) == (3 if rate == 1e6 else 1)  # the trial, and each fold if it pays


def test_training_starts_no_more_loader_processes_than_shared_memory_holds(
    call: Call, generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container may have only 64 MiB; a worker that fills it is killed."""
    if not loading.SHARED_MEMORY.is_dir():
        pytest.skip("no shared memory folder on this system")
    started, load = [], learner_module.load_in_order

    def load_in_order(dataset: Any, items: Any, workers: int, pin: bool) -> Any:
        started.append(workers)
        return load(dataset, items, workers, pin)

    monkeypatch.setattr(learner_module, "load_in_order", load_in_order)
    monkeypatch.setattr(loading.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    arguments = ["train", *places(generated, cache, tmp_path / "run"), "--folds", fold_file, *TINY, "--fold", 0]
    code, _, messages = call(*arguments, "--workers", 2, "--epochs", 1)
    assert code == 0 and started == [0], messages
