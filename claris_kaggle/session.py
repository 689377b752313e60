"""What a kernel does inside a Kaggle session: find its inputs, run the verbs, leave a manifest of what it wrote.

Inputs are found by marker files, wherever Kaggle mounts them. The working folder keeps only what
the next step needs; packs go to fast temporary storage. A session that stops in time ends well:
its output is the next session's input.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from claris_kaggle.errors import ClarisError, RunError, UsageError, name_few
from claris_kaggle.files import explain_disk_errors, read_json, sha256_file, write_json
from claris_kaggle.paths import DataDir, RunDir
from claris_kaggle.stopping import parse_duration

MANIFEST = "claris-session.json"
JOBS = ("train", "predict", "ensemble")
COMPLETE, STOPPED = "complete", "stopped"
WEIGHTS = ("*.safetensors", "*.pth")
SLIDES = ("slides.csv", "patch_id_wsi*.csv")
DEEPEST = 8


@dataclass(frozen=True)
class Session:
    """The folders of this session, and its clock.

    Attributes:
        inputs: where Kaggle mounts datasets, competitions and other kernels' outputs; only read.
        working: what is left here is the kernel's output.
        temporary: lost at the end.
        deadline: `time.monotonic()` by which all must be done.
    """

    inputs: Path
    working: Path
    temporary: Path
    deadline: float

    @property
    def run_dir(self) -> RunDir:
        """The run that this session works on."""
        return RunDir(self.working / "run")

    def left(self) -> str:
        """Seconds until the deadline, as a flag takes them."""
        return f"{max(1.0, self.deadline - time.monotonic()):.0f}s"


def run_session(settings: dict[str, Any]) -> int:
    """Do the job of the settings; the exit code of the script."""
    try:
        session = open_session(settings)
        status = {"train": train, "predict": predict, "ensemble": ensemble}[settings["job"]](session, settings)
        tidy(session.run_dir)
        write_manifest(session, settings, status)
    except ClarisError as error:
        print("claris: " + " ".join(str(error).split()), file=sys.stderr, flush=True)
        return error.exit_code
    print(f"claris session: {settings['job']} {status}", flush=True)
    return 0


def open_session(settings: dict[str, Any]) -> Session:
    """The folders, from their usual places or from variables.

    Raises:
        UsageError: the job is unknown, or the machine is not the one that was asked for.
    """
    if settings.get("job") not in JOBS:
        raise UsageError(f"a job of the name {settings.get('job')!r}", f"it must be one of {', '.join(JOBS)}")
    working = Path(os.environ.get("KAGGLE_WORKING_DIR", "/kaggle/working"))
    temporary = os.environ.get("KAGGLE_TEMP_DIR") or tempfile.mkdtemp(prefix="claris-temporary-")
    deadline = time.monotonic() + parse_duration(settings["time_limit"])
    inputs = Path(os.environ.get("KAGGLE_INPUT_ROOT", "/kaggle/input"))
    if not inputs.is_dir():
        raise UsageError(f"{inputs}: no such folder", "Kaggle mounts the inputs there", "Set KAGGLE_INPUT_ROOT")
    return Session(inputs, working, Path(temporary), deadline)


def count_processes(wanted: int) -> int:
    """One process for each GPU; two on a machine without any, for a trial.

    Raises:
        UsageError: there are GPUs, but not as many as were asked for, or none in a real session.
    """
    import torch

    found = torch.cuda.device_count()
    real = "KAGGLE_WORKING_DIR" not in os.environ
    if found == wanted or (found == 0 and not real):
        return found or 2
    what = f"{found} GPUs in this session, and {wanted} were asked for"
    raise UsageError(what, "", "Choose the accelerator GPU T4 x2 (machine_shape NvidiaTeslaT4)")


def walk(root: Path) -> list[tuple[Path, set[str]]]:
    """Every folder below the root with the names of its files, not going down into folders of patches."""
    found = []
    for folder, folders, files in os.walk(root, followlinks=True):
        depth = len(Path(folder).relative_to(root).parts)
        folders[:] = sorted(name for name in folders if name not in ("train", "test") and depth < DEEPEST)
        found.append((Path(folder), set(files)))
    return found


def find_data(session: Session) -> DataDir:
    """The competition's folder among the inputs: the one with its two tables.

    Raises:
        RunError: there is none.
    """
    for folder, names in walk(session.inputs):
        if {"train_labels.csv", "sample_submission.csv"} <= names:
            return DataDir(folder).require()
    found = f"{session.inputs}: no folder with train_labels.csv and sample_submission.csv"
    raise RunError(found, "the competition's files are needed", "Add the competition to the kernel's inputs")


def find_one(session: Session, patterns: Sequence[str]) -> Path | None:
    """The first file among the inputs, outside earlier sessions' outputs, whose name fits one of the patterns."""
    outputs = [folder for folder, names in walk(session.inputs) if MANIFEST in names]
    for folder, names in walk(session.inputs):
        if not any(folder.is_relative_to(output) for output in outputs):
            fitting = sorted(name for name in names if any(fnmatch(name, pattern) for pattern in patterns))
            if fitting:
                return folder / fitting[0]
    return None


def find_runs(session: Session) -> list[tuple[Path, dict[str, Any]]]:
    """The outputs of earlier sessions among the inputs, each with its manifest, every file proved.

    Raises:
        RunError: a file is not the one that the session wrote.
    """
    found = []
    for folder, names in walk(session.inputs):
        if MANIFEST in names:
            manifest = read_json(folder / MANIFEST)
            check_manifest(folder, manifest)
            found.append((folder, manifest))
    return found


def check_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Refuse files that are missing or not those of the manifest.

    Raises:
        RunError: naming the first of them.
    """
    wrong = []
    for name, facts in manifest.get("files", {}).items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != facts["bytes"] or sha256_file(path) != facts["sha256"]:
            wrong.append(name)
    if wrong:
        found = f"{folder}: {len(wrong)} files are not those of its manifest ({name_few(sorted(wrong))})"
        raise RunError(found, "", "Run the kernel that wrote them again")


def gather_runs(session: Session) -> None:
    """Put the folds of all earlier sessions into this session's run.

    Raises:
        RunError: they are not of one run.
    """
    runs = find_runs(session)
    merge_runs([RunDir(folder / "run") for folder, _ in runs], session.run_dir)


def merge_runs(sources: Sequence[RunDir], target: RunDir) -> None:
    """Copy the folds of several parts of one run into one folder; a finished fold goes before an unfinished one.

    Raises:
        RunError: the parts have different configs or folds.
    """
    with explain_disk_errors(target.root):
        for source in (one for one in sources if one.config.exists()):
            target.root.mkdir(parents=True, exist_ok=True)
            for path in (source.config, source.folds, source.folds.with_suffix(".json")):
                copy = target.root / path.name
                if copy.exists() and path.suffix == ".csv" and copy.read_bytes() != path.read_bytes():
                    raise RunError(f"{path}: other folds than {copy}", "", "Merge the parts of one run only")
                if copy.exists() and path == source.config and read_json(copy) != read_json(path):
                    raise RunError(f"{path}: another config than {copy}", "", "Merge the parts of one run only")
                shutil.copyfile(path, copy)
            for folder in sorted(source.root.glob("fold[0-9]*")):
                place = target.root / folder.name
                if not (place / "model.json").exists():
                    shutil.rmtree(place, ignore_errors=True)
                    shutil.copytree(folder, place)


def claris(*arguments: object) -> int:
    """Run a verb in a process of its own, whose talk goes to this session's log."""
    print("$ claris " + " ".join(map(str, arguments)), flush=True)
    return subprocess.call([sys.executable, "-m", "claris_kaggle", *map(str, arguments)])


def must(*arguments: object) -> None:
    """Run a verb that has to succeed.

    Raises:
        RunError: it did not; it has said why.
    """
    code = claris(*arguments)
    if code:
        raise RunError(f"claris {arguments[0]} ended with exit code {code}", "", "See its message above")


def train(session: Session, settings: dict[str, Any]) -> str:
    """Train the folds of the settings, then predict with them."""
    processes = count_processes(settings["gpus"])
    data, run_dir = find_data(session), session.run_dir
    gather_runs(session)
    packs = ["--data", data.root, "--cache", session.temporary / "packs"]
    must("pack", *packs)
    fold_file = run_dir.folds
    if not fold_file.exists():
        fold_file = find_one(session, ("folds.csv",)) or session.temporary / "folds.csv"
    if not fold_file.exists():
        slides = find_one(session, SLIDES)
        must("folds", *packs, "--out", fold_file, *(["--slides", slides] if slides else []))
    flags = list(settings["flags"])
    weights = find_one(session, WEIGHTS)
    if weights is not None and "--weights" not in flags:
        flags += ["--weights", weights]
    folds = ["--fold", *settings["folds"]] if settings["folds"] else []
    code = claris(
        "train", *packs, "--folds", fold_file, "--run", run_dir.root, "--nproc", processes,
        "--time-limit", session.left(), "--rates", *folds, *flags,
    )  # fmt: skip
    if code == 3:
        return STOPPED
    if code:
        raise RunError(f"claris train ended with exit code {code}", "", "See its message above")
    return predict_run(session, packs, processes)


def predict(session: Session, settings: dict[str, Any]) -> str:
    """Predict with the finished folds among the inputs."""
    processes = count_processes(settings["gpus"])
    data = find_data(session)
    gather_runs(session)
    return predict_run(session, ["--data", data.root, "--cache", session.temporary / "packs"], processes)


def predict_run(session: Session, packs: list[Any], processes: int) -> str:
    """Predict with every finished fold of the session's run."""
    code = claris(
        "predict", *packs, "--run", session.run_dir.root, "--nproc", processes, "--time-limit", session.left()
    )
    if code not in (0, 3):
        raise RunError(f"claris predict ended with exit code {code}", "", "See its message above")
    return STOPPED if code else COMPLETE


def ensemble(session: Session, settings: dict[str, Any]) -> str:
    """Put the folds of the inputs together, predicting what is missing, and write the submission."""
    data = find_data(session)
    gather_runs(session)
    packs = ["--data", data.root, "--cache", session.temporary / "packs"]
    must("predict", *packs, "--run", session.run_dir.root)
    must("ensemble", session.run_dir.root, "--data", data.root, "--out", session.working / "submission.csv")
    return COMPLETE


def tidy(run_dir: RunDir) -> None:
    """Remove what no later step needs: checkpoints of finished folds, and spare generations."""
    for folder in run_dir.root.glob("fold[0-9]*"):
        finished = (folder / "model.json").exists()
        for path in folder.glob("last.ckpt*"):
            if finished or path.name != "last.ckpt":
                path.unlink()
        if finished:
            (folder / "best.safetensors").unlink(missing_ok=True)


def write_manifest(session: Session, settings: dict[str, Any], status: str) -> None:
    """Write, last of all, what the session was asked, how it ended, and every file's size and SHA-256."""
    files = {}
    for path in sorted(session.working.rglob("*")):
        if path.is_file() and path.name not in (MANIFEST, ".lock"):
            name = path.relative_to(session.working).as_posix()
            files[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    about = {name: settings.get(name, "") for name in ("job", "mark", "commit", "folds")}
    write_json(session.working / MANIFEST, {**about, "status": status, "files": files})
