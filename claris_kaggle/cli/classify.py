"""Classify image files or folders as benign or malignant, with the evidence. For research use only. Not for diagnosis.

Reads TIFF, PNG and JPEG. Images larger than 96 x 96 pixels are classified with a sliding window of that size and are
malignant if at least one window is. The networks are trained only on tissue at about 1 micrometre per pixel (10x).
The answer is "uncertain", with the reason, if folds or views lie on both sides of the threshold, if the patch has no
tissue, or if its colour and texture do not resemble the training patches.
A file that cannot be read is reported, the others are still classified, and the exit code is 1. If no file can be
read, no page and no CSV file are written.

example:
  claris classify --run runs/first patch.tif
  claris classify --run runs/first slide.png folder --html answers.html
  claris classify --run runs/first slides --recursive --fast --csv answers.csv
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from claris_kaggle.cli import options
from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import ClarisError, PatchError, format_count
from claris_kaggle.core.paths import require_suffix

if TYPE_CHECKING:
    from claris_kaggle.inference.fold_models import FoldModels
    from claris_kaggle.serving.classify import Classification

HELP = "classify image files as benign or malignant, with evidence maps"
_HEADER = ("probability", "answer", "folds", "views", "centre", "image")
_ROW = "{:<12} {:<10} {:<14} {:<14} {:<7} {}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files, or folders of image files")
    options._add_run_flag(parser)
    options._add_classify_flags(parser, max_pixels=25_000_000)
    parser.add_argument("--recursive", action="store_true", help="also search the subfolders of folders")
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="also write a CSV file with one row per image; only its column answer can be uncertain",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write an HTML page with images")
    options._add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Classify every image. Faulty images are reported, and the command then fails at its end."""
    from claris_kaggle.inference.evidence import NO_MAP
    from claris_kaggle.serving.classify import classify_files
    from claris_kaggle.serving.images import list_images
    from claris_kaggle.serving.page import render_section

    if args.html:
        require_suffix(args.html, ".html", ".htm")
    if args.csv:
        require_suffix(args.csv, ".csv")
    paths = list_images(args.images, recursive=args.recursive)
    trained, job = options._load_classifier(args)
    results: list[Mapping[str, object]] = []
    sections, faults = [], []
    for result in classify_files(trained, paths, job):
        if isinstance(result, ClarisError):
            faults.append(result)
            if len(paths) > 1:
                log_info(str(result))
            continue
        if not args.json and not results:
            print(_ROW.format(*_HEADER))
        if result.map is None and not results:
            log_info(NO_MAP)
        results.append(result.to_json())
        if args.html:
            sections.append(render_section(result, trained.config.crop))
        if not args.json:
            print(_format_row(result), flush=True)
    _write_results(args, trained, job.views, results, sections, faults)


def _format_row(result: Classification) -> str:
    """Return the table row of an image."""
    from claris_kaggle.data.arrays import THRESHOLD

    name = result.name
    if result.heat is not None:
        position = f"highest {result.left} px from the left, {result.top} px from the top"
        name += f" ({result.malignant_windows:.1%} of {result.heat.probabilities.size:,} windows malignant; {position})"
    if result.threshold != THRESHOLD:
        name += f" (threshold {result.threshold:.3f})"
    if result.reasons:
        name += f" (uncertain: {'; '.join(result.reasons)})"
    ranges = ["{:.3f} to {:.3f}".format(*ends) for ends in (result.fold_range, result.view_range)]
    share = "-" if result.centre_share is None else f"{result.centre_share:.0%}"
    return _ROW.format(f"{result.probability:.4f}", result.answer, *ranges, share, name)


def _write_results(
    args: argparse.Namespace,
    trained: FoldModels,
    views: int,
    results: list[Mapping[str, object]],
    sections: list[Mapping[str, object]],
    faults: list[ClarisError],
) -> None:
    """Write the HTML page and the CSV file, print the JSON result or the notice, and report faulty images.

    Without any answer, no file is written.

    Raises:
        ClarisError: some images, or the only one, could not be classified.
    """
    import json

    from claris_kaggle.serving.classify import NOTICE
    from claris_kaggle.serving.page import all_as_json, write_page, write_rows

    messages = [str(fault) for fault in faults]
    if args.html and results:
        write_page(args.html, sections, messages, trained)
    if args.csv and results:
        write_rows(args.csv, results)
    if args.json:
        print(json.dumps(all_as_json(trained, views, results, messages)))
    elif results:
        print(NOTICE)
    if len(results) + len(faults) == 1 and faults:
        raise faults[0]
    if faults and not results:
        raise PatchError(f"none of {len(faults)} images could be classified", "", "The messages above say why")
    if faults:
        raise PatchError(f"{len(faults)} of {format_count(len(results) + len(faults), 'image')} not classified")
