"""Write out-of-fold and test probabilities of every finished fold, averaged over test-time augmentation views.

example:
  claris predict --data data --run runs/first
"""

from __future__ import annotations

import argparse

from claris_kaggle.cli import options
from claris_kaggle.core.config import PRECISIONS
from claris_kaggle.core.console import log_info
from claris_kaggle.core.paths import RunDir

HELP = "predict training patches out of fold, and test patches"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    options._add_data_flag(parser)
    options._add_run_flag(parser)
    parser.add_argument("--views", type=int, default=8, metavar="V", help="test-time augmentation views: 1, 4 or 8 [8]")
    parser.add_argument(
        "--threads", type=options._parse_count, default=0, metavar="N", help="CPU threads per process [as in training]"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="",
        help="precision; auto: fp16 on a GPU, fp32 on a CPU [as in training]",
    )
    parser.add_argument("--time-limit", metavar="TIME", help="time limit such as 2h; run again to resume [none]")
    options._add_process_flags(parser)
    options._add_cache_flag(parser)
    options._add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Predict, and print the run's metrics when all folds are finished."""
    from claris_kaggle.core.time_limit import parse_duration

    limit = parse_duration(args.time_limit) if args.time_limit else None
    data = options._open_data(args)
    import json

    from claris_kaggle.core.console import is_rank_zero
    from claris_kaggle.ensembling.runs import suggest_single_fold
    from claris_kaggle.evaluation.run_metrics import explain_pooling
    from claris_kaggle.inference.predict import PredictJob, predict_run

    job = PredictJob(
        data=data,
        run_dir=options._open_run(args.run),
        cache=options._choose_cache_dir(args),
        views=args.views,
        nproc=args.nproc,
        workers=args.workers or 0,
        threads=args.threads,
        precision=args.precision,
        time_limit=limit,
        cudnn=args.cudnn,
    )
    metrics = predict_run(job)
    if not is_rank_zero():
        return
    if metrics is None:
        log_info(suggest_single_fold(RunDir(args.run), args.data, "submission.csv"))
        return
    if args.json:
        print(json.dumps(metrics))
        return
    for row in [*metrics["folds"], {"fold": "all", **metrics["overall"]}]:
        print("fold {fold:<4} AUC {auc:.4f}  accuracy {accuracy:.4f}  log loss {log_loss:.4f}".format(**row))
    if remark := explain_pooling(metrics["overall"]["auc"], metrics["overall"]["fold_auc_mean"]):
        log_info(remark)
    options._suggest_next("ensemble", args.run, "--data", args.data, "--out", "submission.csv")
