"""Export a finished run as a single folder to share: weights, recipe, metrics, model card and checksums.

The export is written atomically, contains no local paths, and can be used as `claris classify --run`.
--onnx adds model.onnx: input uint8 [N, 96, 96, 3], output probability [N]. Needs pip install 'claris_kaggle[onnx]'.

example:
  claris export runs/first --out exports/first
  claris export runs/first --out exports/first --onnx --views 1
"""

from __future__ import annotations

import argparse
from pathlib import Path

from claris_kaggle.cli import options

HELP = "export a finished run to a single folder, optionally as ONNX"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="a run with all folds trained and predicted")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder to create")
    parser.add_argument("--onnx", action="store_true", help="also write model.onnx")
    parser.add_argument("--views", type=int, default=8, metavar="V", help="views within model.onnx: 1, 4 or 8 [8]")
    options._add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Export the run, and print the folder's path."""
    import json

    from claris_kaggle.serving.export import export_run

    metadata = export_run(options._open_run(args.run), args.out, onnx=args.onnx, views=args.views)
    if args.json:
        print(json.dumps({"out": str(args.out), **metadata}))
        return
    print(args.out)
    options._suggest_next("classify", "--run", args.out, "IMAGE")
