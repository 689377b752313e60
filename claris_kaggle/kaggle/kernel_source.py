"""Compose a kernel script for Kaggle that contains the library and the settings of its job."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from claris_kaggle.core.errors import UsageError
from claris_kaggle.core.files import read_json, write_json, write_text
from claris_kaggle.core.time_limit import parse_duration
from claris_kaggle.kaggle.session import _JOBS
from claris_kaggle.kaggle.session_inputs import _FileSettings
from claris_kaggle.version import __version__

_PACKAGE = Path(__file__).parent.parent
# The folder of templates: beside the package in a clone, inside it in an installation.
_TEMPLATES_FOLDER, _PACKAGED_TEMPLATES = "kernels", "kernel_scripts"
_NOT_BUNDLED = {"__pycache__", _PACKAGED_TEMPLATES}
# Kaggle accepts sources below one megabyte, and the library needs 0.6 of that. So the script contains the library, and
# script and library always have the same version.
_MAX_SOURCE_BYTES = 1_000_000
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class KernelSettings(_FileSettings):
    """The settings of a kernel.

    Attributes:
        folds: fold numbers; empty for all.
        flags: flags for `claris train`.
        time_limit: of the session, such as 11h20m; empty for the template's own.
        inputs: kernels (owner/slug) whose output is an input.
        datasets, models: further inputs.
        weights_from: starting weights as owner/dataset/file, or a file of one of the other inputs. An input that is
            not among those is attached as a dataset. `slides_from`, `folds_from` and `extra_from` likewise.
    """

    folds: tuple[int, ...] = ()
    flags: tuple[str, ...] = ()
    time_limit: str = ""
    inputs: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    models: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return the settings as they read back from JSON."""
        values = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def require_references(references: Sequence[str], label: str, parts: Sequence[int], example: str) -> None:
    """Check the form of input references. Kaggle runs a kernel without the inputs that it does not find.

    Args:
        references: of datasets, kernels or models.
        label: names their origin in messages.
        parts: accepted numbers of names in a reference, joined by slashes.
        example: of a reference.

    Raises:
        UsageError: a reference has another form; the message names the first.
    """
    for reference in references:
        if len(reference.split("/")) not in parts or not all(reference.split("/")):
            raise UsageError(f"{label} {reference}", f"expected a name such as {example}")


def require_file_name(name: str, label: str) -> None:
    """Check the form of the name of an input file.

    Args:
        name: of the file.
        label: names its origin in messages.
    Raises:
        UsageError: it is not owner/dataset/file.
    """
    parts = name.split("/")
    if len(parts) < 3 or not all(parts) or {".", ".."} & {*parts}:
        raise UsageError(f"{label} {name}", "expected a name such as owner/dataset/file")


def _find_templates() -> Path:
    """Return the folder of the kernels' scripts and metadata.

    Raises:
        UsageError: the package was installed without them.
    """
    for folder in (_PACKAGE / _PACKAGED_TEMPLATES, _PACKAGE.parent / _TEMPLATES_FOLDER):
        if (folder / _JOBS[0] / f"{_JOBS[0]}.py").exists():
            return folder
    raise UsageError(f"{_PACKAGE}: it has no kernel scripts", "", "Install the package again, or run it from a clone")


def _tracked_files() -> list[Path]:
    """Return the library's files, sorted: those that git tracks, or all files of an installed package."""
    listed = _run_git("ls-files", "-z", "--", ".")
    if listed:
        paths = [_PACKAGE / name for name in listed.split("\0") if name]
    else:
        paths = [path for path in _PACKAGE.rglob("*") if not _NOT_BUNDLED & {*path.relative_to(_PACKAGE).parts}]
    return sorted(path for path in paths if path.is_file())


def _run_git(*arguments: str) -> str:
    """Return the output of git in the package's folder; an empty string without git or a repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=_PACKAGE, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip("\n") if done.returncode == 0 else ""


def commit_name() -> str:
    """Return the library's commit, with `+changes` if files differ from it; for an installed package, its version."""
    if not _run_git("ls-files", "--", "."):  # installed: a surrounding repository is another project's
        return f"v{__version__}"
    changed = _run_git("status", "--porcelain", "--untracked-files=no", "--", ".")
    return _run_git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")


def _build_bundle() -> bytes:
    """Return the library as a zip file. The same files give the same bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in _tracked_files():
            name = f"{_PACKAGE.name}/{path.relative_to(_PACKAGE).as_posix()}"
            entry = zipfile.ZipInfo(name, _ZIP_DATE)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED, 9)
    return stream.getvalue()


def compose_kernel(job: str, folder: Path, settings: KernelSettings, *, user: str, slug: str, push_token: str) -> str:
    """Write a script and its metadata to the folder, as `kaggle kernels push -p` takes it, and return its owner/slug.

    Args:
        job: train, predict, ensemble or probe; selects the template.
        folder: folder to write to.
        settings: settings of the kernel.
        user: owner of the kernel.
        slug: 5 to 50 lower-case letters and digits, joined by hyphens.
        push_token: unique text that identifies this push.
    Raises:
        UsageError: the job, the slug or a setting is invalid, or the folder has another kernel.
    """
    if job not in _JOBS:
        raise UsageError(f"unknown kernel {job!r}", f"it must be one of {', '.join(_JOBS)}")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug) or not 5 <= len(slug) <= 50:
        raise UsageError(f"invalid kernel name {slug!r}", "expected 5 to 50 lower-case letters, digits and -")
    template = _find_templates() / job
    _require_own_kernel(folder, f"{job}.py")
    values: dict[str, object] = {"folds": list(settings.folds), "flags": list(settings.flags), "mark": push_token}
    values |= {"commit": commit_name(), **settings.named_files}
    if settings.time_limit:
        values["time_limit"] = settings.time_limit
    metadata = read_json(template / "kernel-metadata.json")
    # Kaggle derives the slug from the title, so the title is the slug with spaces.
    metadata |= {"id": f"{user}/{slug}", "title": slug.replace("-", " "), "kernel_sources": list(settings.inputs)}
    named = [*filter(None, settings.named_files.values())]
    attached = _attach_named(named, settings.inputs, settings.datasets, settings.models)
    metadata |= {"dataset_sources": attached, "model_sources": list(settings.models)}
    write_text(folder / f"{job}.py", _fill_script((template / f"{job}.py").read_text("utf-8"), values))
    write_json(folder / "kernel-metadata.json", metadata)
    return f"{user}/{slug}"


def _require_own_kernel(folder: Path, script: str) -> None:
    """Reject a folder whose script or metadata are not of a kernel of this library, of any version.

    Raises:
        UsageError: names the file.
    """
    marks = {script: ["BUNDLE"], "kernel-metadata.json": [f'"{job}.py"' for job in _JOBS]}
    for name, markers in marks.items():
        path = folder / name
        if path.exists() and not any(mark in path.read_text("utf-8", errors="replace") for mark in markers):
            raise UsageError(f"{path}: belongs to another kernel", "nothing was changed", "Give another folder")


def _attach_named(
    names: Sequence[str], inputs: Sequence[str], datasets: Sequence[str], models: Sequence[str]
) -> list[str]:
    """Return the datasets to attach: the given ones, and those of named files that no other input contains.

    >>> _attach_named(["me/w/a.pth", "me/s/b.csv", "me/k/run/folds.csv"], ["me/k"], ["me/s/3"], [])
    ['me/s/3', 'me/w']
    """
    attached = list(datasets)
    for name in names:
        covered = [*("/".join(source.split("/")[:2]) for source in (*inputs, *attached)), *models]
        if not any(name.lower().startswith(f"{source.lower()}/") for source in covered):
            attached.append("/".join(name.split("/")[:2]))
    return attached


def _fill_script(source: str, settings: Mapping[str, object]) -> str:
    """Return the template with the library and these settings, which override its own.

    Raises:
        UsageError: the time limit is invalid, or the script is too large for Kaggle.
    """
    defaults = json.loads(re.search(r"^SETTINGS = (.*)$", source, re.MULTILINE).group(1))  # type: ignore[union-attr]
    settings = {**defaults, **settings}
    parse_duration(str(settings["time_limit"]))
    bundle = base64.b64encode(_build_bundle()).decode()
    source = re.sub(r"^SETTINGS = .*$", lambda _: f"SETTINGS = {settings!r}", source, flags=re.MULTILINE)
    source = re.sub(r'^BUNDLE = ""$', lambda _: f'BUNDLE = "{bundle}"', source, flags=re.MULTILINE)
    if len(source) >= _MAX_SOURCE_BYTES:
        raise UsageError(f"the script is {len(source):,} bytes", f"Kaggle accepts fewer than {_MAX_SOURCE_BYTES:,}")
    return source
