"""What a kernel does inside a Kaggle session: find its inputs, run the verbs, leave a manifest of what it wrote.

The working folder keeps only what the next step needs; packs go to fast temporary storage. A session that stops in
time ends well: its output is the next session's input. So does one that fails with a fold or a checkpoint on disk. The
manifest is also written after each finished fold, for sessions that are killed or time out.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claris_kaggle.core.console import Progress
from claris_kaggle.core.errors import LAST_WORDS, ClarisError, DiskError, RunError, UsageError
from claris_kaggle.core.files import sha256_file, write_json
from claris_kaggle.core.paths import RunDir
from claris_kaggle.core.time_limit import parse_duration
from claris_kaggle.kaggle.machine import describe_machine
from claris_kaggle.kaggle.manifest import MANIFEST, RUNNING, merge_runs
from claris_kaggle.kaggle.session_inputs import find_data, find_named_files, find_runs, find_unnamed

JOBS = ("train", "predict", "ensemble", "probe")
COMPLETE, STOPPED, FAILED = "complete", "stopped", "failed"
# Where the output of a real session lies.
WORKING = Path("/kaggle/working")
SUBMISSION = "submission.csv"
# Seconds between two looks for finished folds.
LOOK_EVERY = 1.0
PROBE = "probe.json"


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
        status, message = work(session, settings)
        tidy(session.run_dir)
        write_manifest(session, settings, status, message, all_files(session))
    except ClarisError as error:
        print("claris: " + " ".join(str(error).split()), file=sys.stderr, flush=True)
        return error.exit_code
    print(f"claris session: {settings['job']} {status}{message and ': ' + message}", flush=True)
    return 0


def work(session: Session, settings: dict[str, Any]) -> tuple[str, str]:
    """Do the job: how it ended, and why it failed where something is worth keeping all the same.

    Raises:
        ClarisError: it failed, and nothing is.
    """
    job = settings["job"]
    try:
        return {"train": train, "predict": predict, "ensemble": ensemble, "probe": probe}[job](session, settings), ""
    except ClarisError as error:
        if job == "ensemble" or not is_worth_keeping(session.run_dir):
            raise
        print(f"claris: THE JOB FAILED. What it had finished is kept as this session's output. {error}", flush=True)
        return FAILED, " ".join(str(error).split())


def is_worth_keeping(run_dir: RunDir) -> bool:
    """Whether there is a finished fold, or a checkpoint of one."""
    return any(fold.seal.exists() or fold.checkpoint.exists() for fold in run_dir.fold_dirs().values())


def open_session(settings: dict[str, Any]) -> Session:
    """The folders, from their usual places or from variables.

    Raises:
        UsageError: the job is unknown, or the machine is not the one that was asked for.
    """
    if settings.get("job") not in JOBS:
        raise UsageError(f"a job of the name {settings.get('job')!r}", f"it must be one of {', '.join(JOBS)}")
    working = Path(os.environ.get("KAGGLE_WORKING_DIR", WORKING))
    temporary = os.environ.get("KAGGLE_TEMP_DIR") or tempfile.mkdtemp(prefix="claris-temporary-")
    deadline = time.monotonic() + parse_duration(settings["time_limit"])
    inputs = Path(os.environ.get("KAGGLE_INPUT_ROOT", "/kaggle/input"))
    if not inputs.is_dir():
        raise UsageError(f"{inputs}: no such folder", "Kaggle mounts the inputs there", "Set KAGGLE_INPUT_ROOT")
    os.environ[LAST_WORDS] = str(Path(temporary) / "last-words.txt")
    return Session(inputs, working, Path(temporary), deadline)


def count_processes(session: Session, wanted: int) -> int:
    """One process for each GPU; two on a machine without any, for a trial.

    Raises:
        UsageError: there are GPUs, but not as many as were asked for, or none in a real session.
    """
    import torch

    found = torch.cuda.device_count()
    # Kaggle sets its variables too, so it is the folder that tells a real session from a trial.
    if found == wanted or (found == 0 and session.working != WORKING):
        return found or 2
    what = f"{found} GPUs in this session, and {wanted} were asked for"
    raise UsageError(what, "", "Choose the accelerator GPU T4 x2 (machine_shape NvidiaTeslaT4)")


def gather_runs(session: Session) -> None:
    """Put the folds of all earlier sessions into this session's run.

    Raises:
        RunError: they are not of one run.
    """
    merge_runs(find_runs(session.inputs, session.temporary / "earlier"), session.run_dir)


def claris(*arguments: object) -> int:
    """Run a verb in a process of its own, whose talk goes to this session's log."""
    print("$ claris " + " ".join(map(str, arguments)), flush=True)
    return subprocess.call([sys.executable, "-m", "claris_kaggle", *map(str, arguments)])


def run_watched(session: Session, settings: dict[str, Any], *arguments: object) -> int:
    """Run a verb like `claris`, and write the manifest after each fold that it finishes."""
    print("$ claris " + " ".join(map(str, arguments)), flush=True)
    written: list[tuple[Path, int]] = []
    with subprocess.Popen([sys.executable, "-m", "claris_kaggle", *map(str, arguments)]) as process:
        while True:
            code = process.poll()
            # A file may be replaced between two looks: the next look writes the manifest again.
            with contextlib.suppress(DiskError, OSError):
                files = finished_files(session.run_dir)
                found = [(path, path.stat().st_mtime_ns) for path in files]
                if found != written:
                    write_manifest(session, settings, RUNNING, "", files)
                    written = found
            if code is not None:
                return code
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_EVERY)


def must(*arguments: object) -> None:
    """Run a verb that has to succeed.

    Raises:
        RunError: it did not, with its last words.
    """
    code = claris(*arguments)
    if code:
        raise explain_verb(arguments[0], code)


def explain_verb(verb: object, code: int) -> RunError:
    """Why a verb failed: what it left as its last words."""
    path = Path(os.environ[LAST_WORDS])
    if path.exists():
        return RunError(f"claris {verb}: {path.read_text('utf-8')}")
    return RunError(f"claris {verb} ended with exit code {code}", "", "See the log")


def train(session: Session, settings: dict[str, Any]) -> str:
    """Train the folds of the settings, then predict with them."""
    processes = count_processes(session, settings["gpus"])
    data, run_dir = find_data(session.inputs), session.run_dir
    named = find_named_files(session.inputs, settings)
    for path in find_unnamed(session.inputs, data, named):
        print(f"claris: {path} is not used: no setting names it", flush=True)
    gather_runs(session)
    packs = ["--data", data.root, "--cache", session.temporary / "packs"]
    must("pack", *packs)
    slides = ["--slides", named.slides] if named.slides else []
    fold_file = named.folds or run_dir.folds
    if not fold_file.exists():
        fold_file = session.temporary / "folds.csv"
        must("folds", *packs, "--out", fold_file, *slides)
    weights = ["--weights", named.weights] if named.weights else []
    folds = ["--fold", *settings["folds"]] if settings["folds"] else []
    code = run_watched(
        session, settings, "train", *packs, "--folds", fold_file, "--run", run_dir.root, "--nproc", processes,
        "--time-limit", session.left(), "--rates", *folds, *slides, *settings["flags"], *weights,
    )  # fmt: skip
    if code == 3:
        return STOPPED
    if code:
        raise explain_verb("train", code)
    return predict_run(session, settings, packs, processes)


def predict(session: Session, settings: dict[str, Any]) -> str:
    """Predict with the finished folds among the inputs."""
    processes = count_processes(session, settings["gpus"])
    data = find_data(session.inputs)
    gather_runs(session)
    return predict_run(session, settings, ["--data", data.root, "--cache", session.temporary / "packs"], processes)


def predict_run(session: Session, settings: dict[str, Any], packs: list[Any], processes: int) -> str:
    """Predict with every finished fold of the session's run."""
    code = run_watched(
        session, settings, "predict", *packs, "--run", session.run_dir.root, "--nproc", processes,
        "--time-limit", session.left(),
    )  # fmt: skip
    if code not in (0, 3):
        raise explain_verb("predict", code)
    return STOPPED if code else COMPLETE


def ensemble(session: Session, settings: dict[str, Any]) -> str:
    """Put the folds of the inputs together, predicting what is missing, and write the submission."""
    data = find_data(session.inputs)
    gather_runs(session)
    packs = ["--data", data.root, "--cache", session.temporary / "packs"]
    must("predict", *packs, "--run", session.run_dir.root)
    must("ensemble", session.run_dir.root, "--data", data.root, "--out", session.working / SUBMISSION)
    return COMPLETE


def probe(session: Session, settings: dict[str, Any]) -> str:
    """Write what this machine holds to the output, and print a progress line as a long job does."""
    facts = describe_machine(session.inputs, session.working, session.temporary, next(iter(settings["flags"]), ""))
    try:
        facts["data"] = find_data(session.inputs).root.relative_to(session.inputs).as_posix()
    except ClarisError as error:
        facts["data"] = f"not found: {error.found}"
    write_json(session.run_dir.root / PROBE, facts)
    progress = Progress("probe", 1, "machines")
    progress.done = 1
    print(progress.line(), flush=True)
    return COMPLETE


def tidy(run_dir: RunDir) -> None:
    """Remove what no later step needs: checkpoints of finished folds, spare generations, half written files."""
    for path in [path for path in run_dir.root.rglob(".*.part") if path.is_file()]:
        path.unlink()
    for folder in run_dir.root.glob("fold[0-9]*"):
        finished = (folder / "model.json").exists()
        for path in folder.glob("last.ckpt*"):
            if finished or path.name != "last.ckpt":
                path.unlink()
        if finished:
            (folder / "best.safetensors").unlink(missing_ok=True)


def finished_files(run_dir: RunDir) -> list[Path]:
    """Return the files of the finished folds and those that they need; none while no fold is finished."""
    files: list[Path] = []
    for fold in run_dir.fold_dirs().values():
        if fold.seal.exists():
            files += [fold.seal, fold.weights, *(one for one in [fold.history] if one.exists())]
            files += [fold.receipt, fold.oof, fold.test] if fold.receipt.exists() else []
    return [run_dir.config, run_dir.folds, run_dir.folds.with_suffix(".json"), *files] if files else []


def all_files(session: Session) -> list[Path]:
    """Return the files of the session's run, and those of its submission."""
    found = [*session.run_dir.root.rglob("*"), *session.working.glob("submission.*")]
    return [path for path in found if path.is_file() and not path.name.startswith(".lock")]


def write_manifest(
    session: Session, settings: dict[str, Any], status: str, message: str, files: Iterable[Path]
) -> None:
    """Write what the session was asked, how it ended and why, and size and SHA-256 of the files."""
    facts = {
        path.relative_to(session.working).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(files)
    }
    about = {name: settings.get(name, "") for name in ("job", "mark", "commit", "folds")}
    write_json(session.working / MANIFEST, {**about, "status": status, "message": message, "files": facts})
