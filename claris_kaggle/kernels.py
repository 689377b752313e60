"""Kernels on Kaggle: watched, and their output fetched and proved."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from claris_kaggle import kaggle_api
from claris_kaggle.console import Progress
from claris_kaggle.errors import KaggleError, UsageError, name_few
from claris_kaggle.files import explain_disk_errors, read_json
from claris_kaggle.inputs import MANIFEST, is_whole

LARGEST_OUTPUT = 2 << 30
ENDED = ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED")
TABLES = {"oof.csv": "id,label,fold,probability", "test.csv": "id,probability", "submission.csv": "id,label"}


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One version of a kernel, as it was pushed.

    Attributes:
        ref: owner/slug.
        version: counted by Kaggle from 1.
        mark: a text in its source and its manifest that no other push has.
    """

    ref: str
    version: int
    mark: str


def kernel_status(kernel: Kernel) -> tuple[str, str]:
    """The state of exactly this version, as Kaggle names it, and why it failed.

    Raises:
        KaggleError: Kaggle does not answer, or does not know it.
    """
    answer = kaggle_api.patiently("status", ref=kernel.ref, version=kernel.version)
    return str(answer["status"]), str(answer["message"])


def explain_end(kernel: Kernel, status: str, message: str) -> KaggleError:
    """Why a session that has ended is of no use, with the last lines of its log."""
    try:
        tail = log_tail(kaggle_api.patiently("outputs", ref=kernel.ref, version=kernel.version)["log"])
    except KaggleError:
        tail = ""
    reasons = "; ".join(part for part in (message, tail) if part) or "no reason given"
    what = {"ERROR": "failed", "CANCEL_ACKNOWLEDGED": "was cancelled"}.get(status, f"is {status.lower()}")
    return KaggleError(f"{kernel.ref} version {kernel.version} {what}: {reasons}", "", "Mend it, and push it again")


def explain_failure(kernel: Kernel, manifest: dict[str, Any], out: Path) -> KaggleError:
    """Why a session failed that kept what it had finished, and where that is now."""
    found = f"{kernel.ref} version {kernel.version} failed: {manifest.get('message') or 'no reason given'}"
    return KaggleError(
        found,
        f"what it had finished is in {out}",
        f"Mend it; the same claris launch goes on with that, and so does a push with --input {kernel.ref}",
    )


def log_tail(log: str, lines: int = 3) -> str:
    """The last lines of a kernel's log, which Kaggle keeps as JSON."""
    try:
        text = "".join(str(entry.get("data", "")) for entry in json.loads(log))
    except (ValueError, AttributeError, TypeError):
        text = log
    kept = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(kept[-lines:])[-500:]


def pull_kernel(kernel: Kernel, out: Path) -> dict[str, Any]:
    """Fetch this version's output into the folder, each file proved before it is put in place.

    Returns:
        The manifest that the session wrote.
    Raises:
        KaggleError: it is not complete, or its output is not what its own manifest says.
        UsageError: the folder holds another pull's files, changed since.
    """
    status, message = kernel_status(kernel)
    if status != "COMPLETE":
        if status in ENDED:
            raise explain_end(kernel, status, message)
        raise KaggleError(
            f"{kernel.ref} version {kernel.version} is still {status.lower()}", "", "Wait, and pull again"
        )
    listed = kaggle_api.patiently("outputs", ref=kernel.ref, version=kernel.version)["files"]
    addresses = {safe_name(one["name"]): one["url"] for one in listed}
    with explain_disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        earlier = read_json(out / MANIFEST)["files"] if (out / MANIFEST).exists() else {}
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=out) as aside:
            manifest = fetch_manifest(kernel, addresses, Path(aside))
            stale = find_stale(out, earlier, manifest["files"])
            fetch_files(kernel, manifest, addresses, Path(aside), out)
            for path in stale:
                path.unlink()
            # The manifest last: where it is, everything that it names is there.
            (Path(aside) / MANIFEST).replace(out / MANIFEST)
    return manifest


def find_stale(out: Path, earlier: dict[str, Any], files: dict[str, Any]) -> list[Path]:
    """What an earlier pull put into the folder and this one does not have: beside it, it would mix two runs.

    Raises:
        UsageError: some of it has been changed since, and would be lost.
    """
    left = {safe_name(name): facts for name, facts in earlier.items() if name not in files and (out / name).exists()}
    changed = sorted(name for name, facts in left.items() if not is_whole(out / name, facts))
    if changed:
        found = f"{out}: files of an earlier pull were changed since ({name_few(changed)})"
        raise UsageError(found, "nothing was changed now", "Name another --out")
    return [out / name for name in left]


def safe_name(name: str) -> str:
    """The name of an output file itself.

    Raises:
        KaggleError: it would lie outside the folder.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or "\\" in name or "\0" in name or any(part in ("..", ".") for part in parts):
        raise KaggleError(f"the output lists a file {name!r}", "a name inside the folder is needed", "Do not trust it")
    return name


def fetch_manifest(kernel: Kernel, addresses: dict[str, str], aside: Path) -> dict[str, Any]:
    """The manifest of this very push.

    Raises:
        KaggleError: there is none, or it is of another push.
    """
    if MANIFEST not in addresses:
        found = f"{kernel.ref} version {kernel.version} left no {MANIFEST}"
        raise KaggleError(found, "each session writes it last", "Look at the log on the web page")
    path = aside / MANIFEST
    fetch(addresses[MANIFEST], path, limit=10 << 20)
    manifest = read_json(path)
    if manifest.get("mark") != kernel.mark:
        found = f"{kernel.ref}: the output is of another version (mark {manifest.get('mark')!r})"
        raise KaggleError(found, f"{kernel.mark} is needed", "Pull again later", passing=True)
    for name in manifest.get("files", {}):
        safe_name(name)
    missing = sorted(set(manifest["files"]) - set(addresses))
    if missing:
        raise KaggleError(
            f"{kernel.ref}: {len(missing)} output files are not listed ({name_few(missing)})", "", "Pull again"
        )
    return manifest


def fetch_files(kernel: Kernel, manifest: dict[str, Any], addresses: dict[str, str], aside: Path, out: Path) -> None:
    """Fetch what is not there yet, prove it, and put it in place when all of it is proved."""
    files: dict[str, dict[str, Any]] = manifest["files"]
    needed = {name: facts for name, facts in files.items() if not is_whole(out / name, facts)}
    with Progress(f"pull {kernel.ref}", len(needed), "files") as progress:
        for name, facts in needed.items():
            path = aside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            fetch(addresses[name], path, limit=min(int(facts["bytes"]), LARGEST_OUTPUT))
            if not is_whole(path, facts):
                found = f"{kernel.ref}: {name} is not the file that its session wrote"
                raise KaggleError(found, "size and SHA-256 of the manifest are needed", "Pull again", passing=True)
            check_table(path)
            progress.update(1)
    for name in needed:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (aside / name).replace(out / name)


def fetch(address: str, path: Path, *, limit: int) -> None:
    """Fetch an address, again while failures may pass."""

    def attempt() -> dict[str, Any]:
        kaggle_api.fetch_file(address, path, limit=limit)
        return {}

    kaggle_api.retry(attempt)


def check_table(path: Path) -> None:
    """Refuse a table of another header than its name promises.

    Raises:
        KaggleError: naming both.
    """
    wanted = TABLES.get(path.name)
    if wanted is not None:
        with path.open("rb") as stream:
            header = stream.readline(200).decode("utf-8", "replace").strip()
        if header != wanted:
            raise KaggleError(f"{path.name}: the header is {header[:80]!r}", f"{wanted} is needed", "Pull again")
