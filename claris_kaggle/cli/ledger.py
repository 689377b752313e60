"""List the submissions, best first, with OOF AUC, public score and private score.

example:
  claris ledger
"""

from __future__ import annotations

import argparse

from claris_kaggle.cli import options
from claris_kaggle.core.console import log_info

HELP = "list the submissions, best first"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    options._add_ledger_flag(parser)
    options._add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Print the ledger."""
    import json
    from dataclasses import asdict

    from claris_kaggle.ensembling.ledger import MIN_SCORED, describe_agreement, read_ledger, sort_best_first

    lines = sort_best_first(read_ledger(args.ledger))
    found = describe_agreement(lines)
    if args.json:
        print(json.dumps({"submissions": list(map(asdict, lines)), **asdict(found)}))
        return
    if not lines:
        log_info(f"{args.ledger}: no submissions yet")
        return
    print(f"{'private':<9}{'public':<9}{'OOF AUC':<9}{'status':<10}{'time':<22}{'ref':<12}runs")
    for line in lines:
        cells = (line.private, line.public, line.oof_auc, line.status, line.time, line.ref, line.runs)
        print("{:<9}{:<9}{:<9}{:<10}{:<22}{:<12}{}".format(*(cell or "-" for cell in cells)))
    for score, scored in found.scored.items():
        value = found.correlation.get(score)
        if value is not None:
            print(f"rank correlation of OOF AUC and {score} score: {value:.2f} over {scored} submissions")
        elif scored < MIN_SCORED:
            log_info(f"rank correlation of OOF AUC and {score} score: {scored} of {MIN_SCORED} scored submissions")
    for text in found.outside_interval:
        log_info(text)
