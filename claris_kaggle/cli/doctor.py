"""Check this installation: Python, libraries, GPUs, memory, disk, data, Kaggle account.

Exit code 1 if a required check fails.

example:
  claris doctor --data data
  claris doctor --account --json
  claris doctor --probe
"""

from __future__ import annotations

import argparse
from pathlib import Path

from claris_kaggle.cli import options

HELP = "check the installation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("--data", type=Path, metavar="DIR", help="also check the competition's folder")
    parser.add_argument(
        "--account", action="store_true", help="also check login, rules, submissions and GPU hours on Kaggle"
    )
    parser.add_argument(
        "--probe",
        type=Path,
        nargs="?",
        const=Path("claris-probe.json"),
        metavar="FILE",
        help="test a launch without GPU hours: push a private CPU kernel, wait for it, delete it [claris-probe.json]",
    )
    options._add_cache_flag(parser)
    options._add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Print one line per finding, and return 1 if one is bad."""
    import json

    from claris_kaggle.core.findings import BAD
    from claris_kaggle.doctor import check_installation, summary_line

    findings = check_installation(args.data, args.cache, account=args.account, probe=args.probe)
    bad = any(one.state == BAD for one in findings)
    if args.json:
        print(json.dumps({"ok": not bad, "findings": [one.to_json() for one in findings]}))
        return int(bad)
    for one in findings:
        print(f"{one.state:<8}{one.name:<15}{one.found}" + (f". {one.hint}" if one.hint else ""))
    print(summary_line(findings))
    return int(bad)
