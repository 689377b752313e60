"""Classify image files or folders as benign or malignant, with the evidence. For research use only. Not for diagnosis.

Reads TIFF, PNG and JPEG. Images larger than 96 x 96 pixels are classified with a sliding window of that size and are
malignant if at least one window is. The networks are trained only on tissue at about 1 micrometre per pixel (10x).
The answer is "uncertain", with the reason, if folds or views lie on both sides of the threshold, if the patch has no
tissue, if its colour and texture do not resemble the training patches, or if more than a tenth of the windows of a
larger image do not.
A file that cannot be read is reported, the others are still classified, and the exit code is 1. The file has a row in
the CSV file, with the message in the column error. If no file can be read, no page and no CSV file are written.
With one fold or one view there is no range, shown as "-".

example:
  claris classify --run runs/first patch.tif
  claris classify --run runs/first slide.png folder --html answers.html
  claris classify --run runs/first slides --recursive --fast --csv answers.csv
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from claris_kaggle.cli import options
from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import ClarisError, PatchError, escape_unprintable, format_count
from claris_kaggle.core.paths import require_suffix

if TYPE_CHECKING:
    from claris_kaggle.inference.fold_models import FoldModels
    from claris_kaggle.serving.classify import Classification

HELP = "classify image files as benign or malignant, with evidence maps"
_HEADER = ("probability", "answer", "folds", "views", "centre", "image")
_ROW = "{:<12} {:<10} {:<14} {:<14} {:<7} {}"
_MAX_REPEATED = 3  # the most images that the suggested command repeats


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
        help="also write a CSV file with one row per image, also for images that cannot be read; only its column "
        "answer can be uncertain",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write an HTML page with images")
    options._add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Classify every image. Faulty images are reported, and the command then fails at its end."""
    from claris_kaggle.serving.classify import classify_files
    from claris_kaggle.serving.images import list_images
    from claris_kaggle.serving.page import render_section

    if args.html:
        require_suffix(args.html, ".html", ".htm")
    if args.csv:
        require_suffix(args.csv, ".csv")
    paths = list_images(args.images, recursive=args.recursive)
    trained, job = options._load_classifier(args)
    rows: list[Mapping[str, object]] = []
    sections, faults = [], []
    for path, result in zip(paths, classify_files(trained, paths, job), strict=True):
        if isinstance(result, ClarisError):
            faults.append(result)
            rows.append({"name": escape_unprintable(path), "error": str(result)})
            if len(paths) > 1:
                log_info(str(result))
            continue
        if len(rows) == len(faults):
            _introduce_results(result, table=not args.json)
        rows.append(result.to_json())
        if args.html:
            sections.append(render_section(result, trained.config.crop))
        if not args.json:
            print(_format_row(result), flush=True)
    _write_results(args, trained, job.views, rows, sections, faults)


def _introduce_results(first: Classification, *, table: bool) -> None:
    """Print the header of the table, and log what all results lack: evidence maps, or a range over folds or views."""
    from claris_kaggle.inference.evidence import NO_MAP
    from claris_kaggle.serving.classify import explain_missing_range

    if first.map is None:
        log_info(NO_MAP)
    if not table:
        return
    if remark := explain_missing_range(len(first.fold_probabilities), len(first.view_probabilities)):
        log_info(remark)
    print(_ROW.format(*_HEADER))


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
    both = (result.fold_range, result.view_range)
    ranges = ["-" if ends is None else "{:.3f} to {:.3f}".format(*ends) for ends in both]
    share = "-" if result.centre_share is None else f"{result.centre_share:.0%}"
    return _ROW.format(f"{result.probability:.4f}", result.answer, *ranges, share, name)


def _write_results(
    args: argparse.Namespace,
    trained: FoldModels,
    views: int,
    rows: Sequence[Mapping[str, object]],
    sections: Sequence[Mapping[str, object]],
    faults: Sequence[ClarisError],
) -> None:
    """Write the HTML page and the CSV file, print the JSON result or the notice, and report faulty images.

    Without any answer, no file is written. Arguments as in `write_rows` and `write_page`.

    Raises:
        ClarisError: some images, or the only one, could not be classified.
    """
    import json

    from claris_kaggle.serving.classify import NOTICE
    from claris_kaggle.serving.page import all_as_json, write_page, write_rows

    messages, results = [str(fault) for fault in faults], [row for row in rows if "error" not in row]
    if args.html and results:
        write_page(args.html, sections, messages, trained)
    if args.csv and results:
        write_rows(args.csv, rows)
    if args.json:
        print(json.dumps(all_as_json(trained, views, results, messages)))
    elif results:
        print(NOTICE)
    if len(rows) == 1 and faults:
        raise faults[0]
    if faults and not results:
        raise PatchError(f"none of {len(faults)} images could be classified", "", "The messages above say why")
    if faults:
        raise PatchError(f"{len(faults)} of {format_count(len(rows), 'image')} not classified")
    if not args.json:
        _suggest_page(args)


def _suggest_page(args: argparse.Namespace) -> None:
    """Log the command for a page with evidence maps: the same one with --html, or the local web page."""
    if args.html or len(args.images) > _MAX_REPEATED:
        options._suggest_next("serve", "--run", args.run)
    else:
        options._suggest_next(*args.typed, "--html", "answers.html")
