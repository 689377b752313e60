"""Test the checks before a push: what a session would refuse in its first minute is refused on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.prepare import make_fold_file
from claris_kaggle.kaggle import api, preflight
from claris_kaggle.models.factory import create_model
from tests.support.world import one_line

Call = Callable[..., tuple[int, str, str]]
TINY_FLAGS = ["--", "--model", "tiny"]
LAUNCH = ["launch", "first", "--runs", "runs", "--ledger", "ledger.csv"]
PUSH = ["push", "train", "--record", "kernels.json"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty folder and return it. Every request to Kaggle is an error."""

    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("Kaggle was asked")

    for name in ("_call_once", "_call_with_retries", "find_user"):
        monkeypatch.setattr(api, name, refuse)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def check_refused(call: Call, words: str, *arguments: object, code: int = 2, command: list[str] | None = None) -> None:
    for one in [command] if command else [LAUNCH, PUSH]:
        found, _, said = call(*one, *arguments)
        assert found == code and words in one_line(said), said
    assert not Path("runs").exists() and not Path("kernels.json").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "nonsense9", "--weights", "none"], "--model is 'nonsense9'; unknown timm model"),
        (["--model", "tiny"], "timm has no ImageNet weights for tiny"),
        (["--model", "tiny", "--weights", "none", "--precision", "bf16"], "--precision is bf16, which a T4 does not"),
        (["--model", "tiny", "--weights", "none", "--batch-size", "3"], "a session with 2 GPUs needs at least 4"),
        (["--model", "tiny", "--weights", "/kaggle/input/w/own.pth"], "no input of that name is attached"),
        (["--model", "tiny", "--weights", "own.pth"], "a file that a session does not have. Put it in a dataset"),
        (["--model", "tiny", "--weights", "none", "--extra-weight", "0.2"], "--extra-weight without --extra-from"),
        (["--model", "tiny", "--weights", "none", "--optimizer", "adamm"], "--optimizer is 'adamm'"),
        (["--model", "tiny", "--weights", "none", "--equivariance", "p4m", "--crop", "93"], "p4m"),
        (["--model", "tiny", "--weights", "none", "--batch-size", "1000000"], "a T4 has 15 GB. At most "),
        (["--model", "resnet5O", "--weights", "none"], "Similar names: resnet50"),
        (["--model", "tiny", "--weights", "none", "--magic", "1"], "unrecognized arguments: --magic"),
    ],
)
def test_a_recipe_that_a_session_refuses_is_refused_here(call: Call, flags: list[str], words: str) -> None:
    for command in (LAUNCH, [*LAUNCH, "--dry-run"], PUSH):
        code, _, said = call(*command, "--", *flags)
        assert code == 2 and words in said and len(said.strip().splitlines()) == 1, said
    assert not Path("runs").exists() and not Path("kernels.json").exists()


def test_weights_at_hand_must_be_of_the_network(call: Call, here: Path) -> None:
    torch.save(create_model("tiny").state_dict(), here / "good.pth")
    torch.save({"conv.weight": torch.zeros(3)}, here / "other.pth")
    (here / "w").mkdir()
    (here / "w" / "page.pth").write_text("<!doctype html><html></html>")
    check_refused(call, "other.pth", "--weights-from", "me/w/other.pth", *TINY_FLAGS, code=1)
    check_refused(call, "rename it, if it is not a copy", "--weights-from", "me/w/other.pth", *TINY_FLAGS, code=1)
    check_refused(call, "page.pth", "--weights-from", "me/w/page.pth", *TINY_FLAGS, code=1)
    check_refused(call, "not a weight file by its name", "--weights-from", "me/w/good.h5", *TINY_FLAGS)
    command = ["push", "train", "--build-only", "kernel", "--user", "me", "--record", "kernels.json"]
    code, _, said = call(*command, "--weights-from", "me/w/good.pth", *TINY_FLAGS)
    assert code == 0 and "checked before the push: good.pth" in said


def test_tables_at_hand_must_match_each_other_and_the_data(
    call: Call, here: Path, generated: DataDir, cache: Path, fold_file: Path
) -> None:
    tiny = [*TINY_FLAGS, "--weights", "none"]
    shutil.copy(generated.root / "slides.csv", here / "slides.csv")
    make_fold_file(generated, here / "by-patch.csv", k=3, cache=cache)
    files = ["--slides-from", "me/s/slides.csv", "--folds-from", "me/f/by-patch.csv"]
    check_refused(call, "slides in more than one fold", *files, *tiny, code=1)
    header, *lines = (here / "slides.csv").read_text().splitlines()
    (here / "short.csv").write_text("\n".join([header.replace("wsi", "tissue"), *lines]) + "\n")
    check_refused(call, "expected id and one of wsi", "--slides-from", "me/s/short.csv", *tiny, code=1)
    check_refused(call, "not a CSV file by its name", "--slides-from", "me/s/slides.xlsx", *tiny)
    (here / "data").symlink_to(generated.root)
    (here / "one.csv").write_text("\n".join([header, *(f"{line.split(',')[0]},7" for line in lines)]) + "\n")
    check_refused(call, "one.csv: ", "--slides-from", "me/s/one.csv", *tiny)
    (here / "data").unlink()
    shutil.copy(fold_file, here / "three.csv")
    three = ["--folds-from", "me/f/three.csv"]
    check_refused(call, "there is no fold 4; three.csv has folds 0 to 2", *three, "--fold", 4, *tiny, command=PUSH)
    check_refused(call, "there is no fold 3; three.csv", *three, "--per-fold", *tiny, command=LAUNCH)
    make_fold_file(generated, here / "six.csv", k=6, cache=cache)
    six = ["--folds-from", "me/f/six.csv", *tiny]
    check_refused(
        call,
        "no kernel trains fold 5; six.csv has folds 0 to 5. Leave out --per-fold",
        "--per-fold",
        *six,
        command=LAUNCH,
    )
    check_refused(call, "there is no fold 5; the default fold file", "--fold", 5, *tiny, command=PUSH)
    (here / "data").mkdir()
    (here / "data" / "train_labels.csv").write_text("id,label\nx,0\ny,1\n")
    check_refused(call, "three.csv", "--folds-from", "me/f/three.csv", *tiny, code=1)


def test_a_launch_per_fold_says_which_folds_a_fold_file_must_have_that_is_not_here(call: Call) -> None:
    files = ["--folds-from", "me/f/ten.csv", *TINY_FLAGS, "--weights", "none"]
    code, _, said = call(*LAUNCH, "--dry-run", "--per-fold", *files)
    assert code == 0 and "the kernels train folds 0 to 4: me/f/ten.csv must have exactly these folds" in said
    code, _, said = call(*LAUNCH, "--dry-run", *files)
    assert code == 0 and said == ""


def test_pseudo_labels_at_hand_must_be_of_these_folds(
    call: Call, here: Path, generated: DataDir, cache: Path, fold_file: Path, finished: RunDir
) -> None:
    (here / "data").symlink_to(generated.root)
    command = ["pseudo", finished.root, "--data", "data", "--out", "pseudo.csv", "--confidence", 0.52]
    assert call(*command)[0] == 0
    make_fold_file(generated, here / "other.csv", k=3, seed=7, cache=cache)
    tiny = [*TINY_FLAGS, "--weights", "none"]
    files = ["--extra-from", "me/round/pseudo.csv", "--folds-from"]
    check_refused(call, "pseudo.csv: made with another fold file", *files, "me/f/other.csv", *tiny, code=1)
    shutil.copy(fold_file, here / "three.csv")
    built = ["push", "train", "--build-only", "kernel", "--user", "me", "--record", "kernels.json"]
    assert call(*built, *files, "me/f/three.csv", *tiny)[0] == 0


def test_weights_of_an_attached_input_are_taken(call: Call) -> None:
    command = ["push", "train", "--build-only", "kernel", "--user", "me", "--record", "kernels.json", "--dataset"]
    assert call(*command, "me/w", *TINY_FLAGS, "--weights", "/kaggle/input/w/own.pth")[0] == 0


def test_a_prediction_without_a_run_is_refused(call: Call) -> None:
    for job in ("predict", "ensemble"):
        code, _, said = call("push", job, "--record", "kernels.json")
        assert code == 2 and f"push {job} without --input" in one_line(said)


def test_a_network_is_checked_once_for_all_runs_that_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from claris_kaggle.core.config import TrainConfig
    from claris_kaggle.training import setup

    seen: list[TrainConfig] = []
    monkeypatch.setattr(setup, "check_network", lambda config, weights: seen.append(config))
    config = TrainConfig(model="tiny", weights="none", seed=4321)
    for _ in range(2):
        preflight._check_network_once(config, None)
    assert seen == [config]
