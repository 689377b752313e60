"""Flags that several verbs share."""

from __future__ import annotations

import argparse
from pathlib import Path

from claris_kaggle.paths import DataDir, RunDir, default_cache


def add_data(parser: argparse.ArgumentParser) -> None:
    """--data, the competition's folder."""
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="the competition's folder, with train/ and test/"
    )


def add_cache(parser: argparse.ArgumentParser) -> None:
    """--cache, the folder of packs."""
    parser.add_argument("--cache", type=Path, default=None, metavar="DIR", help=f"folder for packs [{default_cache()}]")


def add_run(parser: argparse.ArgumentParser) -> None:
    """--run, the run's folder."""
    parser.add_argument(
        "--run", "--run-dir", dest="run", type=Path, required=True, metavar="DIR", help="the run's folder"
    )


def add_processes(parser: argparse.ArgumentParser) -> None:
    """--nproc and --workers."""
    parser.add_argument("--nproc", type=natural, default=0, metavar="N", help="processes [one a GPU, else 1]")
    parser.add_argument(
        "--workers",
        type=natural,
        default=None,
        metavar="N",
        help="loader processes for each [train: some on a GPU; else 0]",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json, the result as one object."""
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def add_record(parser: argparse.ArgumentParser) -> None:
    """--record, what was pushed."""
    default = Path("runs") / "kernels.json"
    parser.add_argument("--record", type=Path, default=default, metavar="FILE", help=f"record of pushes [{default}]")


def add_ledger(parser: argparse.ArgumentParser) -> None:
    """--ledger, what was submitted."""
    default = Path("submissions") / "ledger.csv"
    parser.add_argument("--ledger", type=Path, default=default, metavar="FILE", help=f"the ledger [{default}]")


def natural(text: str) -> int:
    """A whole number of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def data_dir(args: argparse.Namespace) -> DataDir:
    """The competition's folder, known to hold its four parts."""
    return DataDir(args.data).require()


def run_dir(path: Path) -> RunDir:
    """The run's folder, as an absolute path, so that started processes find it."""
    return RunDir(path.absolute())


def cache_dir(args: argparse.Namespace) -> Path:
    """The folder of packs."""
    return args.cache or default_cache()
