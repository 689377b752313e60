"""Test the checks of the run folder, the config and the inputs before training starts or resumes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from claris_kaggle.cli.main import main
from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import ClarisError, UsageError
from claris_kaggle.core.files import hold_lock, read_json
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.core.presets import _preset_for
from claris_kaggle.data.augment import to_input
from claris_kaggle.data.prepare import check_fold_file, make_fold_file
from claris_kaggle.inference.forward import _view_logits
from claris_kaggle.models.cost import NetworkCost
from claris_kaggle.models.factory import create_model, require_trainable
from claris_kaggle.training import setup
from claris_kaggle.training.learner import _learning_rate
from tests.conftest import TINY, contents
from tests.support.runs import places
from tests.support.world import one_line

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(finished: RunDir, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    shutil.copytree(finished.root, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def where(generated: DataDir, cache: Path, fold_file: Path, run: Path) -> list[object]:
    """The arguments that made the finished run, for its copy."""
    return ["train", "--data", generated.root, "--cache", cache, "--folds", fold_file, "--run", run]


def test_a_finished_run_is_left_as_it_is(call: Call, where: list[object], run: Path) -> None:
    before = contents(run)
    code, shown, said = call(*where)
    assert code == 0 and shown == f"{run}\n" and said.count("already finished") == 3
    assert {**contents(run), ".lock": b""} == {**before, ".lock": b""}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--epochs", 3], "epochs: 2 in the run, 3 now"),
        (["--lr", 0.5], "lr: 0.002 in the run, 0.5 now"),
        (["--seed", 1, "--batch-size", 64], "batch_size: 32 in the run, 64 now; seed: 0 in the run, 1 now"),
        (["--model", "densenet121"], "model: 'tiny' in the run, 'densenet121' now"),
    ],
)
def test_another_config_is_refused_naming_the_fields(
    call: Call, where: list[object], run: Path, flags: list[object], words: str
) -> None:
    before = contents(run)
    code, _, said = call(*where, *flags)
    assert code == 1 and words in one_line(said)
    assert {**contents(run), ".lock": b""} == {**before, ".lock": b""}


def test_another_fold_file_is_refused(call: Call, where: list[object], generated: DataDir, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    assert call("folds", "--data", generated.root, "--k", 3, "--seed", 7, "--out", other)[0] == 0
    where[where.index("--folds") + 1] = other
    code, _, said = call(*where)
    assert code == 1 and "folds_sha256" in one_line(said)


def test_a_fold_file_of_other_data_is_refused(call: Call, sample: DataDir, where: list[object], tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    assert call("folds", "--data", sample.root, "--out", other, "--cache", tmp_path)[0] == 0
    where[where.index("--folds") + 1] = other
    code, _, said = call(*where)
    assert code == 1 and "240 ids of train_labels.csv missing" in one_line(said) and "claris folds" in said


def test_checkpoints_of_a_run_without_its_config_are_refused(call: Call, where: list[object], run: Path) -> None:
    (run / "config.json").unlink()
    before = contents(run)
    code, _, said = call(*where, "--fold", 1)
    assert code == 1 and "fold0/last.ckpt: a checkpoint" in one_line(said)
    assert {**contents(run), ".lock": b""} == {**before, ".lock": b""}
    for path in run.glob("fold*/last.ckpt*"):
        path.unlink()
    code, _, said = call(*where)
    assert code == 1 and "fold0/model.json: a finished fold without a config.json" in one_line(said)


@pytest.mark.parametrize("name", ["data", "fold", "foreign"])
def test_a_run_is_not_begun_in_a_folder_of_another_kind(
    call: Call, where: list[object], generated: DataDir, run: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "oof.csv").write_text("id,label,pred\n")
    folder = {"data": generated.root, "fold": run / "fold1", "foreign": tmp_path / "foreign"}[name]
    where[where.index("--run") + 1] = folder
    before = sorted(path.name for path in folder.iterdir())
    code, _, said = call(*where)
    words = {
        "data": "and this one has train_labels.csv",
        "fold": f"Give the run's folder: {run}",
        "foreign": "and this one has oof.csv",
    }
    assert code == 1 and words[name] in one_line(said)
    assert sorted(path.name for path in folder.iterdir() if path.name != ".lock") == before


def test_a_second_process_is_told_who_holds_the_run(call: Call, where: list[object], run: Path) -> None:
    with hold_lock(RunDir(run).lock):
        code, _, said = call(*where)
    assert code == 1 and "in use by process" in one_line(said)


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--fold", 3], 2, "--fold is 3; the fold file has folds 0 to 2"),
        (["--weights", "nowhere.pth"], 2, "nowhere.pth: no such file"),
        (["--time-limit", "soon"], 2, "invalid duration 'soon'"),
        (["--precision", "fp16"], 2, "there is no GPU here"),
        (["--model", "resnet"], 2, "unknown timm model"),
        (["--batch-size", 1], 2, "--batch-size is 1"),
        (["--weights", "other"], 1, "expected weights of the same network"),
        (["--weights", "text"], 1, "no readable weights"),
        (["--folds", "nowhere.csv"], 1, "nowhere.csv: file not found"),
        (["--nproc", 2, "--batch-size", 3], 2, "two per process"),
    ],
)
def test_wrong_use_is_one_line_and_begins_nothing(
    call: Call, where: list[object], tmp_path: Path, flags: list[object], code: int, words: str
) -> None:
    where[where.index("--run") + 1] = tmp_path / "new" / "run"
    if flags[0] == "--weights" and flags[1] != "nowhere.pth":
        flags = ["--weights", tmp_path / "weights.pth"]
        other = {"conv.weight": torch.zeros(3)} if words.startswith("expected") else "text"
        torch.save(other, tmp_path / "weights.pth")
    found, _, said = call(*where, *TINY, *flags)
    assert found == code and words in one_line(said)
    assert not (tmp_path / "new").exists()


@pytest.fixture
def claimed(finished: RunDir, tmp_path: Path) -> RunDir:
    """A run folder with config and folds, in which nothing is trained."""
    run = RunDir(tmp_path / "claimed")
    run.root.mkdir()
    for path in (finished.config, finished.folds, finished.folds.with_suffix(".json")):
        shutil.copy(path, run.root)
    return run


def test_a_config_without_a_checkpoint_binds_nobody(call: Call, where: list[object], claimed: RunDir) -> None:
    where[where.index("--run") + 1] = claimed.root
    code, _, said = call(*where, *TINY, "--epochs", 1, "--lr", 0.5, "--fold", 2)
    assert code == 0 and "nothing was trained with it; replaced" in said
    assert (read_json(claimed.config)["epochs"], read_json(claimed.config)["lr"]) == (1, 0.5)
    code, _, said = call(*where, "--lr", 0.1, "--fold", 2)
    assert code == 1 and "lr: 0.5 in the run, 0.1 now" in one_line(said)


def test_a_bare_command_goes_on_with_the_config_of_a_run_without_a_checkpoint(
    call: Call, where: list[object], finished: RunDir, claimed: RunDir
) -> None:
    where[where.index("--run") + 1] = claimed.root
    code, _, said = call(*where, "--fold", 2)
    assert code == 0 and "replaced" not in said
    assert claimed.config.read_bytes() == finished.config.read_bytes()
    assert claimed.fold(2).weights.read_bytes() == finished.fold(2).weights.read_bytes()


def test_a_network_that_cannot_make_a_training_step_is_refused() -> None:
    class Frozen(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((1, 2, 3))[:, None].expand(-1, 2)

    class Three(torch.nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images.mean((2, 3)))

    with pytest.raises(UsageError, match=r"--model x cannot be trained at 96 x 96 pixels \("):
        require_trainable(Frozen(), "x", 96)
    with pytest.raises(UsageError, match=r"--model x returns \(2, 3\) for two patches; expected \(2, 2\)"):
        require_trainable(Three(3, 3), "x", 96)
    before = torch.get_rng_state()
    require_trainable(create_model("tiny"), "tiny", 96)
    assert torch.equal(before, torch.get_rng_state())


def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_ends_the_same(
    call: Call, where: list[object], run: Path, finished: RunDir
) -> None:
    fold = RunDir(run).fold(1)
    fold.weights_manifest.unlink()
    fold.weights.write_bytes(b"")
    fold.checkpoint.write_bytes(fold.checkpoint.read_bytes()[:-10])
    code, _, said = call(*where)
    assert code == 0 and "resuming from the previous checkpoint" in said
    assert fold.weights.read_bytes() == finished.fold(1).weights.read_bytes()


def test_both_checkpoints_damaged_are_refused_with_the_way_out(call: Call, where: list[object], run: Path) -> None:
    fold = RunDir(run).fold(1)
    fold.weights_manifest.unlink()
    for path in fold.root.glob("last.ckpt*"):
        path.write_bytes(b"x")
    code, _, said = call(*where)
    assert code == 1 and "Remove last.ckpt and last.ckpt.previous to train" in one_line(said)


def test_a_loss_that_is_no_number_ends_with_advice(call: Call, where: list[object], tmp_path: Path) -> None:
    import safetensors.torch

    weights = create_model("tiny").state_dict()
    weights["0.weight"][0] = 3e38  # finite, and infinite after the first layer
    safetensors.torch.save_file(weights, tmp_path / "w.safetensors")
    where[where.index("--run") + 1] = tmp_path / "new"
    code, _, said = call(*where, *TINY, "--weights", tmp_path / "w.safetensors")
    assert code == 1 and "the loss or its gradients are NaN or infinite" in one_line(said) and "lower --lr" in said
    assert not (tmp_path / "new/fold0/model.json").exists()


def test_training_without_enough_gpu_memory_says_which_batch_size_to_try(
    call: Call, where: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/gpu fills a real GPU."""

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("claris_kaggle.training.train._train_epoch", fail)
    where[where.index("--run") + 1] = tmp_path / "new"
    code, shown, said = call(*where, *TINY)
    assert (code, shown) == (1, "")
    assert "fold 0: the GPU memory is too small for 32 patches per step" in said
    assert "--batch-size 16 or smaller" in said and "Traceback" not in said


def test_predictions_with_damaged_weights_are_refused(
    call: Call, where: list[object], run: Path, generated: DataDir, cache: Path
) -> None:
    fold = RunDir(run).fold(0)
    content = bytearray(fold.weights.read_bytes())
    content[-5] ^= 1
    fold.weights.write_bytes(bytes(content))
    before = contents(run)
    code, _, said = call("predict", "--data", generated.root, "--cache", cache, "--run", run)
    assert code == 0 and "fold 0 without weights" in said
    assert {**contents(run), ".lock": b""} == {**before, ".lock": b""}


def test_a_damaged_prediction_file_is_made_again(
    call: Call, run: Path, generated: DataDir, cache: Path, finished: RunDir
) -> None:
    path = RunDir(run).fold(0).oof
    path.write_text(path.read_text()[:-20])
    code, shown, _ = call("predict", "--data", generated.root, "--cache", cache, "--run", run)
    assert code == 0 and "fold all" in shown
    assert path.read_bytes() == finished.fold(0).oof.read_bytes()


def test_predictions_for_other_data_are_refused(call: Call, run: Path, sample: DataDir, tmp_path: Path) -> None:
    code, _, said = call("predict", "--data", sample.root, "--cache", tmp_path, "--run", run)
    assert code == 1 and f"{sample.root}: not the patches on which the run {run} was trained" in one_line(said)


def test_a_run_that_is_none_is_refused(call: Call, generated: DataDir, tmp_path: Path) -> None:
    code, _, said = call("predict", "--data", generated.root, "--run", tmp_path / "nothing")
    assert code == 1 and "no such folder" in one_line(said) and "claris train" in said
    assert not (tmp_path / "nothing").exists()
    code, _, said = call("ensemble", tmp_path / "nothing", "--data", generated.root, "--out", tmp_path / "s.csv")
    assert code == 1 and "claris predict" in one_line(said)


def test_a_config_of_another_version_is_refused(call: Call, where: list[object], run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "magic": 1}))
    code, _, said = call(*where)
    assert code == 1 and "unknown fields magic" in one_line(said)


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    config = TrainConfig(lr=1e-3)
    rates = [_learning_rate(step, 1000, config) for step in range(1000)]
    assert max(rates) == pytest.approx(1e-3, rel=1e-3) and int(np.argmax(rates)) in range(295, 305)
    assert rates[0] == pytest.approx(1e-3 / 25, rel=0.01) and rates[-1] < 1e-6
    assert _learning_rate(7, 1000, TrainConfig(lr=1e-3, schedule="constant")) == 1e-3
    falling = [_learning_rate(step, 1000, TrainConfig(lr=1e-3, schedule="cosine")) for step in range(1000)]
    assert falling == sorted(falling, reverse=True) and falling[0] == pytest.approx(1e-3, rel=1e-4)
    assert falling[-1] < 1e-6 and falling[500] == pytest.approx(5e-4, rel=0.01)


def test_an_input_size_that_leaves_no_feature_map_is_refused() -> None:
    assert TrainConfig(stem="pool4", tail="no-pool", crop=32).min_side == 32
    for wrong in ({"resolution": 31}, {"crop": 48, "stem": "pool4", "tail": "pool"}):
        with pytest.raises(UsageError, match="expected"):
            TrainConfig(**wrong)


def test_what_a_network_sees_is_averaged_by_areas_alike_in_training_and_prediction() -> None:
    images = torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8)
    whole, half = to_input(images, "patches"), to_input(images, "patches", resolution=48)
    torch.testing.assert_close(half, torch.nn.functional.avg_pool2d(whole, 2))
    seen: list[torch.Size] = []

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        seen.append(inputs[0].shape[-2:])

    model = create_model("tiny")
    model.register_forward_pre_hook(note)  # type: ignore[arg-type]
    config = TrainConfig(model="tiny", weights="none", precision="fp32", epochs=4, resolution=64)
    _view_logits(model, images, config, 1)
    assert seen == [torch.Size([64, 64])]


def test_a_fold_file_that_leaks_is_refused_before_training(
    call: Call, generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:

    by_patch = tmp_path / "patch.csv"
    make_fold_file(generated, by_patch, k=3, cache=cache)
    with pytest.raises(ClarisError, match="slides in more than one fold"):
        check_fold_file(generated, by_patch, slides=generated.root / "slides.csv", cache=cache)
    where = places(generated, cache, tmp_path / "run")
    code, _, said = call("train", *where, "--folds", by_patch, *TINY, "--slides", generated.root / "slides.csv")
    assert code == 1 and "slides in more than one fold" in said
    assert not (tmp_path / "run/config.json").exists()


def test_a_preset_sets_what_was_not_typed_and_is_kept(
    generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:

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


def test_the_default_batch_size_fits_the_memory_of_a_t4_on_every_machine() -> None:
    cost = NetworkCost(gflop=17.0, saved_megabytes=250.0, weights=50_000_000, precision="fp16")
    with mock.patch.object(setup, "run_cost", return_value=cost):
        sizes = [setup._choose_batch_size(TrainConfig(), 176_020, nproc) for nproc in (1, 2, 4)]
        assert sizes == [32, 64, 128]
        assert all(
            size <= nproc * cost.largest_batch_size() < 2 * size for size, nproc in zip(sizes, (1, 2), strict=False)
        )
        assert setup._choose_batch_size(TrainConfig(), 960, 2) == 32
    assert setup._choose_batch_size(TrainConfig(model="tiny"), 176_020, 1) == 128


def test_a_batch_that_surely_does_not_fit_is_said_and_not_refused(
    call: Call, where: list[object], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "_gpu_gigabytes", lambda: 0.7)
    code, _, said = call(*where)
    assert code == 0 and "--batch-size 32 needs about 0.8 GB per GPU, and this one has 0.7 GB; at most" in said
    assert "0.000581 GFLOP an image, about 0 s on two T4s (estimated)" in said
    monkeypatch.setattr(setup, "_gpu_gigabytes", lambda: 8.0)
    assert "per GPU" not in call(*where)[2]


def test_the_first_line_names_what_is_used_and_another_optimizer_gets_a_remark(
    call: Call, generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    begin = ["train", *places(generated, cache, tmp_path / "run"), "--folds", fold_file, *TINY, "--fold", 0]
    code, _, said = call(*begin, "--epochs", 1, "--optimizer", "sgd", "--augment", "none")
    assert code == 0
    (recipe,) = (line for line in said.splitlines() if line.startswith("training tiny"))
    assert "optimizer sgd, " in recipe and "augment none, " in recipe and "color" not in recipe
    assert "the learning rate of 0.002 was measured with adamw; sgd may need another: try some with --lr" in said
