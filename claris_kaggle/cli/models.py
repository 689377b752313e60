"""List networks that suit this task: size, cost at an input size, normalisation, and published weights.

PATTERN searches all networks of timm. A network that is not in the list without PATTERN takes a second or two.
`claris train --model` accepts every name that is listed.

example:
  claris models
  claris models convnext --resolution 192
"""

from __future__ import annotations

import argparse

from claris_kaggle.cli import options

HELP = "list networks that suit this task, with size, cost and weights"
_LINE = "{:<28}{:>9}{:>9}  {:<10}{:<12}{:<8}{}"
_TITLES = ("network", "M weights", "GFLOP", "accepted", "normalise", "cached", "published weights")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument(
        "pattern",
        nargs="?",
        default="",
        metavar="PATTERN",
        help="part of a name, or a pattern with * [a list for this task]",
    )
    parser.add_argument(
        "--resolution", type=int, default=192, metavar="N", help="input size in pixels, 32 to 384 [192]"
    )
    options._add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    import json
    from dataclasses import asdict

    from claris_kaggle.models.catalogue import list_networks

    rows = list_networks(args.pattern, args.resolution)
    if args.json:
        print(json.dumps({"resolution": args.resolution, "networks": list(map(asdict, rows))}))
        return
    print(_LINE.format(*_TITLES))
    for row in rows:
        numbers = ["-" if value is None else f"{value:.1f}" for value in (row.million_parameters, row.gflop)]
        words = ["yes" if value else "no" for value in (row.accepted, row.cached)]
        print(_LINE.format(row.name, *numbers, words[0], row.normalisation, words[1], row.weights or "-"))
