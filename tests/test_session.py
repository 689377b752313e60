"""The very scripts that are pushed, run as Kaggle would: clean working folder, inputs mounted, two gloo processes."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch

from claris_kaggle.bundle import compose_kernel
from claris_kaggle.model import create_model
from claris_kaggle.paths import DataDir, RunDir
from claris_kaggle.submission import check_submission
from claris_kaggle.tables import read_sample
from tests.conftest import DEADLINE, environment

COMPETITION = "histopathologic-cancer-detection"
TINY = ("--model", "tiny", "--threads", "1", "--epochs", "1", "--batch-size", "32")


class Machine:
    """Folders that stand for Kaggle's."""

    def __init__(self, root: Path, data: DataDir, *, new_layout: bool) -> None:
        self.root, self.inputs, self.working = root, root / "input", root / "working"
        place = self.inputs / "competitions" if new_layout else self.inputs
        place.mkdir(parents=True)
        (place / COMPETITION).symlink_to(data.root)
        self.new_layout = new_layout

    def mount(self, output: Path, slug: str) -> None:
        """Another kernel's output as an input."""
        place = self.inputs / "notebooks" / "me" / slug if self.new_layout else self.inputs / slug
        shutil.copytree(output, place)

    def run(self, job: str, **settings: object) -> subprocess.CompletedProcess[str]:
        """Build the script and run it in the working folder, with nothing of the repository in its way."""
        compose_kernel(job, self.root / "script", user="me", slug=f"claris-{job}", mark=f"mark-{job}", **settings)  # type: ignore[arg-type]
        self.working.mkdir(exist_ok=True)
        temporary = self.root / "temporary"
        temporary.mkdir(exist_ok=True)
        variables = {
            "KAGGLE_INPUT_ROOT": str(self.inputs), "KAGGLE_WORKING_DIR": str(self.working),
            "KAGGLE_TEMP_DIR": str(temporary), "TMPDIR": str(temporary),
        }  # fmt: skip
        path = self.root / "script" / f"{job}.py"
        tell = "import claris_kaggle\n\nprint(claris_kaggle.__file__)\nsys.exit(run"
        path.write_text(path.read_text().replace("sys.exit(run", tell))
        return subprocess.run(
            [sys.executable, str(self.root / "script" / f"{job}.py")], cwd=self.working, capture_output=True, text=True,
            timeout=DEADLINE, env={**environment(), **variables},
        )  # fmt: skip

    def manifest(self) -> dict[str, object]:
        return dict(json.loads((self.working / "claris-session.json").read_text()))


@pytest.fixture(scope="module")
def trained(generated: DataDir, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A training session of all folds, from weights in a dataset, in the old layout."""
    machine = Machine(tmp_path_factory.mktemp("kaggle"), generated, new_layout=False)
    (machine.inputs / "weights").mkdir()
    safetensors.torch.save_file(create_model("tiny", seed=5).state_dict(), machine.inputs / "weights" / "w.safetensors")
    done = machine.run("train", flags=TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    # The library came out of the script, two processes ran, and weights and slides were found.
    assert str(machine.root / "temporary") in done.stdout.splitlines()[0]
    assert "2 processes together: loader alone" in done.stderr and "steps alone" in done.stderr
    assert "2 processes" in done.stderr and "w.safetensors" in done.stdout and "--slides" in done.stdout
    return machine


def test_a_training_session_leaves_predictions_and_little_else(trained: Machine) -> None:
    manifest = trained.manifest()
    assert (manifest["status"], manifest["job"], manifest["mark"]) == ("complete", "train", "mark-train")
    names = set(manifest["files"])  # type: ignore[call-overload]
    assert {"run/oof.csv", "run/test.csv", "run/metrics.json", "run/fold4/model.safetensors"} <= names
    assert not any("ckpt" in name or "best" in name or "pixels" in name for name in names)
    left = {path.relative_to(trained.working).as_posix() for path in trained.working.rglob("*") if path.is_file()}
    assert left - names <= {"claris-session.json", "run/.lock"} and all(name.startswith("run/") for name in names)


def test_an_ensemble_session_ends_in_a_submission_that_passes(
    trained: Machine, generated: DataDir, tmp_path: Path
) -> None:
    machine = Machine(tmp_path, generated, new_layout=True)
    machine.mount(trained.working, "claris-train")
    done = machine.run("ensemble")
    assert done.returncode == 0, done.stdout + done.stderr
    facts = check_submission(machine.working / "submission.csv", read_sample(generated.sample))
    assert facts["rows"] == 70 and facts["sample_order"]
    assert machine.manifest()["status"] == "complete"


def test_parts_trained_apart_are_put_together_by_an_ensemble_session(
    trained: Machine, generated: DataDir, tmp_path: Path
) -> None:
    machine = Machine(tmp_path, generated, new_layout=True)
    for slug, folds in (("one", "01"), ("two", "234")):
        manifest = trained.manifest()
        shutil.copytree(trained.working, tmp_path / slug)
        for name in list(manifest["files"]):  # type: ignore[call-overload]
            if name.split("/")[1] not in ("config.json", "folds.csv", "folds.json", *(f"fold{one}" for one in folds)):
                (tmp_path / slug / name).unlink()
                del manifest["files"][name]  # type: ignore[attr-defined]
        (tmp_path / slug / "claris-session.json").write_text(json.dumps(manifest))
        machine.mount(tmp_path / slug, slug)
    done = machine.run("ensemble")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"submission.csv", "submission.json", "run/oof.csv"} <= set(machine.manifest()["files"])  # type: ignore[call-overload]


@pytest.mark.slow
def test_a_session_stopped_by_its_limit_ends_well_and_the_next_one_goes_on(generated: DataDir, tmp_path: Path) -> None:
    flags = (*TINY, "--weights", "none", "--epochs", "100000")
    first = Machine(tmp_path / "first", generated, new_layout=False)
    done = first.run("train", flags=flags, folds=[0], time_limit="24s")
    assert done.returncode == 0, done.stdout + done.stderr
    assert first.manifest()["status"] == "stopped"
    assert "run/fold0/last.ckpt" in first.manifest()["files"]  # type: ignore[operator]
    second = Machine(tmp_path / "second", generated, new_layout=True)
    second.mount(first.working, "claris-train")
    done = second.run("train", flags=flags, folds=[0], time_limit="24s")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fold 0: going on from epoch" in done.stderr


def test_two_parts_are_predicted_together(trained: Machine, generated: DataDir, tmp_path: Path) -> None:
    machine = Machine(tmp_path, generated, new_layout=True)
    for slug, folds in (("one", (0, 1)), ("two", (2, 3, 4))):
        shutil.copytree(trained.working, tmp_path / slug)
        manifest = json.loads((tmp_path / slug / "claris-session.json").read_text())
        for name in list(manifest["files"]):
            fold = name.split("/")[1] if name.startswith("run/fold") else ""
            gone = (fold.startswith("fold") and "." not in fold and int(fold[4:]) not in folds) or name.endswith(
                ("oof.csv", "test.csv", "predictions.json", "metrics.json")
            )
            if gone:
                (tmp_path / slug / name).unlink()
                del manifest["files"][name]
        (tmp_path / slug / "claris-session.json").write_text(json.dumps(manifest))
        machine.mount(tmp_path / slug, slug)
    done = machine.run("predict")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("run/oof.csv", "run/test.csv"):
        assert (machine.working / name).read_bytes() == (trained.working / name).read_bytes()


def test_a_damaged_input_is_refused_by_name(trained: Machine, generated: DataDir, tmp_path: Path) -> None:
    machine = Machine(tmp_path, generated, new_layout=True)
    machine.mount(trained.working, "claris-train")
    path = machine.inputs / "notebooks/me/claris-train/run/fold1/oof.csv"
    path.write_text(path.read_text()[:-9])
    done = machine.run("ensemble")
    assert done.returncode == 1 and "not those of its manifest (run/fold1/oof.csv)" in done.stderr
    assert not (machine.working / "submission.csv").exists()


def test_a_session_without_the_competition_says_so(generated: DataDir, tmp_path: Path) -> None:
    machine = Machine(tmp_path, generated, new_layout=False)
    (machine.inputs / COMPETITION).unlink()
    done = machine.run("train", flags=TINY)
    assert done.returncode == 1 and "Add the competition to the kernel's inputs" in done.stderr


@pytest.mark.parametrize(("kept", "code"), [("model.json", 0), ("last.ckpt", 0), ("history.csv", 1)])
def test_a_failed_session_ends_well_where_something_is_worth_keeping(
    generated: DataDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str, code: int
) -> None:
    from claris_kaggle import session

    def fail(here: session.Session, settings: dict[str, object]) -> str:
        here.run_dir.fold(0).root.mkdir(parents=True)
        (here.run_dir.fold(0).root / kept).write_text("{}")
        (here.working / "notes.txt").write_text("not of the run")
        session.must("check", "--data", tmp_path / "nowhere")
        return session.COMPLETE

    monkeypatch.setattr(session, "train", fail)
    for name in ("KAGGLE_WORKING_DIR", "KAGGLE_TEMP_DIR", "KAGGLE_INPUT_ROOT"):
        monkeypatch.setenv(name, str(tmp_path / name))
        (tmp_path / name).mkdir()
    monkeypatch.setenv("CLARIS_LAST_WORDS", "")
    assert session.run_session({"job": "train", "mark": "m", "folds": [], "time_limit": "1h"}) == code
    path = tmp_path / "KAGGLE_WORKING_DIR" / "claris-session.json"
    assert path.exists() == (code == 0)
    if code == 0:
        manifest = json.loads(path.read_text())
        assert manifest["status"] == "failed" and "nowhere: no train" in manifest["message"]
        assert list(manifest["files"]) == [f"run/fold0/{kept}"]


@pytest.mark.parametrize(
    ("flags", "own"),
    [
        (["--epochs", "3"], False), (["--preset", "pretrained"], False), (["--weights", "none"], True),
        (["--weights=none"], True), (["--preset", "scratch"], True), (["--preset=scratch", "--compile"], True),
    ],
)  # fmt: skip
def test_flags_that_say_what_to_begin_with_are_not_overridden(flags: list[str], own: bool) -> None:
    from claris_kaggle.session import begins_elsewhere

    assert begins_elsewhere(flags) == own


def test_a_real_session_without_gpus_is_refused_also_where_kaggle_sets_its_variables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    from claris_kaggle.errors import UsageError
    from claris_kaggle.session import WORKING, Session, count_processes

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("KAGGLE_WORKING_DIR", str(WORKING))
    assert count_processes(Session(tmp_path, tmp_path, tmp_path, 0.0), 2) == 2
    with pytest.raises(UsageError, match="0 GPUs in this session"):
        count_processes(Session(tmp_path, WORKING, tmp_path, 0.0), 2)


def test_the_template_alone_says_how_to_build_it(tmp_path: Path) -> None:
    from tests.conftest import ROOT

    done = subprocess.run(
        [sys.executable, str(ROOT / "kernels/train/train.py")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "claris push train --build-only" in done.stderr


def test_the_library_works_without_being_installed_as_in_a_kernel(
    call: Callable[..., tuple[int, str, str]],
    finished: RunDir, generated: DataDir, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    real = importlib.metadata.distribution

    def distribution(name: str) -> importlib.metadata.Distribution:
        if name == "claris_kaggle":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    data = ["--data", generated.root]
    for arguments in (
        ["folds", *data, "--out", tmp_path / "folds.csv", "--cache", cache],
        ["ensemble", finished.root, *data, "--out", tmp_path / "submission.csv"],
    ):
        code, _, said = call(*arguments)
        assert code == 0, said


def test_a_fold_that_could_not_be_copied_whole_is_not_there(finished: RunDir, tmp_path: Path) -> None:
    from claris_kaggle.errors import DiskError
    from claris_kaggle.inputs import merge_runs

    part, target = RunDir(tmp_path / "part"), RunDir(tmp_path / "target")
    shutil.copytree(finished.root, part.root)
    dangling = part.fold(1).root / "zz"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DiskError):
        merge_runs([part], target)
    assert target.sealed_folds() == [0] and not target.fold(1).root.exists()
    dangling.unlink()
    merge_runs([part], target)
    assert target.sealed_folds() == [0, 1, 2]
    assert target.fold(1).oof.read_bytes() == finished.fold(1).oof.read_bytes()
