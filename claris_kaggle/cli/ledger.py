"""The submissions so far, best first: OOF AUC beside public and private score.

example:
  claris ledger
"""

from __future__ import annotations

import argparse

from claris_kaggle.cli import options
from claris_kaggle.core.console import say

HELP = "the submissions so far, best first"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    options.add_ledger(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Print the ledger."""
    import json

    from claris_kaggle.ensembling.ledger import ENOUGH, agreement, best_first, read_ledger

    lines = best_first(read_ledger(args.ledger))
    found = agreement(lines)
    if args.json:
        print(json.dumps({"submissions": lines, **found}))
        return
    if not lines:
        say(f"{args.ledger}: no submissions yet")
        return
    print(f"{'private':<9}{'public':<9}{'OOF AUC':<9}{'status':<10}{'time':<22}{'ref':<12}runs")
    for line in lines:
        cells = [line[name] or "-" for name in ("private", "public", "oof_auc", "status", "time", "ref", "runs")]
        print("{:<9}{:<9}{:<9}{:<10}{:<22}{:<12}{}".format(*cells))
    for score, scored in found["scored"].items():
        value = found["correlation"].get(score)
        if value is not None:
            print(f"rank correlation of OOF AUC and {score} score: {value:.2f} over {scored} submissions")
        elif scored < ENOUGH:
            say(f"rank correlation of OOF AUC and {score} score: {scored} of the {ENOUGH} submissions that it takes")
    for text in found["apart"]:
        say(text)
