"""Kernels: the library packed into one thin script, pushed, watched, and their output fetched and proved."""

from __future__ import annotations

import base64
import io
import json
import re
import secrets
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from claris_kaggle import __version__, kaggle_api
from claris_kaggle.console import Progress
from claris_kaggle.errors import KaggleError, UsageError, name_few
from claris_kaggle.files import explain_disk_errors, read_json, sha256_file, write_json, write_text
from claris_kaggle.session import JOBS, MANIFEST
from claris_kaggle.stopping import parse_duration

PACKAGE = Path(__file__).parent
TEMPLATES = PACKAGE.parent / "kernels"
# Kaggle takes a source of less than a megabyte; the library needs a tenth of that, so it travels in
# the script itself: one thing to push, nothing to wait for, and the version is the script's own.
LARGEST_SOURCE = 1_000_000
LARGEST_OUTPUT = 2 << 30
EPOCH = (1980, 1, 1, 0, 0, 0)
ENDED = ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED")
TABLES = {"oof.csv": "id,label,fold,probability", "test.csv": "id,probability", "submission.csv": "id,label"}
SESSION_SLACK = 1800


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


def tracked_files() -> list[Path]:
    """The library's files: those that git tracks, or all of an installed package; sorted."""
    listed = git("ls-files", "-z", "--", ".")
    if listed:
        paths = [PACKAGE / name for name in listed.split("\0") if name]
    else:
        paths = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".jinja") or path.name == "py.typed"]
    return sorted(path for path in paths if path.is_file())


def git(*arguments: str) -> str:
    """What git says about the package's folder; an empty text where it is not in a repository."""
    done = subprocess.run(["git", *arguments], cwd=PACKAGE, capture_output=True, text=True, check=False)
    return done.stdout.strip("\n") if done.returncode == 0 else ""


def commit_name() -> str:
    """The commit that the library is at, with `+changes` when files differ from it; else its version."""
    commit = git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return f"v{__version__}"
    return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no", "--", ".") else "")


def build_bundle() -> bytes:
    """The library as a zip, the same bytes for the same files."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in tracked_files():
            name = f"{PACKAGE.name}/{path.relative_to(PACKAGE).as_posix()}"
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED, 9)
    return stream.getvalue()


def compose_kernel(
    job: str,
    folder: Path,
    *,
    user: str,
    slug: str,
    mark: str,
    folds: Sequence[int] = (),
    flags: Sequence[str] = (),
    time_limit: str = "",
    inputs: Sequence[str] = (),
    datasets: Sequence[str] = (),
    models: Sequence[str] = (),
    templates: Path = TEMPLATES,
) -> str:
    """Write the script and its metadata to the folder, ready for `kaggle kernels push -p`, and return its owner/slug.

    Args:
        job: train, predict or ensemble: the folder of the template.
        folds: fold numbers; empty for all.
        flags: passed on to `claris train`.
        inputs: kernels (owner/slug) whose output is an input; datasets and models likewise.
    Raises:
        UsageError: the name or the settings cannot be.
    """
    if job not in JOBS:
        raise UsageError(f"a kernel of the name {job!r}", f"it must be one of {', '.join(JOBS)}")
    template = templates / job / f"{job}.py"
    if not template.exists():
        raise UsageError(f"{template}: no such file", "the kernels of a clone are needed", "Run it from a clone")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug) or not 5 <= len(slug) <= 50:
        raise UsageError(f"a kernel's name {slug!r}", "5 to 50 small letters and digits, joined by -, are needed")
    source = template.read_text("utf-8")
    settings = json.loads(re.search(r"^SETTINGS = (.*)$", source, re.M).group(1))  # type: ignore[union-attr]
    settings |= {"folds": list(folds), "flags": list(flags), "mark": mark, "commit": commit_name()}
    settings["time_limit"] = time_limit or settings["time_limit"]
    parse_duration(settings["time_limit"])
    bundle = base64.b64encode(build_bundle()).decode()
    source = re.sub(r"^SETTINGS = .*$", lambda _: f"SETTINGS = {settings!r}", source, flags=re.M)
    source = re.sub(r'^BUNDLE = ""$', lambda _: f'BUNDLE = "{bundle}"', source, flags=re.M)
    if len(source) >= LARGEST_SOURCE:
        raise UsageError(f"the script is {len(source):,} bytes", f"Kaggle takes fewer than {LARGEST_SOURCE:,}")
    metadata = read_json(templates / job / "kernel-metadata.json")
    # The slug follows from the title, so the title is the slug in words.
    metadata |= {"id": f"{user}/{slug}", "title": slug.replace("-", " "), "kernel_sources": list(inputs)}
    metadata |= {"dataset_sources": list(datasets), "model_sources": list(models)}
    write_text(folder / f"{job}.py", source)
    write_json(folder / "kernel-metadata.json", metadata)
    return f"{user}/{slug}"


def new_mark(name: str) -> str:
    """A text that no other push or submission has."""
    return f"{name}-{secrets.token_hex(6)}"


def push_kernel(folder: Path, mark: str) -> Kernel:
    """Push the composed kernel.

    Raises:
        KaggleError: refused.
    """
    ref = str(read_json(folder / "kernel-metadata.json")["id"])
    script = (folder / str(read_json(folder / "kernel-metadata.json")["code_file"])).read_text("utf-8")
    limit = re.search(r"'time_limit': '([^']+)'", script)
    timeout = int(parse_duration(limit.group(1)) + SESSION_SLACK) if limit else 0
    return Kernel(ref=ref, version=kaggle_api.push(folder, ref, mark, timeout=timeout), mark=mark)


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
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=out) as aside:
            manifest = fetch_manifest(kernel, addresses, Path(aside))
            fetch_files(kernel, manifest, addresses, Path(aside), out)
            # The manifest last: where it is, everything that it names is there.
            (Path(aside) / MANIFEST).replace(out / MANIFEST)
    return manifest


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
    needed = {name: facts for name, facts in files.items() if not is_file(out / name, facts)}
    with Progress(f"pull {kernel.ref}", len(needed), "files") as progress:
        for name, facts in needed.items():
            path = aside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            fetch(addresses[name], path, limit=min(int(facts["bytes"]), LARGEST_OUTPUT))
            if not is_file(path, facts):
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


def is_file(path: Path, facts: dict[str, Any]) -> bool:
    """Whether the file is there with this size and SHA-256."""
    return path.is_file() and path.stat().st_size == facts["bytes"] and sha256_file(path) == facts["sha256"]


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


def remember(path: Path, job: str, kernel: Kernel) -> None:
    """Add the push to the record of pushes."""
    known = read_json(path)["kernels"] if path.exists() else []
    entry = {"job": job, "ref": kernel.ref, "version": kernel.version, "mark": kernel.mark}
    write_json(path, {"kernels": [*known, entry]})


def recall(path: Path, ref: str = "") -> Kernel:
    """The newest push in the record, or the newest of this kernel.

    Raises:
        UsageError: there is none.
    """
    known: Iterable[dict[str, Any]] = read_json(path)["kernels"] if path.exists() else []
    fitting = [one for one in known if ref in ("", one["ref"], one["ref"].split("/")[-1])]
    if not fitting:
        what = f"no push of {ref}" if ref else "no push"
        raise UsageError(f"{path}: {what} is recorded", "", "Push first: claris push train")
    newest = fitting[-1]
    return Kernel(ref=newest["ref"], version=newest["version"], mark=newest["mark"])
