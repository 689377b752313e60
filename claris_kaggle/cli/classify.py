"""Benign or malignant for image files or folders, with the evidence. A research tool and no diagnosis.

TIFF, PNG and JPEG. An image of 96 x 96 pixels is one patch; over a larger one a window of that size slides, and it
is called malignant when one window is. The networks know tissue at about 1 micrometre a pixel (10x) and nothing
else. A faulty file is named, the others are done, and the exit code is then 1.

example:
  claris classify --run runs/first patch.tif
  claris classify --run runs/first slide.png folder --html answers.html
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claris_kaggle.cli import options
from claris_kaggle.console import say
from claris_kaggle.errors import ClarisError, PatchError, UsageError, count

if TYPE_CHECKING:
    from claris_kaggle.classify import Classification
    from claris_kaggle.trained import Trained

HELP = "benign or malignant for image files, with the evidence"
HEADER = ("probability", "verdict", "folds", "views", "centre", "image")
ROW = "{:<12} {:<10} {:<14} {:<14} {:<7} {}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="files, or folders of them")
    options.add_run(parser)
    parser.add_argument("--views", type=int, default=8, metavar="V", help="views to average: 1, 4 or 8 [8]")
    parser.add_argument(
        "--threshold", default="0.5", metavar="P", help="malignant from there on: a number, or oof: the run's own [0.5]"
    )
    parser.add_argument("--stride", type=int, default=32, metavar="N", help="pixels from window to window [32]")
    parser.add_argument(
        "--max-pixels", type=int, default=25_000_000, metavar="N", help="largest width times height [25000000]"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with pictures as well")
    options.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Classify every image; those that are faulty are named, and make the verb fail at its end."""
    from claris_kaggle.classify import ClassifyJob, classify_files
    from claris_kaggle.classify_page import require_page_name, section
    from claris_kaggle.images import list_images
    from claris_kaggle.trained import load_trained

    job = ClassifyJob(views=args.views, stride=args.stride, max_pixels=args.max_pixels)
    if args.html:
        require_page_name(args.html)
    paths = list_images(args.images)
    trained = load_trained(args.run)
    job = replace(job, threshold=choose_threshold(args.threshold, trained))
    answers, sections, faults = [], [], []
    if not args.json:
        print(ROW.format(*HEADER))
    for found in classify_files(trained, paths, job):
        if isinstance(found, ClarisError):
            faults.append(found)
            if len(paths) > 1:
                say(str(found))
            continue
        answers.append(found.to_json())
        if args.html:
            sections.append(section(found, trained.config.crop))
        if not args.json:
            print(line(found), flush=True)
    finish(args, trained, answers, sections, faults)


def choose_threshold(text: str, trained: Trained) -> float:
    """The number, or the threshold that was the best on the run's own OOF predictions.

    Raises:
        UsageError: no number, or `oof` for a run that is not predicted.
    """
    if text != "oof":
        try:
            return float(text)
        except ValueError:
            raise UsageError(f"--threshold is {text!r}", "a number between 0 and 1, or oof, is needed") from None
    found = trained.figure("best_threshold")
    if found is None:
        raise UsageError(f"--threshold is oof, and {trained.name} has no OOF predictions", "", "Run claris predict")
    return found


def line(found: Classification) -> str:
    """One image in the table."""
    name = found.name
    if found.heat is not None:
        place = f"highest {found.left} px from the left, {found.top} px from the top"
        name += f" ({found.malignant_windows:.1%} of {found.heat.probabilities.size:,} windows malignant; {place})"
    ranges = ["{:.3f} to {:.3f}".format(*ends) for ends in (found.fold_range, found.view_range)]
    share = "-" if found.centre_share is None else f"{found.centre_share:.0%}"
    return ROW.format(f"{found.probability:.4f}", found.verdict, *ranges, share, name)


def finish(
    args: argparse.Namespace,
    trained: Trained,
    answers: list[dict[str, Any]],
    sections: list[dict[str, Any]],
    faults: list[ClarisError],
) -> None:
    """Print or write what is shown together.

    Raises:
        ClarisError: some images, or the only one, could not be classified.
    """
    import json

    from claris_kaggle.classify import NOTICE
    from claris_kaggle.classify_page import write_page

    messages = [str(fault) for fault in faults]
    if args.html:
        write_page(args.html, sections, messages, trained)
    if args.json:
        run = {"name": trained.name, "model": trained.config.model, "folds": list(trained.models), "views": args.views}
        about = {"notice": NOTICE, "run": {**run, "oof_auc": trained.figure("auc")}}
        print(json.dumps({**about, "images": answers, "faults": messages}))
    else:
        print(NOTICE)
    if len(answers) + len(faults) == 1 and faults:
        raise faults[0]
    if faults:
        raise PatchError(f"{len(faults)} of {count(len(answers) + len(faults), 'image')} not classified")
