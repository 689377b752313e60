"""Run a job inside a Kaggle session: find its inputs, run the commands, and write a manifest of the output.

The working folder keeps only what the next step needs. Packed patches go to fast temporary storage. A session that
stops at its time limit exits successfully, because its output is the next session's input. So does a session that fails
after it finished a fold or wrote a checkpoint. The manifest is also written after each finished fold, for sessions that
are killed or time out.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from claris_kaggle.core.console import Progress
from claris_kaggle.core.errors import ERROR_FILE_VARIABLE, ClarisError, DiskError, RunError, UsageError
from claris_kaggle.core.files import sha256_file, write_json
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.core.time_limit import parse_duration
from claris_kaggle.kaggle.machine import _describe_machine
from claris_kaggle.kaggle.manifest import _MANIFEST, _RUNNING, _FileDigest, _Manifest, _merge_runs
from claris_kaggle.kaggle.session_inputs import _FileSettings, _find_named_files, _find_runs, _find_unnamed, find_data

_JOBS = ("train", "predict", "ensemble", "probe")
_COMPLETE, _STOPPED, FAILED = "complete", "stopped", "failed"
# Output folder of a session on Kaggle.
_KAGGLE_WORKING_FOLDER = Path("/kaggle/working")
_SUBMISSION = "submission.csv"
# Seconds between two checks for finished folds.
_MANIFEST_INTERVAL = 1.0
_PROBE_FILE = "probe.json"


@dataclass(frozen=True, kw_only=True)
class _Settings(_FileSettings):
    """The settings of a session, from its kernel's script.

    Attributes:
        job: one of `_JOBS`.
        time_limit: of the session, such as 11h20m.
        push_token: unique text that identifies the push.
        commit: of the library.
        folds: numbers of the folds to train; empty for all.
        flags: flags for `claris train`.
        gpus: number of GPUs of the session.
        weights_from, slides_from, folds_from, extra_from: input files, as owner/dataset/file; see `compose_kernel`.
    """

    job: str
    time_limit: str
    push_token: str = ""
    commit: str = ""
    folds: Sequence[int] = ()
    flags: Sequence[str] = ()
    gpus: int = 0

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Return the settings of a script, with the push token under the key `mark`.

        Raises:
            UsageError: the job is unknown.
        """
        if stored.get("job") not in _JOBS:
            raise UsageError(f"unknown job {stored.get('job')!r}", f"it must be one of {', '.join(_JOBS)}")
        names = {field.name for field in fields(cls)} & stored.keys()
        return cls(push_token=stored.get("mark", ""), **{name: stored[name] for name in names})


@dataclass(frozen=True)
class _Session:
    """The folders of this session, and its deadline.

    Attributes:
        inputs: folder in which Kaggle mounts datasets, competitions and outputs of other kernels; never modified.
        working: folder of the kernel's output.
        temporary: folder that is deleted at the end of the session.
        deadline: value of `time.monotonic()` by which the session must be finished.
    """

    inputs: Path
    working: Path
    temporary: Path
    deadline: float

    @property
    def run_dir(self) -> RunDir:
        """The run that this session works on."""
        return RunDir(self.working / "run")

    def packs(self, data: DataDir) -> list[Path | str]:
        """Return the flags that name the competition's files and their packed patches."""
        return ["--data", data.root, "--cache", self.temporary / "packs"]

    def time_flag_value(self) -> str:
        """Return the time until the deadline in the format of a flag, such as 3600s."""
        return f"{max(1.0, self.deadline - time.monotonic()):.0f}s"


def run_session(script_settings: Mapping[str, object]) -> int:
    """Run the job of a script's settings, and return the exit code of the script."""
    try:
        settings = _Settings.from_json(script_settings)
        session = _open_session(settings)
        status, message = _run_job(session, settings)
        _remove_temporary_files(session.run_dir)
        _write_manifest(session, settings, status, message, _all_files(session))
    except ClarisError as error:
        print("claris: " + " ".join(str(error).split()), file=sys.stderr, flush=True)
        return error.exit_code
    print(f"claris session: {settings.job} {status}{message and ': ' + message}", flush=True)
    return 0


def _run_job(session: _Session, settings: _Settings) -> tuple[str, str]:
    """Run the job.

    Returns:
        Its status, and the error message of a job that failed with output worth keeping.
    Raises:
        ClarisError: it failed without output worth keeping.
    """
    try:
        return {
            "train": _run_train_job,
            "predict": _run_predict_job,
            "ensemble": _run_ensemble_job,
            "probe": _run_probe_job,
        }[settings.job](session, settings), ""
    except ClarisError as error:
        if settings.job == "ensemble" or not _has_finished_work(session.run_dir):
            raise
        print(f"claris: THE JOB FAILED. Finished folds are kept in the output of this session. {error}", flush=True)
        return FAILED, " ".join(str(error).split())


def _has_finished_work(run_dir: RunDir) -> bool:
    """Return True if there is a finished fold or a checkpoint."""
    return any(fold.weights_manifest.exists() or fold.checkpoint.exists() for fold in run_dir.fold_dirs().values())


def _open_session(settings: _Settings) -> _Session:
    """Return the session, with Kaggle's folders or those named by environment variables.

    Raises:
        UsageError: the folder of inputs does not exist.
    """
    working = Path(os.environ.get("KAGGLE_WORKING_DIR", _KAGGLE_WORKING_FOLDER))
    temporary = os.environ.get("KAGGLE_TEMP_DIR") or tempfile.mkdtemp(prefix="claris-temporary-")
    deadline = time.monotonic() + parse_duration(settings.time_limit)
    inputs = Path(os.environ.get("KAGGLE_INPUT_ROOT", "/kaggle/input"))
    if not inputs.is_dir():
        raise UsageError(f"{inputs}: no such folder", "Kaggle mounts the inputs there", "Set KAGGLE_INPUT_ROOT")
    os.environ[ERROR_FILE_VARIABLE] = str(Path(temporary) / "error.txt")
    return _Session(inputs, working, Path(temporary), deadline)


def _count_processes(session: _Session, expected: int) -> int:
    """Return the number of processes: one per GPU. Outside Kaggle, a machine without GPUs gets two.

    Raises:
        UsageError: the number of GPUs is not `expected`, or a Kaggle session has none.
    """
    import torch

    from claris_kaggle.runtime.distributed import count_gpus

    found, present = count_gpus(), torch.cuda.device_count()
    # Environment variables do not distinguish a Kaggle session from a test on another machine; the folder does.
    if found == expected or (found == 0 and session.working != _KAGGLE_WORKING_FOLDER):
        return found or 2
    if present and not found:
        raise UsageError(f"{present} GPUs that torch cannot use", "", "Select another version of Kaggle's environment")
    what = f"{found} GPUs in this session, expected {expected}"
    raise UsageError(what, "", "Select the accelerator GPU T4 x2 (machine_shape NvidiaTeslaT4)")


def _gather_runs(session: _Session) -> None:
    """Merge the folds of all earlier sessions into this session's run.

    Raises:
        RunError: they belong to different runs, or a file does not match its manifest.
    """
    _merge_runs(_find_runs(session.inputs, session.temporary / "earlier"), session.run_dir)


def _run_claris(*arguments: object) -> int:
    """Run a command in a separate process, and return its exit code. Its messages go to this session's log."""
    return subprocess.call(_print_command(arguments))


def _print_command(arguments: Sequence[object]) -> list[str]:
    """Print a command to this session's log, and return it with this interpreter."""
    words = [str(argument) for argument in arguments]
    print(f"$ claris {' '.join(words)}", flush=True)
    return [sys.executable, "-m", "claris_kaggle", *words]


def _run_with_manifests(session: _Session, settings: _Settings, *arguments: object) -> int:
    """Run a command like `_run_claris`, and write the manifest after each fold that it finishes."""
    written: list[tuple[Path, int]] = []
    with subprocess.Popen(_print_command(arguments)) as process:
        while True:
            code = process.poll()
            # A file may be replaced between two checks: the next check writes the manifest again.
            with contextlib.suppress(DiskError, OSError):
                files = _finished_files(session.run_dir)
                found = [(path, path.stat().st_mtime_ns) for path in files]
                if found != written:
                    _write_manifest(session, settings, _RUNNING, "", files)
                    written = found
            if code is not None:
                return code
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_MANIFEST_INTERVAL)


def _run_required_claris(*arguments: object) -> None:
    """Run a command that must succeed.

    Raises:
        RunError: it failed; the message is the command's own error message.
    """
    code = _run_claris(*arguments)
    if code:
        raise _explain_failed_command(arguments[0], code)


def _explain_failed_command(command: object, code: int) -> RunError:
    """Return the error of a failed command, with the message that it wrote to the error file."""
    path = Path(os.environ[ERROR_FILE_VARIABLE])
    if path.exists():
        return RunError(f"claris {command}: {path.read_text('utf-8')}")
    return RunError(f"claris {command} ended with exit code {code}", "", "See the log")


def _run_train_job(session: _Session, settings: _Settings) -> str:
    """Train the folds of the settings, then predict with them."""
    processes = _count_processes(session, settings.gpus)
    data, run_dir = find_data(session.inputs), session.run_dir
    named = _find_named_files(session.inputs, settings)
    for path in _find_unnamed(session.inputs, data, named):
        print(f"claris: {path} is not used: no setting selects it", flush=True)
    _gather_runs(session)
    packs = session.packs(data)
    _run_required_claris("pack", *packs)
    slides = ["--slides", named.slides] if named.slides else []
    fold_file = named.folds or run_dir.folds
    if not fold_file.exists():
        fold_file = session.temporary / "folds.csv"
        _run_required_claris("folds", *packs, "--out", fold_file, *slides)
    weights = ["--weights", named.weights] if named.weights else []
    extra = ["--extra", named.extra] if named.extra else []
    folds = ["--fold", *settings.folds] if settings.folds else []
    code = _run_with_manifests(
        session, settings, "train", *packs, "--folds", fold_file, "--run", run_dir.root, "--nproc", processes,
        "--time-limit", session.time_flag_value(), "--rates", *folds, *slides, *extra, *settings.flags, *weights,
    )  # fmt: skip
    if code == 3:
        return _STOPPED
    if code:
        raise _explain_failed_command("train", code)
    return _predict_finished_folds(session, settings, packs, processes)


def _run_predict_job(session: _Session, settings: _Settings) -> str:
    """Predict with the finished folds among the inputs."""
    processes = _count_processes(session, settings.gpus)
    data = find_data(session.inputs)
    _gather_runs(session)
    return _predict_finished_folds(session, settings, session.packs(data), processes)


def _predict_finished_folds(session: _Session, settings: _Settings, packs: Sequence[Path | str], processes: int) -> str:
    """Predict with every finished fold of the session's run."""
    code = _run_with_manifests(
        session, settings, "predict", *packs, "--run", session.run_dir.root, "--nproc", processes,
        "--time-limit", session.time_flag_value(),
    )  # fmt: skip
    if code not in (0, 3):
        raise _explain_failed_command("predict", code)
    return _STOPPED if code else _COMPLETE


def _run_ensemble_job(session: _Session, settings: _Settings) -> str:
    """Merge the folds of the inputs, compute missing predictions, and write the submission."""
    data = find_data(session.inputs)
    _gather_runs(session)
    packs = session.packs(data)
    _run_required_claris("predict", *packs, "--run", session.run_dir.root)
    _run_required_claris("ensemble", session.run_dir.root, "--data", data.root, "--out", session.working / _SUBMISSION)
    return _COMPLETE


def _run_probe_job(session: _Session, settings: _Settings) -> str:
    """Write a description of this machine to the output, and print a progress line as a long job does."""
    try:
        data = find_data(session.inputs).root.relative_to(session.inputs).as_posix()
    except ClarisError as error:
        data = f"not found: {error.found}"
    test_address = next(iter(settings.flags), "")
    machine = _describe_machine(session.inputs, session.working, session.temporary, data, test_address)
    write_json(session.run_dir.root / _PROBE_FILE, machine.to_json())
    progress = Progress("probe", 1, "machines")
    progress.done = 1
    print(progress.line(), flush=True)
    return _COMPLETE


def _remove_temporary_files(run_dir: RunDir) -> None:
    """Remove what no later step needs: checkpoints of finished folds, older checkpoints, partial files."""
    for path in [path for path in run_dir.root.rglob(".*.part") if path.is_file()]:
        path.unlink()
    for folder in run_dir.root.glob("fold[0-9]*"):
        finished = (folder / "model.json").exists()
        for path in folder.glob("last.ckpt*"):
            if finished or path.name != "last.ckpt":
                path.unlink()
        if finished:
            (folder / "best.safetensors").unlink(missing_ok=True)


def _finished_files(run_dir: RunDir) -> list[Path]:
    """Return the files of the finished folds and the files that they need; none if no fold is finished."""
    files: list[Path] = []
    for fold in run_dir.fold_dirs().values():
        if fold.weights_manifest.exists():
            files += [fold.weights_manifest, fold.weights, *(one for one in [fold.history] if one.exists())]
            files += [fold.predictions_manifest, fold.oof, fold.test] if fold.predictions_manifest.exists() else []
    return [run_dir.config, run_dir.folds, run_dir.folds.with_suffix(".json"), *files] if files else []


def _all_files(session: _Session) -> list[Path]:
    """Return the files of the session's run and of its submission."""
    found = [*session.run_dir.root.rglob("*"), *session.working.glob("submission.*")]
    return [path for path in found if path.is_file() and not path.name.startswith(".lock")]


def _write_manifest(session: _Session, settings: _Settings, status: str, message: str, files: Iterable[Path]) -> None:
    """Write the manifest: the settings, the status and its reason, and size and SHA-256 of each file."""
    digests = {
        path.relative_to(session.working).as_posix(): _FileDigest(path.stat().st_size, sha256_file(path))
        for path in sorted(files)
    }
    about = {"job": settings.job, "mark": settings.push_token, "commit": settings.commit, "folds": settings.folds}
    manifest = _Manifest(about=about, status=status, message=message, files=digests)
    write_json(session.working / _MANIFEST, manifest.to_json())
