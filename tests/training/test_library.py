"""Test training from Python: a script or notebook trains on several processes, and its own process is unchanged."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import claris_kaggle
from claris_kaggle.core.paths import DataDir, RunDir
from tests.conftest import DEADLINE, TwoProcessRun, environment
from tests.support.runs import predictions_of

SCRIPT = """
import logging, os, signal, sys
import torch
import claris_kaggle as ck

logging_on = {logging_on}
if logging_on:
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
heard = []
signal.signal(signal.SIGINT, lambda *_: heard.append("mine"))
kept = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), dict(os.environ), torch.get_num_threads()
job = ck.TrainJob(
    data={data!r}, fold_file={folds!r}, run_dir={run!r}, cache={cache!r}, nproc=2, only=(0,)
)
options = {{"model": "tiny", "weights": "none", "threads": 1, "epochs": 2, "batch_size": 32}}
ck.train_run(job, {config})
assert ck.predict_run(ck.PredictJob(data=job.data, run_dir=job.run_dir, cache={cache!r}, nproc=2)) is None
signal.raise_signal(signal.SIGINT)
after = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), dict(os.environ), torch.get_num_threads()
assert heard == ["mine"] and kept == after, (heard, kept, after)
"""


def run_script(text: str, folder: Path, *, from_stdin: bool) -> subprocess.CompletedProcess[str]:
    """Run the script as a file, or from stdin as a notebook does, which has no file to import again."""
    path = folder / "script.py"
    path.write_text(text)
    command, given = ([sys.executable, "-"], text) if from_stdin else ([sys.executable, str(path)], None)
    return subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=DEADLINE, env=environment(), cwd=folder
    )


@pytest.mark.slow
@pytest.mark.parametrize("notebook", [False, True])
def test_a_script_trains_two_processes_and_keeps_its_signals_settings_and_stderr(
    of_two: TwoProcessRun, generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path, notebook: bool
) -> None:
    run = tmp_path / "run"
    config = "options" if notebook else "ck.TrainConfig(**options)"
    places = {"data": str(generated.root), "folds": str(fold_file), "run": str(run), "cache": str(cache)}
    done = run_script(SCRIPT.format(**places, config=config, logging_on=notebook), tmp_path, from_stdin=notebook)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert set(predictions_of(run)) == {"fold0/oof.csv", "fold0/test.csv"}
    if notebook:  # the recipe of `of_two`
        assert predictions_of(run) == predictions_of(of_two.run.root)
    lines = done.stderr.splitlines()
    assert bool(lines) == notebook
    if notebook:  # this process formats its messages as it likes; those of the ranks are plain
        assert any(line.startswith("claris_kaggle: training tiny from random weights") for line in lines)
        assert any(line.startswith("fold 0 epoch 2/2: loss") for line in lines)


def test_a_call_keeps_the_signals_settings_and_streams_of_its_process(
    finished: RunDir, generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def settings() -> list[object]:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        return [handlers, dict(os.environ), torch.get_num_threads(), logging.root.level]

    threads, kept = torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    heard: list[str] = []
    signal.signal(signal.SIGINT, lambda *_: heard.append("mine"))
    torch.set_num_threads(3)  # not the `threads` of the run
    try:
        before = settings()
        places = {"data": str(generated.root), "run_dir": str(tmp_path / "run"), "cache": str(cache), "nproc": 1}
        options = {"model": "tiny", "weights": "none", "threads": 1, "epochs": 2, "batch_size": 32}
        claris_kaggle.train_run(claris_kaggle.TrainJob(**places, fold_file=str(fold_file), only=(0,)), options)
        assert claris_kaggle.predict_run(claris_kaggle.PredictJob(**places)) is None
        signal.raise_signal(signal.SIGINT)
        assert heard == ["mine"] and settings() == before
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGINT, kept)
    assert capsys.readouterr().out == ""
    found = predictions_of(tmp_path / "run")
    assert found == {name: predictions_of(finished.root)[name] for name in ("fold0/oof.csv", "fold0/test.csv")}


def test_options_of_the_library_are_those_of_the_command_line(finished: RunDir) -> None:
    from claris_kaggle.core.config import TrainConfig
    from claris_kaggle.core.files import read_json
    from claris_kaggle.training.setup import _chosen_options

    config = TrainConfig.from_json(read_json(finished.config), finished.config)
    chosen = _chosen_options(config)
    assert {"model", "epochs", "seed"} <= set(chosen) and "folds_sha256" not in chosen
    assert _chosen_options(None) == {} and _chosen_options({"epochs": 2}) == {"epochs": 2}
