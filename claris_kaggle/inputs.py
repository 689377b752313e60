"""The inputs of a session, found by what they hold, wherever Kaggle mounts them; and parts of a run made one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from claris_kaggle.console import say
from claris_kaggle.errors import RunError, name_few
from claris_kaggle.files import explain_disk_errors, new_folder, read_json, sha256_file, write_bytes
from claris_kaggle.paths import DataDir, RunDir

MANIFEST = "claris-session.json"
# The status in a manifest that was written while its session ran on: of one that was ended early.
RUNNING = "running"
DEEPEST = 8
# Kaggle's folders of inputs by kind, and its older layout without kinds and owners.
MOUNTS: tuple[tuple[str, ...], ...] = (("datasets",), ("notebooks",), ("models",), ())
DEPTHS = {"competitions": 1, "datasets": 2, "notebooks": 2, "models": 5}
LISTED = 12
LIKELY = ("*.safetensors", "*.pth", "slides.csv", "patch_id_wsi*.csv", "folds.csv")


def walk(root: Path) -> list[tuple[Path, set[str]]]:
    """Every folder below the root with the names of its files, not going down into folders of patches."""
    found = []
    for folder, folders, files in os.walk(root, followlinks=True):
        depth = len(Path(folder).relative_to(root).parts)
        folders[:] = sorted(name for name in folders if name not in ("train", "test") and depth < DEEPEST)
        found.append((Path(folder), set(files)))
    return found


def find_data(root: Path) -> DataDir:
    """The competition's folder among the inputs below `root`: the one with its two tables.

    Raises:
        RunError: there is none.
    """
    for folder, names in walk(root):
        if {"train_labels.csv", "sample_submission.csv"} <= names:
            return DataDir(folder).require()
    found = f"{root}: no folder with train_labels.csv and sample_submission.csv"
    raise RunError(found, "the competition's files are needed", "Add the competition to the kernel's inputs")


@dataclass(frozen=True, kw_only=True)
class NamedFiles:
    """The files among the inputs that the settings name; None where they name none."""

    weights: Path | None = None
    slides: Path | None = None
    folds: Path | None = None


def find_named_files(root: Path, settings: Mapping[str, Any]) -> NamedFiles:
    """Return the files that `weights_from`, `slides_from` and `folds_from` of the settings name.

    Raises:
        RunError: one of them is not among the inputs; the message lists what is there.
    """
    names = {kind: str(settings.get(f"{kind}_from") or "") for kind in ("weights", "slides", "folds")}
    return NamedFiles(**{kind: find_named(root, name, f"--{kind}-from") for kind, name in names.items() if name})


def find_named(root: Path, name: str, flag: str) -> Path:
    """Return the file that a flag names as owner/dataset/file, wherever Kaggle mounts that input.

    Kaggle mounts a dataset as `datasets/<owner>/<slug>` or, in its older layout, as `<slug>`; the outputs of kernels
    (`notebooks/...`) and models (`models/...`) likewise.

    Raises:
        RunError: the input, or the file in it, is not there; the message lists what is there.
    """
    *folders, file = name.split("/")
    for kind in MOUNTS:
        path = go_down(root, [*kind, *(folders if kind else folders[1:])]) / file
        if path.is_file():
            return path
    owner, slug = folders[:2]
    for kind in MOUNTS:
        folder = go_down(root, [*kind, *([owner] if kind else []), slug])
        if folder.is_dir():
            there = sorted((one / name).relative_to(folder).as_posix() for one, names in walk(folder) for name in names)
            found = f"{flag} {name}: there is no such file in {owner}/{slug}"
            raise RunError(found, f"it holds {list_some(there)}", f"Name one of these with {flag}")
    found = f"{flag} {name}: {owner}/{slug} is not among the inputs of this session"
    raise RunError(found, f"these are: {list_some(list_inputs(root))}", "Check the name, and who may read it")


def go_down(folder: Path, names: Sequence[str]) -> Path:
    """Return the folder below; capitals do not count, as in Kaggle's references."""
    for name in names:
        same = [one for one in folder.iterdir() if one.name.lower() == name.lower()] if folder.is_dir() else []
        folder = same[0] if len(same) == 1 else folder / name
    return folder


def list_inputs(root: Path) -> list[str]:
    """Return the inputs of a session as Kaggle mounts them: datasets, competitions, models, outputs of kernels."""
    found: list[Path] = []
    for one in root.iterdir():
        depth = DEPTHS.get(one.name, 0)
        found += list(one.glob("/".join("*" * depth))) if depth else [one]
    return sorted(path.relative_to(root).as_posix() for path in found)


def list_some(names: Sequence[str]) -> str:
    """Return the first names, and the number of the others."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more:,} more" if more > 0 else "") if names else "no files"


def find_unnamed(root: Path, data: DataDir, named: NamedFiles) -> list[Path]:
    """Return the weights, slide maps and fold files among the inputs that no setting names, and that are not used."""
    outputs = [data.root, *(folder for folder, names in walk(root) if MANIFEST in names)]
    used = (named.weights, named.slides, named.folds)
    return [
        folder / name
        for folder, names in walk(root)
        for name in sorted(names)
        if any(fnmatch(name, pattern) for pattern in LIKELY) and folder / name not in used
        if not any(folder.is_relative_to(output) for output in outputs)
    ]


def find_runs(root: Path, aside: Path) -> list[RunDir]:
    """Return the runs of earlier sessions among the inputs, every file verified.

    Args:
        aside: a folder for the finished folds of sessions that were ended early.
    Raises:
        RunError: a file is not the one that the session wrote.
    """
    found: list[RunDir] = []
    for folder, names in walk(root):
        if MANIFEST in names:
            manifest = read_json(folder / MANIFEST)
            if manifest.get("status") == RUNNING:
                found.append(copy_finished(folder, manifest, aside / str(len(found))))
            else:
                check_manifest(folder, manifest)
                found.append(RunDir(folder / "run"))
    return found


def copy_finished(folder: Path, manifest: dict[str, Any], target: Path) -> RunDir:
    """Copy what a session that was ended early leaves: its verified folds, and whole checkpoints of the others.

    Raises:
        RunError: the config or the fold file is not the one that the session wrote.
        DiskError: a file cannot be read or written.
    """
    from claris_kaggle.checkpoint import is_whole_checkpoint

    files: dict[str, Any] = manifest["files"]
    broken = {Path(name).parent.name for name, facts in files.items() if not is_whole(folder / name, facts)}
    common = {name: facts for name, facts in files.items() if not Path(name).parent.name.startswith("fold")}
    check_manifest(folder, {"files": common})
    if broken:
        say(f"{folder}: {', '.join(sorted(broken))} left out, as not whole")
    whole = [name for name in files if Path(name).parent.name not in broken]
    run = RunDir(target / "run")
    with explain_disk_errors(folder):
        for name in whole:
            write_bytes(target / name, (folder / name).read_bytes())
        for number, fold in RunDir(folder / "run").fold_dirs().items():
            if not run.fold(number).seal.exists() and is_whole_checkpoint(fold.checkpoint):
                write_bytes(run.fold(number).checkpoint, fold.checkpoint.read_bytes())
    return run


def check_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Refuse files that are missing or not those of the manifest.

    Raises:
        RunError: naming the first of them.
    """
    wrong = [name for name, facts in manifest.get("files", {}).items() if not is_whole(folder / name, facts)]
    if wrong:
        found = f"{folder}: {len(wrong)} files are not those of its manifest ({name_few(sorted(wrong))})"
        raise RunError(found, "", "Run the kernel that wrote them again")


def is_whole(path: Path, facts: dict[str, Any]) -> bool:
    """Whether the file is there with the size and SHA-256 that a manifest gives."""
    return path.is_file() and path.stat().st_size == facts["bytes"] and sha256_file(path) == facts["sha256"]


def is_same_config(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return True if the configs agree; the same starting weights may have been mounted in other places."""
    same_weights = bool(one.get("weights_sha256")) and one["weights_sha256"] == other.get("weights_sha256")
    return {**one, "weights": other.get("weights")} == other if same_weights else one == other


def merge_runs(sources: Sequence[RunDir], target: RunDir) -> None:
    """Copy the folds of several parts of one run into one folder, each whole; a finished one before an unfinished one.

    Raises:
        RunError: the parts have different configs or folds.
        DiskError: a file cannot be read or written.
    """
    with explain_disk_errors(target.root):
        for source in (one for one in sources if one.config.exists()):
            for path in (source.config, source.folds, source.folds.with_suffix(".json")):
                copy = target.root / path.name
                if copy.exists() and path.suffix == ".csv" and copy.read_bytes() != path.read_bytes():
                    raise RunError(f"{path}: other folds than {copy}", "", "Merge the parts of one run only")
                if copy.exists() and path == source.config and not is_same_config(read_json(copy), read_json(path)):
                    raise RunError(f"{path}: another config than {copy}", "", "Merge the parts of one run only")
                write_bytes(copy, path.read_bytes())
            for folder in sorted(source.root.glob("fold[0-9]*")):
                place = target.root / folder.name
                if not (place / "model.json").exists():
                    shutil.rmtree(place, ignore_errors=True)
                    with new_folder(place) as aside:  # a half copied fold could pass for a finished one
                        shutil.copytree(folder, aside, dirs_exist_ok=True)
