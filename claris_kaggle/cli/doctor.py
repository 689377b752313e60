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

HELP = "check versions, GPUs, memory, disk, data and Kaggle account"


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
    bad = any(finding.state == BAD for finding in findings)
    if args.json:
        print(json.dumps({"ok": not bad, "findings": [finding.to_json() for finding in findings]}))
        return int(bad)
    for finding in findings:
        print(f"{finding.state:<8}{finding.name:<15}{finding.found}" + (f". {finding.hint}" if finding.hint else ""))
    print(summary_line(findings))
    return int(bad)
