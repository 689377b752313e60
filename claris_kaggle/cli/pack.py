"""Decode all patches once into a cache file, and verify each against its SHA-1 id.

Optional: claris train and claris predict create the cache if it is missing.

example:
  claris pack --data data
"""

from __future__ import annotations

import argparse

from claris_kaggle.cli import options

HELP = "decode the patches once into the cache"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    options._add_data_flag(parser)
    options._add_cache_flag(parser)
    options._add_jobs_flag(parser)
    parser.add_argument(
        "--verify",
        action="store_true",
        help="verify all patches of an existing cache; the default is 1,000 random ones if its files are unchanged",
    )
    options._add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Create or verify both packs, and print their folders."""
    data = options._open_data(args)
    import json

    from claris_kaggle.data.prepare import make_packs

    packs = make_packs(data, options._choose_cache_dir(args), args.jobs, verify_all=args.verify)
    if args.json:
        print(json.dumps({"packs": [{"folder": str(pack.folder), "patches": len(pack.ids)} for pack in packs]}))
        return
    for pack in packs:
        print(f"{pack.folder}  {len(pack.ids):,} patches")
    options._suggest_next("folds", "--data", args.data, "--out", "folds/five.csv")
