"""Kernels on Kaggle: watched, and their output fetched and proved."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

from claris_kaggle.core import platforms
from claris_kaggle.core.console import Waiting, format_duration, log_info
from claris_kaggle.core.errors import DataError, KaggleError, UsageError, name_few
from claris_kaggle.core.files import explain_disk_errors, read_json, write_json
from claris_kaggle.kaggle import api
from claris_kaggle.kaggle.manifest import _MANIFEST, _is_whole
from claris_kaggle.kaggle.session import _COMPLETE, _STOPPED, FAILED

ENDED = ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED")
# Ours: Kaggle answers 404 for some minutes after a push.
NOT_LISTED = "NOT_LISTED"
# Seconds: how long that may last, and how long the listing of a session's output may lag behind its end.
_SETTLING, _LISTING_LAG = 600.0, 600.0
_LISTING_PAUSE = 20.0
# Seconds for a file of 1 MB, beyond the time for an answer: what a slow line takes.
_PER_MEGABYTE = 4.0
_USUAL_SESSION_SECONDS = 12 * 3600.0
# A session that was stopped after this share of its limit was stopped by it.
_TIMED_OUT_SHARE = 0.95
_TABLES = {"oof.csv": "id,label,fold,probability", "test.csv": "id,probability", "submission.csv": "id,label"}


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One version of a kernel, as it was pushed.

    Attributes:
        ref: owner/slug.
        version: counted by Kaggle from 1.
        push_token: a text in its source and its manifest that no other push has.
        pushed: when, in seconds since the epoch; 0 where that is not known.
        limit: seconds after which Kaggle stops its session; 0 where Kaggle was not told.
    """

    ref: str
    version: int
    push_token: str
    pushed: float = 0.0
    limit: float = 0.0

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Self:
        """Return the kernel of an entry of the record of pushes, whose key `push_token` is the push token."""
        known = {field.name for field in dataclasses.fields(cls)} & stored.keys()
        return cls(push_token=stored["mark"], **{name: stored[name] for name in known})

    def to_json(self) -> dict[str, Any]:
        """Return an entry of the record of pushes."""
        values = dataclasses.asdict(self)
        return {"mark": values.pop("push_token"), **values}

    def name(self) -> str:
        """Return the kernel and its version in words."""
        return f"{self.ref} version {self.version}"


@dataclass(frozen=True, kw_only=True)
class _Output:
    """What was fetched of a session's output.

    Attributes:
        status: how the session's own manifest says that it ended.
        message: why it failed, by the manifest.
        files: the names of the files that are there and proved.
        left_out: the names of those that are not what the manifest says; only of sessions that ended badly.
    """

    status: str
    message: str
    files: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    def folds(self) -> str:
        """Return the finished folds among the files, in words."""
        names = sorted(PurePosixPath(name).parts[-2] for name in self.files if name.endswith("/model.json"))
        return ", ".join(names) or "no finished fold"


class _NotListedError(KaggleError):
    """The session has ended, and its output is not listed, or not whole, yet."""

    def __init__(self, found: str, expected: str = "", hint: str = "Pull again in some minutes") -> None:
        super().__init__(found, expected, hint, passing=True)


def kernel_status(kernel: Kernel) -> tuple[str, str]:
    """Return the state of exactly this version, as Kaggle names it, and why it failed.

    Raises:
        KaggleError: Kaggle does not answer, or does not know it.
    """
    try:
        answer = api._call_with_retries("status", ref=kernel.ref, version=kernel.version)
    except KaggleError as error:
        if error.status == 404 and time.time() - kernel.pushed < _SETTLING:
            return NOT_LISTED, ""
        raise
    return str(answer["status"]), str(answer["message"])


def explain_session_end(
    kernel: Kernel, status: str, message: str, log: str, *, out: Path | None = None, came: str = ""
) -> KaggleError:
    """Return why a session ended badly, with the last lines of its log and what came of its output.

    Args:
        out: where its output was pulled to; None where it was not.
        came: what was pulled, in words.
    """
    reasons = "; ".join(part for part in (message, _log_tail(log)) if part) or "no reason given"
    found = f"{kernel.name()} {_describe_session_end(kernel, status, _session_seconds(kernel, log))}: {reasons}"
    if out is None:
        return KaggleError(found, "", "Fetch what it had finished with claris pull, mend it, and push it again")
    if not came:
        return KaggleError(found, "nothing of its output can be used", "Mend it, and push it again")
    hint = f"Mend it; the same claris launch goes on with that, and so does a push with --input {kernel.ref}"
    return KaggleError(found, f"what it had finished is in {out} ({came})", hint)


def _describe_session_end(kernel: Kernel, status: str, seconds: float) -> str:
    """Return how a session ended badly; a time-out is a cancel after the whole time that the session had."""
    if status == "ERROR":
        return "failed"
    if status != "CANCEL_ACKNOWLEDGED":
        return f"is {status.lower()}"
    what = "timed out" if _is_timed_out(kernel, status, seconds) else "was cancelled"
    return f"{what} after {format_duration(seconds)}"


def _is_timed_out(kernel: Kernel, status: str, seconds: float) -> bool:
    """Return True if a cancelled session had used up its time."""
    return status == "CANCEL_ACKNOWLEDGED" and seconds >= _TIMED_OUT_SHARE * (kernel.limit or _USUAL_SESSION_SECONDS)


def session_log(kernel: Kernel) -> str:
    """Return the log of the session; an empty text where it cannot be had."""
    try:
        return str(api._call_with_retries("log", ref=kernel.ref, version=kernel.version)["log"])
    except KaggleError:
        return ""


def _session_seconds(kernel: Kernel, log: str) -> float:
    """Return how long the session ran: until the last line of its log, or else since it was pushed."""
    times = [float(one["time"]) for one in _log_entries(log) if isinstance(one.get("time"), int | float)]
    return max(times) if times else time.time() - kernel.pushed if kernel.pushed else 0.0


def explain_failed_session(kernel: Kernel, output: _Output, out: Path) -> KaggleError:
    """Return why a session failed that kept what it had finished, and where that is now."""
    found = f"{kernel.name()} failed: {output.message or 'no reason given'}"
    return KaggleError(
        found,
        f"what it had finished is in {out} ({output.folds()})",
        f"Mend it; the same claris launch goes on with that, and so does a push with --input {kernel.ref}",
    )


def _log_entries(log: str) -> list[dict[str, Any]]:
    """Return the entries of a kernel's log, which Kaggle keeps as JSON; none of a log that is plain text."""
    try:
        entries = json.loads(log)
    except ValueError:
        return []
    return [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []


def _log_tail(log: str, lines: int = 3) -> str:
    """Return the last lines of a kernel's log."""
    entries = _log_entries(log)
    text = "".join(str(one.get("data", "")) for one in entries) if entries else log
    kept = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(kept[-lines:])[-500:]


def _pull_kernel(kernel: Kernel, out: Path) -> _Output:
    """Fetch this version's output into the folder, each file proved before it is put in place.

    Raises:
        NotListedError: its output is not listed, or not whole, yet.
        KaggleError: it has not ended, ended badly, or its output is not what its own manifest says. What a session
            that ended badly had finished is in the folder all the same.
        UsageError: the folder holds another pull's files, changed since.
    """
    status, message = kernel_status(kernel)
    if status not in ENDED:
        found = f"{kernel.name()} is still {status.lower().replace('_', ' ')}"
        raise KaggleError(found, "", "Wait, and pull again")
    if status == "COMPLETE":
        return _fetch_output(kernel, out)
    try:
        output = _fetch_output(kernel, out, whole=False)
    except _NotListedError:
        raise explain_session_end(kernel, status, message, session_log(kernel), out=out) from None
    raise explain_session_end(kernel, status, message, session_log(kernel), out=out, came=output.folds())


def pull_with_retries(kernel: Kernel, out: Path) -> _Output:
    """Pull, and look again for some minutes where the listing of the output lags behind the end of the session.

    Raises:
        ClarisError: as `_pull_kernel`.
    """
    start = time.monotonic()
    with Waiting() as waiting:
        while True:
            try:
                return _pull_kernel(kernel, out)
            except _NotListedError as error:
                waited = time.monotonic() - start
                if waited > _LISTING_LAG:
                    raise
                waiting.show(f"{error.found}; looking again")
                time.sleep(_LISTING_PAUSE)


def _fetch_output(kernel: Kernel, out: Path, *, whole: bool = True) -> _Output:
    """Fetch a version's output into the folder, each file proved before it is put in place.

    Args:
        whole: all that the manifest names is needed. Otherwise folders with a file that is not there, or not the one
            that the manifest says, are left out: a session that was killed was perhaps writing there.
    Raises:
        NotListedError: there is no manifest, or a file of it is not listed; that may pass.
        KaggleError: the output is of another push, or not what its manifest says.
        UsageError: the folder holds another pull's files, changed since.
    """
    with explain_disk_errors(out), _remove_if_empty(out):
        earlier = read_json(out / _MANIFEST)["files"] if (out / _MANIFEST).exists() else {}
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=out) as temporary:
            aside = Path(temporary)
            manifest = _fetch_manifest(kernel, aside)
            if whole and manifest.get("status") not in (_COMPLETE, _STOPPED, FAILED):
                raise _NotListedError(f"{kernel.ref}: {_MANIFEST} is not the one that the session wrote last")
            files: dict[str, dict[str, Any]] = manifest["files"]
            missing, wrong = _fetch_files(kernel, files, aside, out)
            left_out = _choose_left_out(kernel, files, missing, wrong, whole=whole)
            kept = {name: facts for name, facts in files.items() if name not in left_out}
            stale = _find_stale(out, earlier, kept)
            for name in kept:
                if (aside / name).exists():
                    (out / name).parent.mkdir(parents=True, exist_ok=True)
                    platforms.replace(aside / name, out / name)
            for path in stale:
                path.unlink()
            # The manifest last: where it is, everything that it names is there.
            write_json(out / _MANIFEST, {**manifest, "files": kept})
    return _Output(
        status=str(manifest.get("status", "")),
        message=str(manifest.get("message", "")),
        files=tuple(sorted(kept)),
        left_out=tuple(sorted(left_out)),
    )


@contextlib.contextmanager
def _remove_if_empty(folder: Path) -> Iterator[None]:
    """Make the folder, and take it away again if nothing came into it."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if made and not any(folder.iterdir()):
            folder.rmdir()


def _choose_left_out(
    kernel: Kernel, files: dict[str, Any], missing: Sequence[str], wrong: Sequence[str], *, whole: bool
) -> set[str]:
    """Return the files to do without: all of a folder in which one is missing or is not the manifest's.

    Raises:
        KaggleError: all are needed.
    """
    if whole and missing:
        raise _NotListedError(f"{kernel.ref}: {len(missing)} output files are not listed ({name_few(missing)})")
    if whole and wrong:
        found = f"{kernel.ref}: {name_few(wrong)} is not the file that its session wrote"
        raise _NotListedError(found, "size and SHA-256 of the manifest are needed")
    folders = {PurePosixPath(name).parent for name in (*missing, *wrong)}
    left_out = {name for name in files if PurePosixPath(name).parent in folders}
    if left_out:
        log_info(f"{kernel.ref}: left out, as not whole: {', '.join(sorted(map(str, folders)))}")
    return left_out


def _find_stale(out: Path, earlier: dict[str, Any], files: dict[str, Any]) -> list[Path]:
    """What an earlier pull put into the folder and this one does not have: beside it, it would mix two runs.

    Raises:
        UsageError: some of it has been changed since, and would be lost.
    """
    left = {
        _require_safe_name(name): facts
        for name, facts in earlier.items()
        if name not in files and (out / name).exists()
    }
    changed = sorted(name for name, facts in left.items() if not _is_whole(out / name, facts))
    if changed:
        found = f"{out}: files of an earlier pull were changed since ({name_few(changed)})"
        raise UsageError(found, "nothing was changed now", "Name another --out")
    return [out / name for name in left]


def _require_safe_name(name: str) -> str:
    """The name of an output file itself.

    Raises:
        KaggleError: it would lie outside the folder.
    """
    if not platforms.is_inside(name):
        raise KaggleError(f"the output lists a file {name!r}", "a name inside the folder is needed", "Do not trust it")
    return name


def _fetch_manifest(kernel: Kernel, aside: Path) -> dict[str, Any]:
    """Return the manifest of this very push.

    Raises:
        NotListedError: there is none, or it is of another push; that may pass.
    """
    if _MANIFEST not in _fetch_listed(kernel, [_MANIFEST], aside):
        raise _NotListedError(f"{kernel.name()} left no {_MANIFEST}", "each session writes it")
    try:
        manifest = read_json(aside / _MANIFEST)
    except DataError as error:
        raise _NotListedError(f"{kernel.ref}: what Kaggle sent as {_MANIFEST} is not the session's file") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise _NotListedError(f"{kernel.ref}: {_MANIFEST} names no files", "each session writes it")
    if manifest.get("mark") != kernel.push_token:
        found = f"{kernel.ref}: the output is of another version (mark {manifest.get('mark')!r})"
        raise _NotListedError(found, f"{kernel.push_token} is needed")
    for name in manifest["files"]:
        _require_safe_name(name)
    return manifest


def _fetch_files(
    kernel: Kernel, files: dict[str, dict[str, Any]], aside: Path, out: Path
) -> tuple[list[str], list[str]]:
    """Fetch the files of a manifest that are not there yet; return those not listed, and those that are not its own.

    Raises:
        KaggleError: a table has another header than its name promises.
    """
    needed = {name: facts for name, facts in files.items() if not _is_whole(out / name, facts)}
    if not needed:
        return [], []
    size = sum(int(facts["bytes"]) for facts in needed.values())
    log_info(f"{kernel.ref}: fetching {len(needed)} files, {size / 1e6:.1f} MB")
    listed = _fetch_listed(kernel, list(needed), aside, seconds=size / 1e6 * _PER_MEGABYTE)
    missing = sorted(needed.keys() - listed)
    wrong = sorted(name for name in listed if not _is_whole(aside / name, needed[name]))
    for name in listed - set(wrong):
        _check_table(aside / name)
    return missing, wrong


def _fetch_listed(kernel: Kernel, names: list[str], aside: Path, *, seconds: float = 0.0) -> set[str]:
    """Fetch these files of the output into the folder, again while failures may pass; return those that are listed."""
    answer = api._call_with_retries(
        "output",
        deadline=api._DEADLINE + seconds,
        ref=kernel.ref,
        version=kernel.version,
        folder=str(aside),
        names=names,
    )
    return set(answer["listed"])


def _check_table(path: Path) -> None:
    """Refuse a table of another header than its name promises.

    Raises:
        KaggleError: naming both.
    """
    wanted = _TABLES.get(path.name)
    if wanted is not None:
        with path.open("rb") as stream:
            header = stream.readline(200).decode("utf-8", "replace").strip()
        if header != wanted:
            raise KaggleError(f"{path.name}: the header is {header[:80]!r}", f"{wanted} is needed", "Pull again")
