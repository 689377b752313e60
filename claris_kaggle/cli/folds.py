"""Split the training patches into stratified folds, or check a fold file.

With a slide map (--slides, or slides.csv in the data folder) each slide is in exactly one fold. Duplicates are always
in the same fold.

example:
  claris folds --data data --out folds/five.csv
  claris folds --data data --out folds/slides.csv --slides patch_id_wsi.csv
  claris folds --data data --check folds/five.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

from claris_kaggle.cli import options
from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import UsageError

HELP = "create or check a fold file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    options._add_data_flag(parser)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--out", type=Path, metavar="FILE.csv", help="fold file to write")
    action.add_argument("--check", type=Path, metavar="FILE.csv", help="fold file to check against the data")
    options._add_slides_flag(parser, "each slide is in one fold")
    parser.add_argument("--k", type=int, metavar="K", help="number of folds [5]")
    parser.add_argument("--seed", type=int, metavar="S", help="seed of the split [0]")
    parser.add_argument("--force", action="store_true", help="replace an existing fold file with other folds")
    options._add_cache_flag(parser)
    options._add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Create or check the fold file, and print the composition of each fold.

    Raises:
        UsageError: a flag for creating folds is used with --check.
    """
    given = {"--k": args.k is not None, "--seed": args.seed is not None, "--force": args.force}
    if args.check and any(given.values()):
        found = f"{' and '.join(flag for flag, is_given in given.items() if is_given)} with --check"
        raise UsageError(
            found,
            "these flags apply only when folds are created",
            "Remove these flags, or use --out instead of --check",
        )
    data = options._open_data(args)
    import json
    from dataclasses import asdict

    from claris_kaggle.data.fold_file import SPLIT_BY_PATCH, count_folds
    from claris_kaggle.data.prepare import check_fold_file, make_fold_file

    cache = options._choose_cache_dir(args)
    slides = options._choose_slides(args, data)
    if slides is None and not args.check:
        log_info(SPLIT_BY_PATCH)
    if args.check:
        folds = check_fold_file(data, args.check, slides=slides, cache=cache)
    else:
        folds = make_fold_file(
            data, args.out, slides=slides, k=5 if args.k is None else args.k, seed=args.seed or 0, cache=cache,
            force=args.force,
        )  # fmt: skip
    rows = [asdict(counts) for counts in count_folds(folds)]
    if args.json:
        print(json.dumps({"file": str(args.out or args.check), "digest": folds.digest, "folds": rows}))
        return
    print(args.out or args.check)
    grouped = folds.slides is not None
    for row in rows:
        shown = "fold {fold}: {patches:,} patches, {malignant:,} malignant ({share:.1%})"
        print((shown + ", {groups:,} slides" * grouped).format(**row))
    options._suggest_next("train", "--data", args.data, "--folds", args.out or args.check, "--run", "runs/first")
