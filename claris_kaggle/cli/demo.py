"""Run the full pipeline on synthetic patches with a DenseNet-121. Writes a submission and an HTML report.

Needs no data, no Kaggle account and no GPU. Takes one to three minutes on two CPU cores.

example:
  claris demo --out demo-output
"""

from __future__ import annotations

import argparse
from pathlib import Path

from claris_kaggle.cli import options

HELP = "run the full pipeline on synthetic patches"
_NEXT_STEPS = """next, with the competition's files in data/:
  claris folds --data data --out folds/five.csv
  claris train --data data --folds folds/five.csv --run runs/first
  claris predict --data data --run runs/first
  claris ensemble runs/first --data data --out submission.csv"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument(
        "--out", type=Path, default=Path("claris-demo"), metavar="DIR", help="folder to write [claris-demo]"
    )
    parser.add_argument("--model", default="densenet121", help="timm name of the network, or `tiny` [densenet121]")
    parser.add_argument(
        "--train", type=options._parse_count, default=300, metavar="N", help="number of training patches [300]"
    )
    parser.add_argument(
        "--test", type=options._parse_count, default=60, metavar="N", help="number of test patches [60]"
    )
    parser.add_argument(
        "--seed", type=options._parse_count, default=0, metavar="S", help="seed of patches, folds and training [0]"
    )
    parser.add_argument(
        "--nproc", type=options._parse_count, default=0, metavar="N", help="number of processes [one per GPU, else 1]"
    )
    options._add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Run the demo, and print its metrics, its files and the commands for real data."""
    import json

    from claris_kaggle.demo import run_demo

    result = run_demo(args.out, model=args.model, train=args.train, test=args.test, seed=args.seed, nproc=args.nproc)
    if args.json:
        print(json.dumps(result))
        return
    oof, test = result["oof"], result["test"]
    print(f"OOF AUC     {oof['auc']:.4f}, accuracy {oof['accuracy']:.4f}, over {oof['patches']} patches in five folds")
    print(f"test AUC    {test['auc']:.4f}, accuracy {test['accuracy']:.4f}, over {test['patches']} unseen patches")
    print(f"submission  {result['submission']}")
    print(f"report      {result['report']}")
    print(_NEXT_STEPS)
