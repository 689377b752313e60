"""The whole way with real processes: one, two and three of them, killed, shuffled, started by torchrun."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from claris_kaggle.core.errors import TrainingError
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.tables import read_labels, read_sample
from claris_kaggle.evaluation.predictions import read_oof, read_test
from claris_kaggle.inference.fold_models import load_trained, predict_ensemble
from claris_kaggle.models.factory import create_model
from claris_kaggle.models.weights import finish_fold, load_finished, save_weights
from tests.conftest import DEADLINE, ROOT, TINY, claris, contents, environment, shuffle_rows

Call = Callable[..., tuple[int, str, str]]
STEPS = ROOT / "tests" / "support" / "ddp_steps.py"
PREDICTIONS = ("oof.csv", "test.csv")


def places(data: DataDir, cache: Path, run: Path) -> list[str]:
    return ["--data", str(data.root), "--cache", str(cache), "--run", str(run)]


def predictions_of(run: Path) -> dict[str, bytes]:
    return {name: value for name, value in contents(run).items() if Path(name).name in PREDICTIONS}


def copy_run(source: RunDir, target: Path, *, predicted: bool = True) -> Path:
    """A copy of the run, to be changed."""
    shutil.copytree(source.root, target)
    if not predicted:
        for path in [*target.rglob("*.csv"), *target.rglob("predictions.json")]:
            if path.name in (*PREDICTIONS, "predictions.json"):
                path.unlink()
        (target / "metrics.json").unlink()
    return target


def test_a_run_leaves_every_file_of_the_contract(finished: RunDir, generated: DataDir) -> None:
    ids, labels = read_labels(generated.labels)
    oof, test = read_oof(finished.oof), read_test(finished.test)
    assert oof.ids == ids and oof.labels.tolist() == labels.tolist()
    assert test.ids == sorted(read_sample(generated.sample))
    metrics = json.loads(finished.metrics.read_text())
    assert metrics["views"] == 8 and [row["fold"] for row in metrics["folds"]] == [0, 1, 2]
    assert set(metrics["overall"]) >= {"auc", "accuracy", "log_loss", "patches"}
    for fold in range(3):
        fold_dir = finished.fold(fold)
        for path in (
            fold_dir.checkpoint,
            fold_dir.weights,
            fold_dir.best_weights,
            fold_dir.weights_manifest,
            fold_dir.history,
        ):
            assert path.exists()
        assert len(fold_dir.history.read_text().splitlines()) == 3
    history = finished.fold(0).history.read_text().splitlines()[0]
    assert history == "epoch,train_loss,valid_loss,auc,accuracy,lr,seconds,images_per_second"


@pytest.mark.parametrize("nproc", [2, 3])
def test_predictions_of_any_world_size_are_the_same_bytes(
    finished: RunDir, generated: DataDir, cache: Path, tmp_path: Path, nproc: int
) -> None:
    run = copy_run(finished, tmp_path / "run", predicted=False)
    done = claris("predict", *places(generated, cache, run), "--nproc", nproc)
    assert done.returncode == 0, done.stderr
    assert predictions_of(run) == predictions_of(finished.root)
    assert done.stdout.count("fold all") == 1


def test_one_view_and_eight_views_are_different_predictions(
    finished: RunDir, generated: DataDir, cache: Path, tmp_path: Path
) -> None:
    run = copy_run(finished, tmp_path / "run")
    assert claris("predict", *places(generated, cache, run), "--views", 1).returncode == 0
    one, eight = read_oof(run / "oof.csv").probabilities, read_oof(finished.oof).probabilities
    assert 0 < np.abs(one - eight).max() < 0.5


def test_predictions_that_are_no_numbers_are_refused_and_written_nowhere(
    call: Call, finished: RunDir, generated: DataDir, cache: Path, tmp_path: Path
) -> None:
    run = RunDir(copy_run(finished, tmp_path / "run", predicted=False))
    model = create_model("tiny")
    load_finished(run.fold(1), model)
    with torch.no_grad():
        model.get_classifier().bias.fill_(float("nan"))  # type: ignore[operator]
    save_weights(run.fold(1).weights, model)
    finish_fold(run.fold(1), {})
    code, shown, said = call("predict", *places(generated, cache, run.root))
    assert (code, shown) == (1, "") and "fold 1: " in said and "predictions are no numbers, in fp32" in said
    assert (
        run.fold(0).predictions_manifest.exists()
        and not run.fold(1).oof.exists()
        and not run.fold(1).predictions_manifest.exists()
    )
    with pytest.raises(TrainingError, match="answer is no number"):  # and not benign
        predict_ensemble(load_trained(run.root), np.zeros((1, 96, 96, 3), dtype=np.uint8), views=1)


def test_two_processes_train_exactly_the_mean_gradient(
    generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    """Without batch norm in the way, two ranks take the same steps as one process, but for rounding."""
    done = [
        subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size),
             str(STEPS), str(generated.root), str(cache), str(tmp_path / f"{size}.pt")],
            timeout=DEADLINE, env=environment(), capture_output=True, text=True,
        )
        for size in (1, 2, 3)
    ]  # fmt: skip
    assert [one.returncode for one in done] == [0, 0, 0], done[-1].stderr
    import torch

    one, *others = (torch.load(tmp_path / f"{size}.pt", weights_only=True) for size in (1, 2, 3))
    for other in others:
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        for name, value in one["model"].items():
            torch.testing.assert_close(other["model"][name], value, rtol=1e-3, atol=1e-5)


def test_two_processes_do_the_whole_way_and_are_the_same_each_time(
    generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    found = []
    for name in ("one", "two"):
        where = places(generated, cache, tmp_path / name)
        done = claris("train", *where, "--folds", fold_file, *TINY, "--nproc", 2, "--fold", 0)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{tmp_path / name}\n"
        assert "fold 0 epoch 2/2" in done.stderr and done.stderr.count("fold 0 epoch 2/2") == 1
        done = claris("predict", *where, "--nproc", 2)
        assert done.returncode == 0 and "fold 1, 2 not trained yet" in done.stderr
        found.append(predictions_of(tmp_path / name))
    assert found[0] == found[1] and set(found[0]) == {"fold0/oof.csv", "fold0/test.csv"}


def test_the_users_own_torchrun_works_as_well(
    finished: RunDir, generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    where = places(generated, cache, tmp_path / "run")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = ["train", *where, "--folds", str(fold_file), *TINY, "--fold", "0"]
    done = subprocess.run(
        [*command, "-m", "--", "claris_kaggle", *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'run'}\n"
    assert (tmp_path / "run/fold0/model.json").exists()


@pytest.mark.slow
def test_a_machine_with_another_fold_file_is_refused(
    generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    other = tmp_path / "other.csv"
    assert call("folds", "--data", generated.root, "--k", 3, "--seed", 7, "--out", other)[0] == 0
    rendezvous = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", free_port()]
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


def free_port() -> str:
    """Return the number of a TCP port that is free on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_shuffled_tables_give_the_same_bytes(finished: RunDir, generated: DataDir, cache: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        (data / split).symlink_to(generated.root / split)
    for seed, name in enumerate(("train_labels.csv", "slides.csv", "sample_submission.csv")):
        shuffle_rows(generated.root / name, data / name, seed)
    shuffled = DataDir(data)
    folds, run = tmp_path / "folds.csv", tmp_path / "run"
    done = claris("folds", "--data", data, "--slides", data / "slides.csv", "--k", 3, "--out", folds, "--cache", cache)
    assert done.returncode == 0, done.stderr
    assert folds.read_bytes() == finished.folds.read_bytes()
    shuffle_rows(folds, tmp_path / "shuffled.csv")
    for verb in (["train", "--folds", tmp_path / "shuffled.csv", *TINY], ["predict"]):
        done = claris(verb[0], *places(shuffled, cache, run), *verb[1:])
        assert done.returncode == 0, done.stderr
    assert predictions_of(run) == predictions_of(finished.root)
    for name, root in (("one", generated.root), ("two", data)):
        done = claris("ensemble", run, "--data", root, "--out", tmp_path / f"{name}.csv")
        assert done.returncode == 0, done.stderr
    one, two = ((tmp_path / f"{name}.csv").read_text().splitlines() for name in ("one", "two"))
    assert one != two and sorted(one) == sorted(two)
    assert [line.split(",")[0] for line in two[1:]] == read_sample(data / "sample_submission.csv")


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "claris_kaggle", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment(), start_new_session=True, text=True
    )


def wait_for_line(process: subprocess.Popen[str], words: tuple[str, ...]) -> None:
    """Read what the process says until one of the words, or its end."""
    assert process.stderr is not None
    for line in process.stderr:
        if any(word in line for word in words):
            return


def kill_all(process: subprocess.Popen[str]) -> None:
    """End the started command and the processes that it started, at once."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


def run_through_kills(arguments: list[object], kills: int, generator: random.Random, longest: float) -> int:
    """Run the command, killing it at random moments of its work, then let it end; returns the kills made."""
    made = 0
    for _ in range(kills):
        with start(*arguments) as process:
            wait_for_line(process, ("training tiny", "predicted"))
            time.sleep(generator.uniform(0, longest))
            if process.poll() is None:
                kill_all(process)
                made += 1
    done = claris(*arguments)
    assert done.returncode == 0, done.stderr
    return made


def test_killed_training_and_prediction_end_with_the_same_bytes(
    finished: RunDir, generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    generator = random.Random(0)
    where = places(generated, cache, tmp_path / "run")
    often = ["--checkpoint-minutes", "0.001"]
    made = run_through_kills(["train", *where, "--folds", fold_file, *TINY, *often], 4, generator, 0.6)
    made += run_through_kills(["predict", *where], 1, generator, 0.1)
    print(f"kills survived: {made}")
    assert made > 0
    assert predictions_of(tmp_path / "run") == predictions_of(finished.root)
    weights = {name: value for name, value in contents(tmp_path / "run").items() if name.endswith("model.safetensors")}
    assert weights == {name: contents(finished.root)[name] for name in weights}


def stop_once(arguments: list[object]) -> bool:
    """Ask the command to stop soon after it began to train; whether it did."""
    command = [sys.executable, "-m", "claris_kaggle", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if b"training tiny" in line:
                break
        time.sleep(0.3)
        process.terminate()
        said = process.stderr.read().decode()
        code = process.wait(timeout=60)
    if code == 0:
        return False
    assert code == 3, said
    assert "stopped by SIGTERM" in said and "The same command goes on from there" in said
    return True


def test_a_stop_in_time_is_exit_code_3_and_goes_on_to_the_same_bytes(
    finished: RunDir, generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    arguments = ["train", *places(generated, cache, tmp_path / "run"), "--folds", fold_file, *TINY]
    stopped = sum(stop_once(arguments) for _ in range(4))
    assert claris(*arguments).returncode == 0
    assert stopped > 0
    assert claris("predict", *places(generated, cache, tmp_path / "run")).returncode == 0
    assert predictions_of(tmp_path / "run") == predictions_of(finished.root)


def test_a_time_limit_stops_two_processes_together(
    generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    arguments = ["train", *places(generated, cache, tmp_path / "run"), "--folds", fold_file, *TINY, "--nproc", 2]
    done = claris(*arguments, "--epochs", 500, "--time-limit", "15s")
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("stopped by the time limit") == 1
    assert (tmp_path / "run/fold0/last.ckpt").exists()


def test_the_demo_ends_with_a_checked_submission_and_a_report(tmp_path: Path) -> None:
    arguments = ["demo", "--model", "tiny", "--train", 100, "--test", 20, "--out", tmp_path / "demo"]
    done = claris(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["oof"]["patches"] == 100 and result["test"]["patches"] == 20
    assert Path(result["submission"]).exists() and "<svg" in Path(result["report"]).read_text()
    submission = Path(result["submission"]).read_bytes()
    again = claris(*arguments)
    assert again.returncode == 0 and "OOF AUC" in again.stdout and "claris train --data" in again.stdout
    assert Path(result["submission"]).read_bytes() == submission


@pytest.mark.slow
def test_the_demo_learns_with_a_real_densenet(tmp_path: Path) -> None:
    done = claris("demo", "--out", tmp_path / "demo", "--json", deadline=600)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["oof"]["auc"] > 0.85 and result["test"]["auc"] > 0.9


def test_folds_of_a_run_are_predicted_in_one_precision(
    call: Call, finished: RunDir, generated: DataDir, cache: Path, tmp_path: Path
) -> None:
    run = RunDir(copy_run(finished, tmp_path / "run"))
    arguments = ["predict", *places(generated, cache, run.root), "--nproc", "1"]

    def precisions() -> set[str]:
        return {json.loads(run.fold(fold).predictions_manifest.read_text())["precision"] for fold in range(3)}

    assert precisions() == {"fp32"}
    assert call(*arguments, "--precision", "bf16")[0] == 0 and precisions() == {"bf16"}
    code, _, said = call(*arguments)
    assert code == 0 and said.count("predicted before") == 3, "all folds have one precision, and none was asked for"
    run.fold(1).predictions_manifest.unlink()
    code, _, said = call(*arguments)
    assert code == 0 and "predicted before" not in said, "fold 1 is predicted in fp32, so all others are too"
    assert precisions() == {"fp32"} and predictions_of(run.root) == predictions_of(finished.root)
