"""Test the pushed scripts as Kaggle runs them: empty working folder, mounted inputs, two gloo processes."""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from claris_kaggle.core.errors import ERROR_FILE_VARIABLE, RunError
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.fold_file import read_folds
from claris_kaggle.data.prepare import make_fold_file
from claris_kaggle.data.tables import read_sample, read_slides
from claris_kaggle.ensembling.submission_file import check_submission
from claris_kaggle.kaggle import session
from claris_kaggle.kaggle.kernel_source import KernelSettings, compose_kernel
from claris_kaggle.kaggle.launch_state import Plan, _Launch, _PartSession
from claris_kaggle.kaggle.manifest import _MANIFEST, _Manifest, _merge_runs
from claris_kaggle.kaggle.session import _finished_files, _Session, _Settings, _write_manifest
from claris_kaggle.kaggle.session_inputs import _find_named, _find_runs
from claris_kaggle.models.factory import create_model
from claris_kaggle.models.weights import finished_sha256
from tests.conftest import DEADLINE, build_once, environment
from tests.support.runs import copy_run, places, predictions_of

Call = Callable[..., tuple[int, str, str]]
COMPETITION = "histopathologic-cancer-detection"
NAMED = {
    "weights_from": "me/weights/w.safetensors", "slides_from": "me/slides/map.csv", "folds_from": "me/split/two.csv",
}  # fmt: skip
TINY = ("--model", "tiny", "--threads", "1", "--epochs", "1", "--batch-size", "32")


# Python runs this in every process that it starts with this folder on its path.
WITHOUT_KAGGLE = """
import pathlib, sys


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("kaggle", "kagglesdk"):
            with pathlib.Path(__file__).with_name("asked").open("a") as stream:
                stream.write(name)
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Refuse())
"""


class Machine:
    """The folders of a simulated Kaggle session."""

    def __init__(self, root: Path, data: DataDir | None = None, *, new_layout: bool = False) -> None:
        """Create the folders for a session with these data. Without data, the folders exist already."""
        self.root, self.inputs, self.working = root, root / "input", root / "working"
        self.new_layout, self.hook = new_layout, root / "hook"
        self.asked = self.hook / "asked"
        if data is None:
            return
        place = self.inputs / "competitions" if new_layout else self.inputs
        place.mkdir(parents=True)
        (place / COMPETITION).symlink_to(data.root)
        # Kaggle's client is not to be had in any process of the session; who asks for it is put down.
        self.hook.mkdir()
        (self.hook / "sitecustomize.py").write_text(WITHOUT_KAGGLE)

    def attach(self, owner: str, slug: str, **files: Path) -> None:
        """Attach a dataset as an input."""
        place = self.inputs / "datasets" / owner / slug if self.new_layout else self.inputs / slug
        place.mkdir(parents=True)
        for name, path in files.items():
            shutil.copy(path, place / f"{name}{path.suffix}")

    def mount(self, output: Path, slug: str) -> None:
        """Attach another kernel's output as an input."""
        place = self.inputs / "notebooks" / "me" / slug if self.new_layout else self.inputs / slug
        shutil.copytree(output, place)

    def run(self, job: str, **settings: object) -> subprocess.CompletedProcess[str]:
        """Run the script with these settings, and return the completed process."""
        process = self.start(job, **settings)
        out, err = process.communicate(timeout=DEADLINE)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, job: str, **settings: object) -> subprocess.Popen[str]:
        """Build the script and start it in the working folder, without access to the repository."""
        asked = KernelSettings(**settings)  # type: ignore[arg-type]
        compose_kernel(job, self.root / "script", asked, user="me", slug=f"claris-{job}", push_token=f"mark-{job}")
        self.working.mkdir(exist_ok=True)
        temporary = self.root / "temporary"
        temporary.mkdir(exist_ok=True)
        variables = {
            "KAGGLE_INPUT_ROOT": str(self.inputs), "KAGGLE_WORKING_DIR": str(self.working),
            "KAGGLE_TEMP_DIR": str(temporary), "TMPDIR": str(temporary), "PYTHONPATH": str(self.hook),
        }  # fmt: skip
        path = self.root / "script" / f"{job}.py"
        tell = "import claris_kaggle\n\nprint(claris_kaggle.__file__)\nsys.exit(run"
        source = path.read_text().replace("sys.exit(run", tell)
        own = 'os.environ["PYTHONPATH"] = folder'
        assert source.count(own) == 1
        path.write_text(source.replace(own, f"{own} + os.pathsep + {str(self.hook)!r}"))
        return subprocess.Popen(
            [sys.executable, str(self.root / "script" / f"{job}.py")], cwd=self.working, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**environment(), **variables}, start_new_session=True,
        )  # fmt: skip

    def run_here(self, monkeypatch: pytest.MonkeyPatch, call: Call, job: str, **settings: object) -> tuple[int, str]:
        """Run the session and its commands in this process, and return the exit code and the output."""
        said: list[str] = []

        def run_command(*arguments: object) -> int:
            session._print_command(arguments)
            code, shown, told = call(*arguments)
            said.append(shown + told)
            return code

        temporary = self.root / "temporary"
        for folder in (self.working, temporary):
            folder.mkdir(exist_ok=True)
        variables = {
            "KAGGLE_INPUT_ROOT": str(self.inputs), "KAGGLE_WORKING_DIR": str(self.working),
            "KAGGLE_TEMP_DIR": str(temporary), ERROR_FILE_VARIABLE: "",
        }  # fmt: skip
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(session, "_run_claris", run_command)
        monkeypatch.setattr(session, "_run_with_manifests", lambda here, settings, *arguments: run_command(*arguments))
        with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.redirect_stderr(shown):
            code = session.run_session({"job": job, "mark": f"mark-{job}", "gpus": 2, "time_limit": "1h", **settings})
        return code, "".join(said) + shown.getvalue()

    def manifest(self) -> dict[str, object]:
        return dict(json.loads((self.working / "claris-session.json").read_text()))


def attach_inputs(machine: Machine, data: DataDir) -> None:
    """Attach datasets with weights, a slide map and two folds, and one with weights that no setting names."""
    weights = machine.root / "w.safetensors"
    safetensors.torch.save_file(create_model("tiny", seed=5).state_dict(), weights)
    (machine.root / "a.pth").write_bytes(b"not to be read")
    machine.attach("me", "another", a=machine.root / "a.pth")
    machine.attach("me", "weights", w=weights)
    machine.attach("me", "slides", map=data.root / "slides.csv")
    make_fold_file(data, machine.root / "two.csv", slides=data.root / "slides.csv", k=2, cache=machine.root / "packs")
    machine.attach("me", "split", two=machine.root / "two.csv")


@pytest.fixture(scope="session")
def trained(few: DataDir, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Run a training session of two folds, with weights, slide map and folds from datasets in the old layout."""

    def build(folder: Path) -> None:
        machine = Machine(folder, few, new_layout=False)
        attach_inputs(machine, few)
        done = machine.run("train", flags=TINY, **NAMED)
        assert done.returncode == 0, done.stdout + done.stderr
        # The library came out of the script, two processes ran, and weights and slides were found.
        assert str(machine.root / "temporary") in done.stdout.splitlines()[0]
        assert "2 processes in total: data loading only" in done.stderr and "training steps only" in done.stderr
        assert "2 processes" in done.stderr
        assert f"--weights {machine.inputs / 'weights/w.safetensors'}" in done.stdout
        assert f"--slides {machine.inputs / 'slides/map.csv'}" in done.stdout
        assert f"--folds {machine.inputs / 'split/two.csv'}" in done.stdout and "$ claris folds" not in done.stdout
        # Only one of the two processes speaks.
        assert done.stderr.count("fold 0 epoch 1/1: loss") == done.stderr.count("fold 0: predicted") == 1
        assert done.stdout.splitlines().count(str(machine.working / "run")) == 1
        # Weights that no setting names are said, and not taken.
        assert f"{machine.inputs / 'another/a.pth'} is not used" in done.stdout and "--weights a.pth" not in done.stdout

    return Machine(build_once(tmp_path_factory, "session", build))


def test_a_session_needs_no_client_of_kaggles(trained: Machine) -> None:
    assert not trained.asked.exists()
    environ = {**environment(), "PYTHONPATH": str(trained.hook)}
    done = subprocess.run([sys.executable, "-c", "import kaggle"], capture_output=True, text=True, env=environ)
    assert "No module named 'kaggle'" in done.stderr and trained.asked.read_text() == "kaggle"
    trained.asked.unlink()


def test_one_process_predicts_the_same_bytes_as_the_two_of_a_session(
    trained: Machine, few: DataDir, tmp_path: Path, call: Call
) -> None:
    run = copy_run(RunDir(trained.working / "run"), tmp_path / "run", predicted=False)
    code, _, said = call("predict", *places(few, trained.root / "packs", run), "--nproc", 1)
    assert code == 0 and "already predicted" not in said, said
    assert predictions_of(run) == predictions_of(trained.working / "run") != {}


def test_a_session_without_named_folds_makes_them_by_the_slide_map(
    few: DataDir, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training after it is refused, because this test needs only the folds."""
    machine = Machine(tmp_path, few, new_layout=True)
    machine.attach("me", "slides", map=few.root / "slides.csv")
    flags = (*TINY, "--batch-size", "3")
    code, said = machine.run_here(monkeypatch, call, "train", flags=flags, slides_from=NAMED["slides_from"])
    assert code == 1 and "claris train: --batch-size is 3" in said, said
    folds = read_folds(machine.root / "temporary/folds.csv")
    assert folds.k == 5 and f"--folds {machine.root / 'temporary/folds.csv'}" in said
    slides = read_slides(few.root / "slides.csv", folds.ids)
    assert len({*zip(slides, folds.fold.tolist(), strict=True)}) == len({*slides})


def test_a_complete_training_session_leaves_predictions_and_weights_but_no_caches_or_checkpoints(
    trained: Machine,
) -> None:
    manifest = trained.manifest()
    assert (manifest["status"], manifest["job"], manifest["mark"]) == ("complete", "train", "mark-train")
    names = set(manifest["files"])  # type: ignore[call-overload]
    assert {"run/oof.csv", "run/test.csv", "run/metrics.json", "run/fold1/model.safetensors"} <= names
    assert not any("ckpt" in name or "best" in name or "pixels" in name for name in names)
    left = {path.relative_to(trained.working).as_posix() for path in trained.working.rglob("*") if path.is_file()}
    assert left - names <= {"claris-session.json", "run/.lock"} and all(name.startswith("run/") for name in names)


def test_an_ensemble_session_ends_with_a_valid_submission(
    trained: Machine, few: DataDir, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path, few, new_layout=True)
    machine.mount(trained.working, "claris-train")
    code, said = machine.run_here(monkeypatch, call, "ensemble")
    assert code == 0 and "$ claris predict" in said and "$ claris ensemble" in said, said
    facts = check_submission(machine.working / "submission.csv", read_sample(few.sample))
    assert facts.rows == 12 and facts.sample_order
    assert machine.manifest()["status"] == "complete"


@pytest.mark.slow
def test_parts_trained_apart_are_put_together_by_an_ensemble_session(
    trained: Machine, few: DataDir, tmp_path: Path
) -> None:
    machine = Machine(tmp_path, few, new_layout=True)
    for slug, folds in (("one", "0"), ("two", "1")):
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
def test_a_session_at_its_time_limit_ends_without_an_error_and_the_next_one_resumes(
    generated: DataDir, tmp_path: Path
) -> None:
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
    assert "fold 0: resuming from epoch" in done.stderr


@pytest.mark.slow
def test_two_parts_are_predicted_together(trained: Machine, few: DataDir, tmp_path: Path) -> None:
    machine = Machine(tmp_path, few, new_layout=True)
    for slug, folds in (("one", (0,)), ("two", (1,))):
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


def test_a_damaged_input_is_refused_by_name(
    trained: Machine, few: DataDir, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path, few, new_layout=True)
    machine.mount(trained.working, "claris-train")
    path = machine.inputs / "notebooks/me/claris-train/run/fold1/oof.csv"
    path.write_text(path.read_text()[:-9])
    code, said = machine.run_here(monkeypatch, call, "ensemble")
    assert code == 1 and "differ from its manifest (run/fold1/oof.csv)" in said
    assert not (machine.working / "submission.csv").exists()


def test_a_session_without_the_competitions_files_says_so(
    few: DataDir, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path, few, new_layout=False)
    (machine.inputs / COMPETITION).unlink()
    code, said = machine.run_here(monkeypatch, call, "train", flags=TINY)
    assert code == 1 and "Add the competition to the kernel's inputs" in said


@pytest.mark.parametrize(("kept", "code"), [("model.json", 0), ("last.ckpt", 0), ("history.csv", 1)])
def test_a_failed_session_ends_well_where_something_is_worth_keeping(
    generated: DataDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str, code: int
) -> None:
    def fail(here: session._Session, settings: session._Settings) -> str:
        here.run_dir.fold(0).root.mkdir(parents=True)
        (here.run_dir.fold(0).root / kept).write_text("{}")
        (here.working / "notes.txt").write_text("not of the run")
        session._run_required_claris("check", "--data", tmp_path / "nowhere")
        return session._COMPLETE

    monkeypatch.setattr(session, "_run_train_job", fail)
    for name in ("KAGGLE_WORKING_DIR", "KAGGLE_TEMP_DIR", "KAGGLE_INPUT_ROOT"):
        monkeypatch.setenv(name, str(tmp_path / name))
        (tmp_path / name).mkdir()
    monkeypatch.setenv("CLARIS_ERROR_FILE", "")
    assert session.run_session({"job": "train", "mark": "m", "folds": [], "time_limit": "1h"}) == code
    path = tmp_path / "KAGGLE_WORKING_DIR" / "claris-session.json"
    assert path.exists() == (code == 0)
    if code == 0:
        manifest = json.loads(path.read_text())
        assert manifest["status"] == "failed" and "nowhere: no such folder" in manifest["message"]
        assert list(manifest["files"]) == [f"run/fold0/{kept}"]


def kill_after_a_fold(machine: Machine) -> dict[str, Any]:
    """Run a training session, kill all its processes when it has written a manifest, and return the manifest."""
    process = machine.start("train", flags=TINY, **NAMED)
    path = machine.working / _MANIFEST
    end = time.monotonic() + DEADLINE
    while not path.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    for pid in find_processes_in(machine.working):
        os.kill(pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and path.exists(), out + err
    return machine.manifest()


def find_processes_in(folder: Path) -> list[int]:
    """Return the ids of the processes whose current folder this is. Ranks are in their own process groups."""
    found = []
    for one in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (one / "cwd").resolve() == folder.resolve():
                found.append(int(one.name))
    return found


@pytest.mark.slow
def test_a_killed_session_leaves_its_finished_folds_verified_and_the_next_one_ends_with_the_same_bytes(
    trained: Machine, few: DataDir, tmp_path: Path
) -> None:
    first, second = (Machine(tmp_path / name, few, new_layout=True) for name in ("first", "second"))
    attach_inputs(first, few)
    manifest = kill_after_a_fold(first)
    assert (manifest["status"], manifest["mark"]) == ("running", "mark-train")
    assert {"run/config.json", "run/folds.csv", "run/fold0/model.safetensors"} <= manifest["files"].keys()
    [run] = _find_runs(first.working, tmp_path / "aside")
    _merge_runs([run], RunDir(tmp_path / "merged"))
    folds = RunDir(tmp_path / "merged").finished_folds()
    assert folds and all(finished_sha256(RunDir(tmp_path / "merged").fold(fold)) for fold in folds)
    second.mount(first.working, "claris-train")
    attach_inputs(second, few)
    done = second.run("train", flags=TINY, **NAMED)
    assert done.returncode == 0 and "fold 0: already finished" in done.stderr, done.stdout + done.stderr
    for name in ("run/oof.csv", "run/test.csv"):
        assert (second.working / name).read_bytes() == (trained.working / name).read_bytes()


@pytest.fixture
def ended_early(finished: RunDir, tmp_path: Path) -> _Session:
    """Return the session folders after a kill during the training of fold 2."""
    here = _Session(tmp_path, tmp_path / "working", tmp_path, 0.0)
    shutil.copytree(finished.root, here.run_dir.root)
    for path in here.run_dir.fold(2).root.iterdir():
        if path.name != "last.ckpt":
            path.unlink()
    settings = _Settings(job="train", time_limit="1h", push_token="m")
    _write_manifest(here, settings, "running", "", _finished_files(here.run_dir))
    return here


def test_finished_folds_and_a_whole_checkpoint_are_taken_from_a_session_that_was_killed(
    ended_early: _Session, finished: RunDir, tmp_path: Path
) -> None:
    [run] = _find_runs(ended_early.working, tmp_path / "aside")
    assert run.finished_folds() == [0, 1]
    assert run.fold(1).oof.read_bytes() == finished.fold(1).oof.read_bytes()
    assert run.fold(2).checkpoint.read_bytes() == finished.fold(2).checkpoint.read_bytes()


def test_a_manifest_keeps_the_entries_that_only_another_version_knows(ended_early: _Session) -> None:
    stored = json.loads((ended_early.working / _MANIFEST).read_text())
    assert stored["files"] and (stored["job"], stored["mark"], stored["commit"], stored["folds"]) == (
        "train",
        "m",
        "",
        [],
    )
    stored["of a later version"] = {"a": 1}
    assert json.loads(json.dumps(_Manifest.from_json(stored).to_json())) == stored


def test_what_a_killed_session_left_broken_is_left_out_and_said(
    ended_early: _Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folds = ended_early.run_dir.fold_dirs()
    folds[0].oof.write_text("half of it")
    folds[2].checkpoint.write_bytes(folds[2].checkpoint.read_bytes()[:-9])
    [run] = _find_runs(ended_early.working, tmp_path / "aside")
    # Fold 0 goes on from its checkpoint, and fold 2 begins anew.
    assert run.finished_folds() == [1] and not run.fold(2).root.exists()
    assert [path.name for path in run.fold(0).root.iterdir()] == ["last.ckpt"]
    assert "fold0 skipped, because incomplete" in capsys.readouterr().err
    ended_early.run_dir.config.write_text("{}")
    with pytest.raises(RunError, match=r"differ from its manifest \(run/config.json\)"):
        _find_runs(ended_early.working, tmp_path / "again")


LAYOUTS = [
    ("me/w/deep/a.pth", "datasets/me/w/deep/a.pth"), ("me/w/a.pth", "w/a.pth"), ("Me/W/a.pth", "datasets/me/w/a.pth"),
    ("me/k/run/folds.csv", "notebooks/me/k/run/folds.csv"), ("me/k/run/folds.csv", "k/run/folds.csv"),
    ("google/net/pyTorch/base/1/a.pth", "models/google/net/pytorch/base/1/a.pth"),
    ("google/net/pyTorch/base/1/a.pth", "net/pytorch/base/1/a.pth"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "place"), LAYOUTS)
def test_a_named_file_is_found_where_kaggle_mounts_its_input(tmp_path: Path, name: str, place: str) -> None:
    for one in ("datasets/other/w/a.pth", "a/a.pth", place):
        (tmp_path / one).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / one).write_text(one)
    assert _find_named(tmp_path, name, "--weights-from").read_text() == place


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("me/w/b.pth", "there is no such file in me/w; it has deep/a.pth, n0.pth, n1.pth"),
        ("me/w/A.pth", "there is no such file in me/w"),
        ("you/w/a.pth", "you/w is not among the inputs of this session; the inputs are: competitions/c, datasets/me/w"),
    ],
)
def test_a_named_file_that_is_not_there_is_refused_with_what_is(tmp_path: Path, name: str, words: str) -> None:
    for one in (
        "datasets/me/w/deep/a.pth",
        "competitions/c/x",
        *(f"datasets/me/w/n{number}.pth" for number in range(20)),
    ):
        (tmp_path / one).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / one).touch()
    with pytest.raises(RunError) as caught:
        _find_named(tmp_path, name, "--weights-from")
    assert words in str(caught.value) and f"--weights-from {name}" in str(caught.value)
    assert ("and 9 more" in str(caught.value)) == name.startswith("me/")


def test_a_named_input_that_is_missing_is_said_before_anything_is_done(
    few: DataDir, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path, few, new_layout=True)
    machine.attach("me", "others", map=few.root / "slides.csv")
    code, said = machine.run_here(monkeypatch, call, "train", flags=TINY, folds_from="me/split/folds.csv")
    assert code == 1 and "$ claris" not in said
    assert "--folds-from me/split/folds.csv: me/split is not among the inputs" in said
    assert "datasets/me/others" in said and not (machine.working / "run").exists()


def test_named_files_are_in_the_settings_and_their_datasets_are_attached(call: Call, tmp_path: Path) -> None:
    command = ["push", "train", "--build-only", tmp_path / "kernel", "--user", "me"]
    flags = ["--dataset", "me/slides/2", "--weights-from", "me/w/a.pth", "--slides-from", "me/slides/map.csv"]
    flags += ["--extra-from", "me/round/pseudo.csv"]
    code, _, said = call(*command, *flags)
    assert code == 0, said
    metadata = json.loads((tmp_path / "kernel/kernel-metadata.json").read_text())
    assert metadata["dataset_sources"] == ["me/slides/2", "me/w", "me/round"]
    line = next(one for one in (tmp_path / "kernel/train.py").read_text().splitlines() if one.startswith("SETTINGS"))
    settings = ast.literal_eval(line.removeprefix("SETTINGS = "))
    wanted = {"weights_from": "me/w/a.pth", "slides_from": "me/slides/map.csv", "folds_from": ""}
    wanted["extra_from"] = "me/round/pseudo.csv"
    assert {name: settings[name] for name in wanted} == wanted
    code, shown, _ = call("launch", "first", "--dry-run", "--json", *flags)
    assert code == 0 and json.loads(shown)["inputs"] == [
        "me/slides/2", "me/w/a.pth", "me/slides/map.csv", "me/round/pseudo.csv",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--weights-from", "me/w"], "expected a name such as owner/dataset/file"),
        (["--slides-from", "me/../x"], "expected a name such as owner/dataset/file"),
        (["--weights-from", "me/w/a.pth", "--", "--weights", "none"], "training starts from only one of them"),
        (["--weights-from", "me/w/a.pth", "--", "--equivariance", "p4m", "--crop", "93"], "from scratch"),
    ],
)
def test_named_files_that_cannot_be_are_refused_before_the_push(call: Call, flags: list[str], words: str) -> None:
    for command in (["launch", "first", "--dry-run"], ["push", "train", "--build-only", "kernel", "--user", "me"]):
        code, _, said = call(*command, *flags)
        assert code == 2 and words in said
    if "--" not in flags:
        code, _, said = call("push", "predict", "--build-only", "kernel", "--user", "me", *flags)
        assert code == 2 and f"{flags[0]} for predict; they are for train only" in said


def test_a_launch_that_an_earlier_version_began_goes_on(tmp_path: Path) -> None:
    plan = Plan(name="first")
    launch = _Launch(tmp_path, plan)
    launch.user, launch.sessions = "me", [[_PartSession(push_token="m", ref="me/k", version=1)]]
    launch.save()
    stored = json.loads(launch.path.read_text())
    for name in plan.named_files:
        del stored["plan"][name]
    launch.path.write_text(json.dumps(stored))
    assert _Launch(tmp_path, plan).user == "me"
    with pytest.raises(RunError, match="weights_from"):
        _Launch(tmp_path, Plan(name="first", weights_from="me/w/a.pth"))


def test_a_real_session_without_gpus_is_refused_also_where_kaggle_sets_its_variables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    from claris_kaggle.core.errors import UsageError
    from claris_kaggle.kaggle.session import _KAGGLE_WORKING_FOLDER, _count_processes, _Session

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("KAGGLE_WORKING_DIR", str(_KAGGLE_WORKING_FOLDER))
    assert _count_processes(_Session(tmp_path, tmp_path, tmp_path, 0.0), 2) == 2
    # torch counts GPUs that it cannot use, for example because of the driver.
    for count, words in ((0, "0 GPUs in this session"), (2, "2 GPUs that torch cannot use")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(UsageError, match=words):
            _count_processes(_Session(tmp_path, _KAGGLE_WORKING_FOLDER, tmp_path, 0.0), 2)


def test_the_kernel_template_alone_says_how_to_build_a_kernel(tmp_path: Path) -> None:
    from tests.conftest import ROOT

    done = subprocess.run(
        [sys.executable, str(ROOT / "kernels/train/train.py")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "claris push train --build-only" in done.stderr


def test_the_library_works_without_being_installed_as_in_a_kernel(
    call: Call,
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


def test_parts_whose_weights_were_mounted_in_other_places_are_one_run(finished: RunDir, tmp_path: Path) -> None:
    config = json.loads(finished.config.read_text())
    parts = [RunDir(tmp_path / name) for name in ("one", "two", "three")]
    for number, (part, digest) in enumerate(zip(parts, ("a", "a", "b"), strict=True)):
        shutil.copytree(finished.root, part.root)
        place = {"weights": f"/kaggle/input/{number}/w.pth", "weights_sha256": digest}
        part.config.write_text(json.dumps({**config, **place}))
    _merge_runs(parts[:2], RunDir(tmp_path / "merged"))
    with pytest.raises(RunError, match="config differs"):
        _merge_runs(parts[1:], RunDir(tmp_path / "other"))


def test_a_fold_that_could_not_be_copied_whole_is_not_there(finished: RunDir, tmp_path: Path) -> None:
    from claris_kaggle.core.errors import DiskError

    part, target = RunDir(tmp_path / "part"), RunDir(tmp_path / "target")
    shutil.copytree(finished.root, part.root)
    dangling = part.fold(1).root / "zz"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DiskError):
        _merge_runs([part], target)
    assert target.finished_folds() == [0] and not target.fold(1).root.exists()
    dangling.unlink()
    _merge_runs([part], target)
    assert target.finished_folds() == [0, 1, 2]
    assert target.fold(1).oof.read_bytes() == finished.fold(1).oof.read_bytes()
    assert target.statistics.read_bytes() == finished.statistics.read_bytes()  # classify compares images with them
