"""Poll kernels on Kaggle, and fetch and verify their output."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import tempfile
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

from claris_kaggle.core import platforms
from claris_kaggle.core.console import StatusLine, format_duration, log_info
from claris_kaggle.core.errors import DataError, KaggleError, UsageError, name_few
from claris_kaggle.core.files import explain_disk_errors, read_json, write_json
from claris_kaggle.kaggle import api
from claris_kaggle.kaggle.manifest import _MANIFEST, _FileDigest, _is_intact, _Manifest
from claris_kaggle.kaggle.session import _COMPLETE, _STOPPED, FAILED

END_STATES = ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED")
# A state of this package: Kaggle answers 404 for some minutes after a push.
NOT_LISTED = "NOT_LISTED"
# Seconds: the maximum duration of that state, and of the delay between a session's end and the listing of its output.
_NOT_LISTED_SECONDS, _LISTING_LAG = 600.0, 600.0
_LISTING_PAUSE = 20.0
# Additional seconds for each MB of a download, for a slow connection.
_SECONDS_PER_MEGABYTE = 4.0
_DEFAULT_SESSION_SECONDS = 12 * 3600.0
# A session that was cancelled after at least this share of its time limit has timed out.
_TIMED_OUT_SHARE = 0.95
_TABLES = {"oof.csv": "id,label,fold,probability", "test.csv": "id,probability", "submission.csv": "id,label"}


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A pushed version of a kernel.

    Attributes:
        ref: owner/slug.
        version: counted by Kaggle from 1.
        push_token: unique text in its source and its manifest, by which the push is found.
        pushed: time of the push, in seconds since the epoch; 0 if unknown.
        limit: seconds after which Kaggle stops its session; 0 if no limit was sent to Kaggle.
    """

    ref: str
    version: int
    push_token: str
    pushed: float = 0.0
    limit: float = 0.0

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Return the kernel of an entry in the record of pushes. Its key `mark` holds the push token."""
        names = {field.name for field in dataclasses.fields(cls)} & stored.keys()
        return cls(push_token=stored["mark"], **{name: stored[name] for name in names})

    def to_json(self) -> dict[str, object]:
        """Return an entry for the record of pushes."""
        values = dataclasses.asdict(self)
        return {"mark": values.pop("push_token"), **values}

    def name(self) -> str:
        """Return the kernel and its version as text."""
        return f"{self.ref} version {self.version}"


@dataclass(frozen=True, kw_only=True)
class _Output:
    """The fetched output of a session.

    Attributes:
        status: how the session ended, according to its own manifest.
        message: reason of a failure, from the manifest.
        files: names of the files that are present and verified.
        left_out: names of skipped files; only for sessions that failed, were cancelled or timed out.
    """

    status: str
    message: str
    files: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    def folds(self) -> str:
        """Return the names of the finished folds among the files, as text."""
        names = sorted(PurePosixPath(name).parts[-2] for name in self.files if name.endswith("/model.json"))
        return ", ".join(names) or "no finished fold"


class _NotListedError(KaggleError):
    """The session has ended, but its output is not listed or not complete yet."""

    def __init__(self, found: str, expected: str = "", hint: str = "Pull again in a few minutes") -> None:
        super().__init__(found, expected, hint, retryable=True)


def kernel_status(kernel: Kernel) -> tuple[str, str]:
    """Return the state and the failure message of exactly this version.

    Returns:
        The state as Kaggle names it, or `NOT_LISTED` in the first minutes after a push; the reason of a failure.
    Raises:
        KaggleError: Kaggle does not answer, or does not know the version.
    """
    try:
        state = api._call_with_retries(api._STATUS, ref=kernel.ref, version=kernel.version)
    except KaggleError as error:
        if error.status == 404 and time.time() - kernel.pushed < _NOT_LISTED_SECONDS:
            return NOT_LISTED, ""
        raise
    return state.status, state.message


def explain_session_end(
    kernel: Kernel, status: str, message: str, log: str, *, out: Path | None = None, pulled_output: str = ""
) -> KaggleError:
    """Return the error for a session that failed, was cancelled or timed out, with the last lines of its log.

    Args:
        kernel: the version that ran.
        status: its state, as Kaggle names it.
        message: the reason of the failure, as Kaggle gives it.
        log: its log; may be empty.
        out: folder that its output was pulled to; None if it was not pulled.
        pulled_output: description of the pulled output; empty if it is not usable.
    """
    reasons = "; ".join(part for part in (message, _log_tail(log)) if part) or "no reason given"
    found = f"{kernel.name()} {_describe_session_end(kernel, status, _session_seconds(kernel, log))}: {reasons}"
    if out is None:
        return KaggleError(found, "", "Download the finished folds with claris pull, fix the cause, then push it again")
    if not pulled_output:
        return KaggleError(found, "nothing of its output can be used", "Fix the cause, then push it again")
    return KaggleError(found, f"finished folds are in {out} ({pulled_output})", _resume_hint(kernel))


def _describe_session_end(kernel: Kernel, status: str, seconds: float) -> str:
    """Return the kind of failure as text. A session that was cancelled at its time limit has timed out."""
    if status == "ERROR":
        return "failed"
    if status != "CANCEL_ACKNOWLEDGED":
        return f"is {status.lower()}"
    what = "timed out" if _is_timed_out(kernel, status, seconds) else "was cancelled"
    return f"{what} after {format_duration(seconds)}"


def _is_timed_out(kernel: Kernel, status: str, seconds: float) -> bool:
    """Return True if a cancelled session had used up its time limit."""
    return status == "CANCEL_ACKNOWLEDGED" and seconds >= _TIMED_OUT_SHARE * (kernel.limit or _DEFAULT_SESSION_SECONDS)


def session_log(kernel: Kernel) -> str:
    """Return the log of the session; an empty string if it is not available."""
    try:
        return api._call_with_retries(api._LOG, ref=kernel.ref, version=kernel.version)
    except KaggleError:
        return ""


def _session_seconds(kernel: Kernel, log: str) -> float:
    """Return the session's duration in seconds: the time of its last log line, or else the time since its push."""
    times = [seconds for one in _log_entries(log) if isinstance(seconds := one.get("time"), int | float)]
    return max(times) if times else time.time() - kernel.pushed if kernel.pushed else 0.0


def _resume_hint(kernel: Kernel) -> str:
    """Return the hint for a failed session that left finished folds."""
    commands = f"run the same claris launch, or claris push with --input {kernel.ref}"
    return f"Fix the cause. To resume with these folds, {commands}"


def explain_failed_session(kernel: Kernel, output: _Output, out: Path) -> KaggleError:
    """Return the error for a failed session whose finished folds were pulled, with their folder."""
    found = f"{kernel.name()} failed: {output.message or 'no reason given'}"
    return KaggleError(
        found,
        f"finished folds are in {out} ({output.folds()})",
        _resume_hint(kernel),
    )


def _log_entries(log: str) -> list[dict[str, object]]:
    """Return the entries of a kernel's JSON log; an empty list for a plain-text log."""
    try:
        entries = json.loads(log)
    except ValueError:
        return []
    return [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []


def _log_lines(log: str) -> list[str]:
    """Return the lines of a log. Kaggle stores it as a JSON array of parts, or streams plain text.

    >>> _log_lines('[{"data": "one\\\\ntw"}, {"data": "o\\\\n"}]')
    ['one', 'two']
    """
    entries = _log_entries(log)
    text = "".join(str(one.get("data", "")) for one in entries) if entries else log
    return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def _log_tail(log: str) -> str:
    """Return the last three lines of a kernel's log, at most 500 characters."""
    return " / ".join(_log_lines(log)[-3:])[-500:]


def _pull_kernel(kernel: Kernel, out: Path) -> _Output:
    """Fetch this version's output into the folder. Each file is verified before it is moved into place.

    Raises:
        _NotListedError: its output is not listed or not complete yet.
        KaggleError: it has not ended, it failed, was cancelled or timed out, or its output does not match its own
            manifest. The finished work of a failed session is fetched nevertheless.
        UsageError: the folder holds files of another pull that were changed since.
    """
    status, message = kernel_status(kernel)
    if status not in END_STATES:
        found = f"{kernel.name()} is still {status.lower().replace('_', ' ')}"
        raise KaggleError(found, "", "Wait, then pull again")
    if status == "COMPLETE":
        return _fetch_output(kernel, out)
    try:
        output = _fetch_output(kernel, out, require_all=False)
    except _NotListedError:
        raise explain_session_end(kernel, status, message, session_log(kernel), out=out) from None
    raise explain_session_end(kernel, status, message, session_log(kernel), out=out, pulled_output=output.folds())


def pull_with_retries(kernel: Kernel, out: Path) -> _Output:
    """Pull the output, and retry for some minutes while Kaggle does not list it completely.

    Raises:
        ClarisError: see `_pull_kernel`.
    """
    start = time.monotonic()
    with StatusLine() as waiting:
        while True:
            try:
                return _pull_kernel(kernel, out)
            except _NotListedError as error:
                waited = time.monotonic() - start
                if waited > _LISTING_LAG:
                    raise
                waiting.show(f"{error.found}; checking again")
                time.sleep(_LISTING_PAUSE)


def _fetch_output(kernel: Kernel, out: Path, *, require_all: bool = True) -> _Output:
    """Fetch a version's output into the folder. Each file is verified before it is moved into place.

    Args:
        kernel: the version.
        out: the folder.
        require_all: require every file in the manifest. Otherwise folders with a missing or different file are
            skipped, because a killed session may have been writing there.
    Raises:
        _NotListedError: the manifest or one of its files is not listed, or does not match this push; may be temporary.
        KaggleError: an invalid file name, or a table with an unexpected header.
        UsageError: the folder holds files of another pull that were changed since.
    """
    with explain_disk_errors(out), _remove_if_empty(out):
        earlier = _Manifest.from_json(read_json(out / _MANIFEST)).files if (out / _MANIFEST).exists() else {}
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=out) as temporary:
            partial = Path(temporary)
            manifest = _fetch_manifest(kernel, partial)
            if require_all and manifest.status not in (_COMPLETE, _STOPPED, FAILED):
                raise _NotListedError(f"{kernel.ref}: {_MANIFEST} is not the last one that the session wrote")
            files = manifest.files
            missing, wrong = _fetch_files(kernel, files, partial, out)
            left_out = _choose_skipped(kernel, files, missing, wrong, require_all=require_all)
            kept_files = {name: facts for name, facts in files.items() if name not in left_out}
            stale = _find_stale(out, earlier, kept_files)
            for name in kept_files:
                if (partial / name).exists():
                    (out / name).parent.mkdir(parents=True, exist_ok=True)
                    platforms.replace(partial / name, out / name)
            for path in stale:
                path.unlink()
            # Written last: where there is a manifest, all files that it lists exist.
            write_json(out / _MANIFEST, dataclasses.replace(manifest, files=kept_files).to_json())
    return _Output(
        status=manifest.status,
        message=manifest.message,
        files=tuple(sorted(kept_files)),
        left_out=tuple(sorted(left_out)),
    )


@contextlib.contextmanager
def _remove_if_empty(folder: Path) -> Iterator[None]:
    """Create the folder if needed, and remove it again if it was created and stays empty."""
    created = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if created and not any(folder.iterdir()):
            folder.rmdir()


def _choose_skipped(
    kernel: Kernel, files: Iterable[str], missing: Sequence[str], wrong: Sequence[str], *, require_all: bool
) -> set[str]:
    """Return the files to skip: all files of a folder in which one is missing or differs from the manifest.

    Raises:
        _NotListedError: `require_all` is True, and a file is missing or different.
    """
    if require_all and missing:
        raise _NotListedError(f"{kernel.ref}: {len(missing)} output files are not listed ({name_few(missing)})")
    if require_all and wrong:
        found = f"{kernel.ref}: {name_few(wrong)} is not the file that the session wrote"
        raise _NotListedError(found, "expected size and SHA-256 of the manifest")
    folders = {PurePosixPath(name).parent for name in (*missing, *wrong)}
    skipped = {name for name in files if PurePosixPath(name).parent in folders}
    if skipped:
        log_info(f"{kernel.ref}: skipped, because incomplete: {', '.join(sorted(map(str, folders)))}")
    return skipped


def _find_stale(out: Path, earlier: Mapping[str, _FileDigest], files: Container[str]) -> list[Path]:
    """Return the files of an earlier pull that this one does not have. They would mix two runs.

    Raises:
        UsageError: some of them were changed since, and would be lost.
    """
    stale = {
        _require_safe_name(name): facts
        for name, facts in earlier.items()
        if name not in files and (out / name).exists()
    }
    changed = sorted(name for name, facts in stale.items() if not _is_intact(out / name, facts))
    if changed:
        found = f"{out}: files of an earlier pull have changed ({name_few(changed)})"
        raise UsageError(found, "nothing was changed", "Give another --out")
    return [out / name for name in stale]


def _require_safe_name(name: str) -> str:
    """Return the name of an output file if it is inside the folder.

    Raises:
        KaggleError: it is outside the folder.
    """
    if not platforms.is_safe_name(name):
        raise KaggleError(f"the output lists a file {name!r}", "expected a name inside the folder", "Do not trust it")
    return name


def _fetch_manifest(kernel: Kernel, partial: Path) -> _Manifest:
    """Return the manifest of exactly this push.

    Raises:
        _NotListedError: there is no manifest, or it is of another push; may be temporary.
        KaggleError: a file name in it is outside the folder.
    """
    if _MANIFEST not in _fetch_listed(kernel, [_MANIFEST], partial):
        raise _NotListedError(f"{kernel.name()} wrote no {_MANIFEST}", "each session writes it")
    try:
        stored = read_json(partial / _MANIFEST)
    except DataError as error:
        raise _NotListedError(f"{kernel.ref}: Kaggle sent another file as {_MANIFEST}") from error
    if not isinstance(stored.get("files"), dict):
        raise _NotListedError(f"{kernel.ref}: {_MANIFEST} names no files", "each session writes it")
    if stored.get("mark") != kernel.push_token:
        found = f"{kernel.ref}: the output is of another version (mark {stored.get('mark')!r})"
        raise _NotListedError(found, f"expected {kernel.push_token}")
    for name in stored["files"]:
        _require_safe_name(name)
    return _Manifest.from_json(stored)


def _fetch_files(
    kernel: Kernel, files: Mapping[str, _FileDigest], partial: Path, out: Path
) -> tuple[list[str], list[str]]:
    """Fetch the files of a manifest that are not in the folder yet.

    Returns:
        Names that Kaggle does not list; names of files that differ from the manifest.
    Raises:
        KaggleError: a table has an unexpected header.
    """
    needed = {name: facts for name, facts in files.items() if not _is_intact(out / name, facts)}
    if not needed:
        return [], []
    size = sum(facts.bytes for facts in needed.values())
    log_info(f"{kernel.ref}: downloading {len(needed)} files, {size / 1e6:.1f} MB")
    listed = _fetch_listed(kernel, list(needed), partial, seconds=size / 1e6 * _SECONDS_PER_MEGABYTE)
    missing = sorted(needed.keys() - listed)
    wrong = sorted(name for name in listed if not _is_intact(partial / name, needed[name]))
    for name in listed - set(wrong):
        _check_table(partial / name)
    return missing, wrong


def _fetch_listed(kernel: Kernel, names: list[str], partial: Path, *, seconds: float = 0.0) -> set[str]:
    """Fetch these output files into the folder, with retries, and return the names that Kaggle lists."""
    return api._call_with_retries(
        api._SESSION_OUTPUT,
        deadline=api._DEADLINE + seconds,
        ref=kernel.ref,
        version=kernel.version,
        folder=str(partial),
        names=names,
    )


def _check_table(path: Path) -> None:
    """Check the header of a table with a known name.

    Raises:
        KaggleError: unexpected header; the message names both.
    """
    expected = _TABLES.get(path.name)
    if expected is not None:
        with path.open("rb") as stream:
            header = stream.readline(200).decode("utf-8", "replace").strip()
        if header != expected:
            raise KaggleError(f"{path.name}: the header is {header[:80]!r}", f"expected {expected}", "Pull again")
