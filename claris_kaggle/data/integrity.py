"""Checks of the competition's folder."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from claris_kaggle.core.console import Progress, log_info
from claris_kaggle.core.errors import PatchError, format_count, name_few
from claris_kaggle.core.paths import DataDir
from claris_kaggle.data import tables
from claris_kaggle.data.arrays import Labels
from claris_kaggle.data.folder_layout import _explain_layout, _explain_surplus
from claris_kaggle.data.pack import _list_patches
from claris_kaggle.data.parallel import _map_chunks
from claris_kaggle.data.patches import patch_id, read_patch


class _FileCheck(NamedTuple):
    """The result of one file: the SHA-1 of its pixels or the error, and the colour of a single-colour patch."""

    name: str
    digest: str
    fault: str
    flat: str


@dataclass
class Findings:
    """The findings in a competition folder.

    Attributes:
        facts: counts and shares, by part of the folder.
        faults: errors to fix before training, one text each.
        notes: remarks that need no action, one text each.
    """

    facts: dict[str, dict[str, int | float]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        """Return one JSON object; `ok` is True without faults."""
        return {"ok": not self.faults, **self.facts, "faults": self.faults, "notes": self.notes}


def check_data(data: DataDir | Path | str, slides: Path | None = None, jobs: int = 0) -> Findings:
    """Check the competition's folder: tables, files, pixels, duplicates and slides.

    Args:
        data: the competition's folder.
        slides: a CSV with the slide of each training id; None skips the check of slides.
        jobs: number of reading processes; 0 uses one per core if there are many files.
    Returns:
        Counts, faults and notes.
    Raises:
        TableError: a table has no readable ids.
    """
    findings, data = Findings(), DataDir.at(data)
    ids, labels = tables.read_labels(data.labels)
    test_ids = tables.read_sample(data.sample)
    malignant = int(labels.sum())
    findings.facts["labels"] = {
        "patches": len(ids),
        "benign": len(ids) - malignant,
        "malignant": malignant,
        "malignant_share": malignant / len(ids),
    }
    in_both = sorted(set(ids) & set(test_ids))
    if in_both:
        findings.faults.append(f"{format_count(len(in_both), 'id')} in train and in test ({name_few(in_both)})")
    checks = [
        check
        for split, names in (("train", ids), ("test", test_ids))
        for check in _check_split(data, split, names, findings, jobs)
    ]
    _find_duplicates(checks, dict(zip(ids, labels.tolist(), strict=True)), findings)
    _find_flat(checks, findings)
    if slides is not None:
        _check_slides(slides, ids, labels, findings)
    return findings


def _check_split(data: DataDir, split: str, ids: Sequence[str], findings: Findings, jobs: int) -> list[_FileCheck]:
    """Read every file of the split that has a row. Adds missing, surplus and damaged files to the findings."""
    source = data.patches(split)
    present = _list_patches(source)
    missing, surplus = sorted(set(ids) - present), sorted(present - set(ids))
    table = data.labels.name if split == "train" else data.sample.name
    if missing:
        findings.faults.append(f"{split}: {format_count(len(missing), 'file')} missing ({name_few(missing)})")
        layout = _explain_layout(source, missing)
        findings.faults += [f"{split}: {layout}"] if layout else []
    if surplus:
        findings.faults.append(
            f"{split}: {format_count(len(surplus), 'file')} without a row in {table} ({name_few(surplus)}). "
            f"{_explain_surplus(surplus, missing)}".rstrip(". ")
        )
    names = sorted(set(ids) & present)

    with Progress(f"check {split}", len(names)) as progress:
        parts = _map_chunks(functools.partial(_check_files, source), names, jobs, progress)
        checks = [check for part in parts for check in part]
        log_info(f"{split}: checked {len(names):,} files at {progress.rate():,.0f} per second")
    unreadable = [check for check in checks if check.fault]
    mismatched = [check.name for check in checks if check.digest and check.digest != check.name]
    findings.faults += [check.fault for check in unreadable]
    if mismatched:
        what = f"{format_count(len(mismatched), 'file')} whose pixels do not match their id"
        findings.faults.append(f"{split}: {what} ({name_few(mismatched)})")
    findings.facts[split] = {
        "rows": len(ids),
        "files": len(present),
        "missing": len(missing),
        "surplus": len(surplus),
        "unreadable": len(unreadable),
        "id_mismatches": len(mismatched),
    }
    return checks


def _check_files(source: Path, start: int, names: Sequence[str]) -> list[_FileCheck]:
    """Return the result for each of these files."""
    return [_check_file(source, name) for name in names]


def _check_file(source: Path, name: str) -> _FileCheck:
    """Return the result for one file; a damaged file raises no error."""
    try:
        pixels = read_patch(f"{source}/{name}.tif")
    except PatchError as error:
        return _FileCheck(name, "", str(error), "")
    low, high = int(pixels.min()), int(pixels.max())
    flat = {0: "black", 255: "white"}.get(low, f"grey {low}") if low == high else ""
    return _FileCheck(name, patch_id(pixels), "", flat)


def _find_duplicates(checks: Sequence[_FileCheck], label_of: dict[str, int], findings: Findings) -> None:
    """Add ids with equal pixels to the findings: a fault if their labels differ, else a note."""
    same: dict[str, list[str]] = defaultdict(list)
    for check in checks:
        if check.digest:
            same[check.digest].append(check.name)
    groups = [sorted(names) for names in same.values() if len(names) > 1]
    findings.facts["duplicates"] = {"groups": len(groups), "patches": sum(map(len, groups))}
    for names in sorted(groups):
        labels = {label_of[name] for name in names if name in label_of}
        if len(labels) > 1:
            findings.faults.append(f"the same pixels with labels 0 and 1: {name_few(names)}")
        else:
            findings.notes.append(f"exact duplicates, kept in one fold: {name_few(names)}")


def _find_flat(checks: Sequence[_FileCheck], findings: Findings) -> None:
    """Add single-colour patches to the notes. The competition has one black and one white patch."""
    for check in checks:
        if check.flat:
            findings.notes.append(f"all {check.flat}: {check.name}")
    flats = Counter(check.flat.split(" ")[0] for check in checks if check.flat)
    findings.facts["flat"] = {"black": flats["black"], "white": flats["white"], "grey": flats["grey"]}


def _check_slides(path: Path, ids: Sequence[str], labels: Labels, findings: Findings) -> None:
    """Add the number of slides and the distribution of patches over slides to the facts.

    Raises:
        TableError: the slide table has an error, or a training id has no slide.
    """
    slides = tables.number_texts(tables.read_slides(path, ids))
    sizes = np.bincount(slides)
    findings.facts["slides"] = {
        "slides": len(sizes),
        "with_tumour": len(np.unique(slides[labels == 1])),
        "smallest": int(sizes.min()),
        "median": float(np.median(sizes)),
        "largest": int(sizes.max()),
    }
