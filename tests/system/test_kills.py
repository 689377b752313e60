"""Test kills, signals and time limits: nothing is lost, and a resumed run ends with the same bytes."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from claris_kaggle.core.errors import TrainingError
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.runtime.distributed import _launch_ranks
from tests.conftest import ROOT, TINY, claris
from tests.support import killed_rank
from tests.support.runs import (
    children_of,
    kill_at_random,
    places,
    predictions_of,
    run_through_kills,
    start,
    wait_for_line,
    weights_of,
)

FINE_TUNING = ("--epochs", "3", "--swa-epochs", "1", "--freeze-epochs", "1", "--layer-decay", "0.8", "--ema", "0")


def test_killed_training_ends_with_the_same_bytes(
    call: Callable[..., tuple[int, str, str]],
    finished: RunDir, generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path,
) -> None:  # fmt: skip
    where = [*places(generated, cache, tmp_path / "run"), "--folds", fold_file, *TINY, "--fold", 0]
    command = ["train", *where, "--checkpoint-minutes", "0.001"]
    assert kill_at_random(command, 1, random.Random(0), 0.3) > 0
    code, _, said = call(*command)
    assert code == 0, said
    assert weights_of(tmp_path / "run") == {
        name: content for name, content in weights_of(finished.root).items() if name.startswith("fold0/")
    }


class StopOnWords(logging.Handler):
    """Sends this process SIGTERM when a message has these words, once."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words

    def emit(self, record: logging.LogRecord) -> None:
        if self.words and self.words in record.getMessage():
            self.words = ""
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_stop_in_time_is_exit_code_3_and_goes_on_to_the_same_bytes(
    call: Callable[..., tuple[int, str, str]],
    finished: RunDir, generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path,
) -> None:  # fmt: skip
    run = RunDir(tmp_path / "run")
    arguments = ["train", *places(generated, cache, run.root), "--folds", fold_file, *TINY, "--fold", 0]
    handler, logger = StopOnWords("fold 0 epoch 1/2"), logging.getLogger("claris_kaggle")
    logger.addHandler(handler)
    try:
        code, shown, said = call(*arguments, "--nproc", 1)
    finally:
        logger.removeHandler(handler)
    assert (code, shown) == (3, ""), said
    assert "stopped by SIGTERM" in said and "Run the same command to resume" in said
    assert run.fold(0).checkpoint.exists() and not run.fold(0).weights.exists()
    code, _, said = call(*arguments, "--nproc", 1)
    assert code == 0 and "fold 0: resuming from epoch" in said, said
    assert run.fold(0).weights.read_bytes() == finished.fold(0).weights.read_bytes()


@pytest.mark.slow
def test_a_time_limit_stops_two_processes_together(
    generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    arguments = ["train", *places(generated, cache, tmp_path / "run"), "--folds", fold_file, *TINY, "--nproc", 2]
    done = claris(*arguments, "--epochs", 500, "--time-limit", "15s")
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("stopped by the time limit") == 1
    assert (tmp_path / "run/fold0/last.ckpt").exists()


def start_long(*arguments: object) -> subprocess.Popen[str]:
    """Training that will not end by itself before it is stopped."""
    return start("train", *arguments, "--model", "tiny", "--weights", "none", "--epochs", "1000", "--ema", "0")


@pytest.mark.slow
def test_ranks_end_with_the_process_that_launched_them(
    generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    process = start_long(*places(generated, cache, tmp_path / "run"), "--folds", fold_file, "--nproc", "2")
    try:
        wait_for_line(process, ("epoch 1/1000",))
        ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    finally:
        process.kill()
        process.wait(timeout=30)
        assert process.stderr is not None
        process.stderr.close()
    until = time.monotonic() + 20
    while any(Path(f"/proc/{rank}").exists() for rank in ranks) and time.monotonic() < until:
        time.sleep(0.1)
    assert len(ranks) >= 2 and not [rank for rank in ranks if Path(f"/proc/{rank}").exists()]


def test_a_rank_whose_launcher_ended_before_it_began_ends_as_well() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(timeout=60)
    program = (
        "import time\nfrom claris_kaggle.core.time_limit import exit_with_parent\n"
        f"exit_with_parent({gone.pid})\ntime.sleep(60)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=30, cwd=ROOT).returncode == 1


def test_a_signal_to_the_whole_group_stops_training_with_loader_processes_in_order(
    generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    process = start_long(*places(generated, cache, tmp_path / "run"), "--folds", fold_file, "--workers", "1")
    wait_for_line(process, ("epoch 1/1000",))
    os.killpg(process.pid, signal.SIGTERM)
    assert process.stderr is not None
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 3 and "stopped by SIGTERM" in said, said
    assert RunDir(tmp_path / "run").fold(0).checkpoint.exists()


def test_a_rank_that_is_killed_ends_the_others_and_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        _launch_ranks(3, killed_rank.__name__, str(tmp_path))
    assert str(caught.value).startswith("process 2 of 3 was killed by SIGKILL")
    assert "Run the same command to resume" in str(caught.value)
    others = [path.read_text() for path in sorted(tmp_path.glob("[0-9]"))]
    assert len(others) == 2 and not [one for one in others if one and Path(f"/proc/{one}").exists()]


@pytest.mark.slow
def test_if_a_rank_is_killed_the_others_end_soon_and_one_message_reports_it(
    generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    where = [*places(generated, cache, tmp_path / "run"), "--folds", fold_file, *TINY]
    process = start("train", *where, "--epochs", 100_000, "--nproc", 2, "--ema", 0)
    wait_for_line(process, ("epoch 2/",))
    ranks = children_of(process.pid)
    assert len(ranks) == 2
    began = time.monotonic()
    os.kill(ranks[1], signal.SIGKILL)
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.wait(timeout=60) == 1
    process.stderr.close()
    print(f"seconds to the end: {time.monotonic() - began:.1f}")
    assert time.monotonic() - began < 45
    assert said.count("claris: ") == 1 and "was killed by SIGKILL" in said and "Run the same command" in said


@pytest.mark.slow
@pytest.mark.parametrize(("nproc", "options"), [(1, ()), (2, ()), (2, FINE_TUNING)], ids=["1", "2", "2-swa"])
def test_twenty_random_kills_change_no_byte(
    generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path, nproc: int, options: tuple[str, ...]
) -> None:
    generator = random.Random(nproc)
    results = []
    made = 0
    for name, kills in (("unbroken", 0), ("killed", 8)):
        where = [*places(generated, cache, tmp_path / name), "--nproc", str(nproc)]
        often = ["--checkpoint-minutes", "0.0005"] if kills else []
        recipe = ["--folds", fold_file, *TINY, *options]
        made += run_through_kills(["train", *where, *recipe, *often], kills, generator, 0.5)
        made += run_through_kills(["predict", *where], kills // 2, generator, 0.2)
        results.append(predictions_of(tmp_path / name))
    digests = [hashlib.sha256(b"".join(one.values())).hexdigest() for one in results]
    print(f"{nproc} processes: survived {made} kills of {made}; SHA-256 of the predictions {digests}")
    assert made >= 10
    assert results[0] == results[1] and len(results[0]) == 8


@pytest.mark.slow
def test_training_ends_soon_after_sigterm(generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path) -> None:
    worst = 0.0
    for nproc, send in ((1, os.kill), (2, os.kill), (2, os.killpg)):  # kill PID, and Ctrl-C's way to the whole group
        where = places(generated, cache, tmp_path / f"{nproc}{send.__name__}")
        process = start(
            "train", *where, "--folds", fold_file, "--model", "densenet121", "--weights", "none", "--nproc", nproc
        )
        wait_for_line(process, ("training densenet121",))
        time.sleep(15)
        began = time.monotonic()
        send(process.pid, signal.SIGTERM)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(timeout=60) == 3, said
        process.stderr.close()
        worst = max(worst, time.monotonic() - began)
    print(f"worst time from SIGTERM to the end: {worst:.1f} s")
    assert worst < 30
