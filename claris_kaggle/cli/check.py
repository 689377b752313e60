"""Check the competition's data: tables, files, image sizes, SHA-1 ids, duplicates and slides.

Exit code 0 if the data is ready for training, 1 if something must be fixed first.

example:
  claris check --data data --slides patch_id_wsi.csv
"""

from __future__ import annotations

import argparse

from claris_kaggle.cli import options

HELP = "check the competition's files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    options._add_data_flag(parser)
    options._add_slides_flag(parser, "it is checked, too")
    options._add_jobs_flag(parser)
    options._add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Print the findings, and return 1 if there are faults."""
    data = options._open_data(args)
    import json

    from claris_kaggle.core.errors import format_count
    from claris_kaggle.data.integrity import check_data

    findings = check_data(data, options._choose_slides(args, data), args.jobs)
    if args.json:
        print(json.dumps(findings.to_json()))
        return 1 if findings.faults else 0
    for part, facts in findings.facts.items():
        shown = [
            f"{name.replace('_', ' ')} {f'{value:.4g}' if isinstance(value, float) else f'{value:,}'}"
            for name, value in facts.items()
        ]
        print(f"{part:<11}" + ", ".join(shown))
    for note in findings.notes:
        print(f"note       {note}")
    for fault in findings.faults:
        print(f"fault      {fault}")
    print(
        "no faults" if not findings.faults else f"{format_count(len(findings.faults), 'fault')} to fix before training"
    )
    if not findings.faults:
        options._suggest_next("folds", "--data", args.data, "--out", "folds/five.csv")
    return 1 if findings.faults else 0
