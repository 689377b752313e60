"""Train one fold or all folds on all GPUs; the same command resumes an interrupted run.

example:
  claris train --data data --folds folds/five.csv --run runs/first
  claris train --data data --folds folds/five.csv --run runs/first --fold 0 --weights none --nproc 2
several machines:
  torchrun --nnodes 2 --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint HOST:PORT \\
      -m -- claris_kaggle train --data data --folds folds/five.csv --run runs/first
"""

from __future__ import annotations

import argparse
from pathlib import Path

from claris_kaggle.cli import options
from claris_kaggle.core.config import COMPILE_MODES, add_config_flags, read_given_flags

HELP = "train one fold or all folds; run again to resume"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    options._add_data_flag(parser)
    parser.add_argument("--folds", type=Path, required=True, metavar="FILE.csv", help="fold file, see claris folds")
    options._add_run_flag(parser)
    parser.add_argument(
        "--slides",
        type=Path,
        metavar="FILE",
        help="slide map, a table with the slide of each patch id; fails if a slide is in more than one fold [none]",
    )
    parser.add_argument(
        "--extra", type=Path, metavar="FILE", help="pseudo-labels for a second round, see claris pseudo [none]"
    )
    parser.add_argument("--fold", type=int, nargs="+", default=[], metavar="K", help="folds to train [all]")
    options._add_process_flags(parser)
    options._add_cache_flag(parser)
    parser.add_argument("--time-limit", metavar="TIME", help="time limit such as 11h30m; run again to resume [none]")
    parser.add_argument(
        "--checkpoint-minutes",
        type=float,
        default=10,
        metavar="M",
        help="time between checkpoints within an epoch [10]",
    )
    parser.add_argument(
        "--rates", action="store_true", help="measure data-loading and training throughput before the first epoch"
    )
    parser.add_argument(
        "--compile",
        nargs="?",
        const="always",
        default="never",
        choices=COMPILE_MODES,
        help="use torch.compile, which takes minutes at the start; auto measures a few steps with and without it, and "
        "uses it if it saves time in this run [never; --compile alone: always]",
    )
    add_config_flags(parser)


def run(args: argparse.Namespace) -> None:
    """Train, and print the run's folder."""
    from claris_kaggle.core.time_limit import parse_duration

    limit = parse_duration(args.time_limit) if args.time_limit else None
    data = options._open_data(args)
    from claris_kaggle.core.console import is_rank_zero
    from claris_kaggle.training.setup import TrainJob
    from claris_kaggle.training.train import train_run

    job = TrainJob(
        data=data,
        fold_file=args.folds,
        run_dir=options._open_run(args.run),
        cache=options._choose_cache_dir(args),
        slides=args.slides,
        extra=args.extra,
        only=tuple(args.fold),
        nproc=args.nproc,
        workers=args.workers,
        time_limit=limit,
        cudnn=args.cudnn,
        checkpoint_minutes=args.checkpoint_minutes,
        rates=args.rates,
        compile=args.compile,
    )
    train_run(job, read_given_flags(args))
    if is_rank_zero():
        print(args.run)
        cache = ["--cache", args.cache] if args.cache else []
        options._suggest_next("predict", "--data", args.data, "--run", args.run, *cache)
