"""Nothing is lost: random kills, stops, ranks that die, losses that are no number, several machines."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import ClarisError, DiskError, Stopped, TrainingError, UsageError
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.core.presets import _preset_for
from claris_kaggle.core.time_limit import Stopper
from claris_kaggle.data.batches import Batch, EpochBatches, TrainSet
from claris_kaggle.data.prepare import get_pack
from claris_kaggle.data.tables import read_labels
from claris_kaggle.models.factory import create_model
from claris_kaggle.runtime import loading
from claris_kaggle.runtime.distributed import World
from claris_kaggle.runtime.precision import choose_precision, usable_precision
from claris_kaggle.training import learner as learner_module
from claris_kaggle.training.checkpoint import _CheckpointWriter, _load_checkpoint
from claris_kaggle.training.learner import _Diverged, _Learner, _train_epoch
from tests.conftest import DEADLINE, ROOT, TINY, claris, environment
from tests.system.test_pipeline import kill_all, places, predictions_of, run_through_kills, start, wait_for_line

ALONE = World(0, 0, 1, torch.device("cpu"))


@pytest.fixture
def trainset(generated: DataDir, cache: Path) -> TrainSet:
    ids, labels = read_labels(generated.labels)
    return TrainSet(get_pack(generated, "train", ids, cache, verified=True), ids, labels.astype(np.int64))


def new_learner(seed: int = 0) -> _Learner:
    config = TrainConfig(model="tiny", weights="none", epochs=1, batch_size=40, lr=1e-3, color=0.3, precision="fp32")
    return _Learner(config, ALONE, create_model("tiny", seed))


def batches_of(trainset: TrainSet) -> EpochBatches:
    return EpochBatches(trainset, new_learner().config, epoch=0, rank=0, world_size=1)


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Give the loss of these steps, counted over all calls, no value."""
    whole, seen = learner_module.functional.cross_entropy, [0]

    def spoiled(*arguments: object, **named: object) -> torch.Tensor:
        seen[0] += 1
        loss = whole(*arguments, **named)  # type: ignore[arg-type]
        return loss * float("nan") if seen[0] in steps else loss

    monkeypatch.setattr(learner_module.functional, "cross_entropy", spoiled)


def test_a_step_without_a_finite_loss_is_skipped_and_counted(
    trainset: TrainSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = new_learner()
    spoil(monkeypatch, {3})
    before: list[dict[str, torch.Tensor]] = []

    def between(rows: int) -> str:
        before.append({name: value.detach().clone() for name, value in learner.model.named_parameters()})
        return ""

    loss = _train_epoch(learner, batches_of(trainset), 0, between)
    assert np.isfinite(loss) and int(learner.skipped) == 1 and len(before) == 6
    assert all(torch.equal(before[1][name], before[2][name]) for name in before[1])
    assert not all(torch.equal(before[2][name], before[3][name]) for name in before[1])


def test_many_such_steps_in_a_row_are_an_error(trainset: TrainSet, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, set(range(2, 7)))
    with pytest.raises(_Diverged, match="the loss or its gradients are no numbers"):
        _train_epoch(new_learner(), batches_of(trainset), 0, lambda rows: "")


def test_an_infinity_in_a_forward_pass_does_not_stay_in_the_running_statistics(
    trainset: TrainSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(new_learner().config, ema=0.9)
    learner, whole = _Learner(config, ALONE, create_model("tiny")), learner_module._augment_batch

    def spoiled(learner: _Learner, batch: Batch) -> torch.Tensor:
        return whole(learner, batch) * (float("inf") if learner.taken == 2 else 1)

    monkeypatch.setattr(learner_module, "_augment_batch", spoiled)
    _train_epoch(learner, batches_of(trainset), 0, lambda rows: "")
    assert int(learner.skipped) == 1
    for state in (learner.state()["model"], learner.state()["average"]):
        assert all(bool(torch.isfinite(value).all()) for value in state.values())


def test_steps_whose_gradients_are_no_numbers_are_an_error_in_the_end(
    trainset: TrainSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner_module, "_MOST_UNMOVED", 3)
    learner = new_learner()
    next(learner.model.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(_Diverged, match=r"step 4: the loss or its gradients are no numbers"):
        _train_epoch(learner, batches_of(trainset), 0, lambda rows: "")
    assert int(learner.skipped) == 0


def test_a_checkpoint_of_another_device_keeps_this_ones_way_to_update() -> None:
    state = new_learner().state()
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = True  # as a GPU's
    learner = new_learner()
    learner.restore(state)
    assert not any(group["fused"] for group in learner.optimizer.param_groups)


def test_shared_memory_that_is_small_is_left_to_fewer_loader_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    if not loading.SHARED_MEMORY.is_dir():
        pytest.skip("no shared memory folder on this system")
    block = 512 * 27_648
    for free, processes, wanted, fitting in (
        (64 << 20, 1, 4, 1),
        (64 << 20, 2, 4, 0),
        (8 << 30, 2, 4, 4),
        (0, 1, 0, 0),
    ):
        monkeypatch.setattr(loading.shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        assert loading.fitting_workers(wanted, block, processes) == fitting


def start_long(*arguments: object) -> subprocess.Popen[str]:
    """Training that will not end by itself before it is stopped."""
    return start("train", *arguments, "--model", "tiny", "--weights", "none", "--epochs", "1000")


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


def test_a_loader_process_that_is_killed_is_one_clear_line() -> None:
    def dying() -> Iterator[int]:
        yield 1
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    with pytest.raises(TrainingError, match=r"a loader process was killed.*fewer --workers"):
        list(loading._explain_workers(dying()))


def test_a_gpu_without_bf16_is_not_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    with pytest.raises(UsageError, match="bf16, which this GPU does not have"):
        choose_precision("bf16", "cuda")
    assert usable_precision("", "bf16", "cuda") == "fp16"
    assert choose_precision("bf16", "cpu") == "bf16"


def test_what_will_not_come_again_is_no_work_to_keep_time_for() -> None:
    stopper = Stopper(100.0)
    stopper.last -= 50
    stopper.pause()
    stopper.tick()
    assert stopper.slowest < 1 and not stopper.reason()
    stopper.last -= 80
    stopper.tick()
    assert stopper.reason() == "the time limit"


def test_a_fold_goes_back_to_its_checkpoint_once_and_ends_the_same(
    generated: DataDir, cache: Path, fold_file: Path, finished: RunDir, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from claris_kaggle.cli.main import main

    arguments = ["train", *places(generated, cache, tmp_path / "run"), "--folds", str(fold_file), *TINY, "--fold", "0"]
    spoil(monkeypatch, set(range(6, 11)))  # in the second epoch, which the first's checkpoint precedes
    assert main(arguments) == 0
    assert "going back to the last checkpoint" in capsys.readouterr().err
    assert (tmp_path / "run/fold0/model.safetensors").read_bytes() == finished.fold(0).weights.read_bytes()


def test_the_precision_of_bf16_trains_and_predicts(
    generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    from claris_kaggle.cli.main import main

    where = places(generated, cache, tmp_path / "run")
    assert main(["train", *where, "--folds", str(fold_file), *TINY, "--precision", "bf16"]) == 0
    assert main(["predict", *where]) == 0
    fast = RunDir(tmp_path / "run").oof.read_bytes()
    assert main(["predict", *where, "--precision", "fp32"]) == 0
    exact = RunDir(tmp_path / "run").oof.read_bytes()
    assert fast != exact and fast[:40] == exact[:40]


def test_checkpoints_are_written_beside_the_steps_and_hold_the_state_of_their_moment(tmp_path: Path) -> None:
    learner = new_learner()
    weight = next(learner.model.parameters())
    with _CheckpointWriter(tmp_path / "last.ckpt") as writer:
        writer.save(learner.state())
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.add_(1.0)
    state = _load_checkpoint(tmp_path / "last.ckpt")
    assert state is not None and torch.equal(state["model"]["0.weight"], kept)


def test_a_checkpoint_that_could_not_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DiskError), _CheckpointWriter(tmp_path / "file" / "last.ckpt") as writer:
        writer.save(new_learner().state())


def test_a_rank_that_is_killed_ends_the_others_soon_and_is_said_once(
    generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    where = [*places(generated, cache, tmp_path / "run"), "--folds", fold_file, *TINY]
    process = start("train", *where, "--epochs", 100_000, "--nproc", 2)
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
    assert claris("train", *where, "--epochs", 100_000, "--nproc", 2, "--time-limit", "10s").returncode == 3


def children_of(pid: int) -> list[int]:
    """The processes of ranks that the process started."""
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    rows = [line.split(None, 1) for line in listed.splitlines()]
    return sorted(int(row[0]) for row in rows if "claris_kaggle" in row[1])


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.slow
def test_two_machines_train_as_one(generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path) -> None:
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
    done = claris(*arguments, *places(generated, cache, tmp_path / "one"), "--nproc", 2)
    assert done.returncode == 0, done.stderr
    weights = [(tmp_path / name / "fold0/model.safetensors").read_bytes() for name in ("nodes", "one")]
    assert weights[0] == weights[1]


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


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [1, 2])
def test_twenty_random_kills_change_no_byte(
    generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path, nproc: int
) -> None:
    generator = random.Random(nproc)
    results = []
    made = 0
    for name, kills in (("unbroken", 0), ("killed", 8)):
        where = [*places(generated, cache, tmp_path / name), "--nproc", str(nproc)]
        often = ["--checkpoint-minutes", "0.0005"] if kills else []
        made += run_through_kills(["train", *where, "--folds", fold_file, *TINY, *often], kills, generator, 0.5)
        made += run_through_kills(["predict", *where], kills // 2, generator, 0.2)
        results.append(predictions_of(tmp_path / name))
    print(f"{nproc} processes: survived {made} kills of {made}")
    assert made >= 10
    assert results[0] == results[1] and len(results[0]) == 8


@pytest.mark.slow
def test_the_time_from_sigterm_to_the_end_is_short(
    generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
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


def test_doctor_names_what_is_bad_with_a_fix(tmp_path: Path, generated: DataDir) -> None:
    from claris_kaggle.doctor import BAD, GOOD, check_installation

    good = {one.name: one for one in check_installation(generated.root, tmp_path, account=False)}
    assert good["data"].state == good["torch pair"].state == GOOD and "240 training" in good["data"].found
    bad = {one.name: one for one in check_installation(tmp_path / "nowhere", tmp_path, account=False)}
    assert bad["data"].state == BAD and "--data DIR" in bad["data"].hint
    done = claris("doctor", "--data", tmp_path / "nowhere", "--json")
    assert done.returncode == 1 and '"ok": false' in done.stdout
    done = claris("doctor", "--account", "--data", generated.root)
    assert done.returncode == 1 and "no Kaggle token was found" in done.stdout


def test_without_a_home_a_cache_is_asked_for(
    call: Callable[..., tuple[int, str, str]], generated: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    code, _, said = call("pack", "--data", generated.root)
    assert (code, said) == (2, "claris: this user has no home to keep packs in. Name a folder with --cache\n")
    code, shown, _ = call("doctor")
    assert code == 1 and "disk           this user has no home" in shown and "torch pair" in shown


def test_a_fold_file_that_leaks_is_refused_before_training(
    generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    from claris_kaggle.data.prepare import check_fold_file, make_fold_file

    by_patch = tmp_path / "patch.csv"
    make_fold_file(generated, by_patch, k=3, cache=cache)
    with pytest.raises(ClarisError, match="slides in more than one fold"):
        check_fold_file(generated, by_patch, slides=generated.root / "slides.csv", cache=cache)
    done = claris(
        "train", *places(generated, cache, tmp_path / "run"), "--folds", by_patch, *TINY,
        "--slides", generated.root / "slides.csv",
    )  # fmt: skip
    assert done.returncode == 1 and "slides in more than one fold" in done.stderr
    assert not (tmp_path / "run/config.json").exists()


def test_a_moving_average_is_in_the_checkpoint_and_predicts(trainset: TrainSet) -> None:
    def averaged() -> _Learner:
        return _Learner(dataclasses.replace(new_learner().config, ema=0.9), ALONE, create_model("tiny", 0))

    whole, first, rest = averaged(), averaged(), averaged()
    batches = EpochBatches(trainset, whole.config, epoch=0, rank=0, world_size=1)
    _train_epoch(whole, batches, 0, lambda rows: "")
    with pytest.raises(Stopped):
        _train_epoch(first, batches, 0, lambda rows: "enough" if first.step == 3 else "")
    rest.restore(first.state())
    _train_epoch(rest, batches, 0, lambda rows: "")
    for one, other in zip(whole.predictor.state_dict().values(), rest.predictor.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert whole.predictor is not whole.model
    weights = [next(part.parameters()) for part in (whole.predictor, whole.model)]
    assert not torch.equal(*weights)


def test_a_preset_sets_what_was_not_typed_and_is_kept(
    generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    from claris_kaggle.cli.main import main
    from claris_kaggle.core.files import read_json

    where = places(generated, cache, tmp_path / "run")
    begin = ["train", *where, "--folds", str(fold_file), *TINY, "--fold", "0"]
    assert main([*begin, "--preset", "original", "--lr", "5e-4"]) == 0
    config = read_json(tmp_path / "run/config.json")
    assert config["preset"] == "original" and config["lr"] == 5e-4 and config["class_weight"] == 1.5
    assert (config["geometry"], config["normalise"], config["schedule"]) == ("flips", "imagenet", "constant")
    assert main(begin) == 0  # the same run goes on without its flags typed again
    assert main([*begin, "--preset", "scratch"]) == 1
    where = places(generated, cache, tmp_path / "own")
    assert main(["train", *where, "--folds", str(fold_file), *TINY, "--fold", "0"]) == 0
    config = read_json(tmp_path / "own/config.json")
    scratch = {**_preset_for("scratch", "tiny"), "preset": "scratch", "epochs": 2}  # TINY types its epochs
    assert {name: config[name] for name in scratch} == scratch
    # to type what was the default is to type nothing new
    assert main(["train", *where, "--folds", str(fold_file), *TINY, "--fold", "0", "--preset", "auto"]) == 0
