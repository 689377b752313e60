"""Average the folds of one run or of several runs, and write a checked submission.

Several runs must have the same folds. Weights are scored only on folds that they were not fitted on.
A run may also be one fold (runs/first/fold0), or a folder of another tool with oof.csv (id,label,fold,probability) and
test.csv (id,probability) or submission.csv. Other usual column names are recognised; --columns gives the meaning of
unusual ones.
An oof.csv without a fold column is treated as one holdout, and the score is for its patches only.

example:
  claris ensemble runs/first --data data --out submission.csv
  claris ensemble runs/first runs/second --data data --out submission.csv --method auto
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from claris_kaggle.cli import options
from claris_kaggle.core.console import format_command, log_info

if TYPE_CHECKING:
    from claris_kaggle.ensembling.combine import CalibrationEvidence, EnsembleEvidence
    from claris_kaggle.evaluation.auc_intervals import Comparison
    from claris_kaggle.evaluation.run_metrics import OverallMetrics

HELP = "write a submission from one or several runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    options._add_runs_argument(parser)
    options._add_data_flag(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv", help="submission to write")
    parser.add_argument(
        "--method", default="mean", metavar="NAME",
        help="how to combine the runs: mean, logit, rank, logloss, auc, greedy, stack, or auto (the best of these on "
        "folds that the weights were not fitted on). The mean is used unless the method is significantly better [mean]",
    )  # fmt: skip
    parser.add_argument(
        "--only-sound",
        action="store_true",
        help="exclude runs with a warning, for example constant or inverted predictions",
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="correct the probabilities by one temperature that is fitted on the OOF predictions; the order of the "
        "patches and the AUC do not change",
    )
    parser.add_argument(
        "--common-ids",
        action="store_true",
        help="use only the OOF patches that all runs have",
    )
    options._add_columns_flag(parser)
    parser.add_argument("--save-run", type=Path, metavar="DIR", help="save the ensemble as a run in this folder")
    options._add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Write the submission, and print its path and the OOF metrics."""
    data = options._open_data(args)
    import json

    from claris_kaggle.ensembling.ensemble_runs import ensemble_runs
    from claris_kaggle.ensembling.runs import name_auc

    columns = options._parse_columns_flag(args)
    keep = options._open_run(args.save_run) if args.save_run else None
    result = ensemble_runs(
        [options._open_run(path) for path in args.runs], data, args.out, method=args.method,
        only_sound=args.only_sound, calibrate=args.calibrate, common_ids=args.common_ids, columns=columns,
        keep=keep,
    )  # fmt: skip
    evidence = result.ensemble
    _report_evidence(evidence)
    if args.json:
        print(json.dumps(result.to_json()))
        return
    kind = name_auc(name in result.holdouts for name in result.runs)
    for name, metrics in result.runs.items():
        difference = _format_difference(evidence.against_best.get(name), evidence.best)
        print(f"{name}: {_format_metrics(metrics, name_auc([name in result.holdouts]))}{difference}")
    if len(evidence.weights) > 1:
        _print_methods(evidence, kind)
    if len(result.runs) > 1:
        print(f"ensemble: {_format_metrics(result.oof, kind)}")
    if evidence.over_best:
        _print_against_best(evidence, evidence.over_best, dict(zip(result.runs, args.runs, strict=True)), args)
    if result.oof.pooling_remark:
        log_info(result.oof.pooling_remark)
    if evidence.calibration:
        _print_calibration(evidence.calibration)
    print(result.submission)
    options._suggest_next("submit", args.out, "--data", args.data)


def _format_metrics(metrics: OverallMetrics, kind: str) -> str:
    """Return AUC with its interval and accuracy, in one line. `kind` is the name of the AUC."""
    low, high = metrics.auc_interval
    return f"{kind} {metrics.auc:.4f} ({low:.4f} to {high:.4f}), accuracy {metrics.accuracy:.4f}"


def _format_difference(comparison: Comparison | None, best: str) -> str:
    """Return a run's difference to the best run, as text; empty for the best run and for a run that was left out."""
    if comparison is None:
        return ""
    low, high = comparison.interval
    return f"; {comparison.difference:+.4f} ({low:+.4f} to {high:+.4f}) compared with {best}, {_format_p(comparison.p)}"


def _report_evidence(evidence: EnsembleEvidence) -> None:
    """Log the remarks about the runs."""
    for name, text in evidence.remarks.items():
        action = "left out" if name in evidence.left_out else "kept; --only-sound excludes it"
        log_info(f"{name}: {text} ({action})")
    for name, other in evidence.copies.items():
        log_info(f"{name}: same predictions as {other}; used once")
    requested = evidence.methods.get(evidence.requested_method)
    if requested and evidence.requested_method != evidence.method:
        gain = _format_gain(requested.gain)
        log_info(f"{evidence.requested_method}: its gain over the mean, {gain}, is not significant; the mean is used")


def _format_gain(gain: Comparison) -> str:
    """Return a method's nested gain with its interval and its one-sided p-value, as text."""
    low, high = gain.interval
    return f"{gain.difference:+.5f} ({low:+.5f} to {high:+.5f}), one-sided {_format_p(gain.p_one_sided)}"


def _format_p(p: float) -> str:
    """Return a p-value as text; below 0.0001 only that bound."""
    return f"p {p:.2g}" if p >= 1e-4 else "p < 0.0001"


def _print_methods(evidence: EnsembleEvidence, kind: str) -> None:
    """Print the correlations of the runs, the score of each method, and the chosen method with its weights."""
    names = list(evidence.weights)
    print(f"rank correlation of {kind.removesuffix('AUC')}probabilities")
    width = max(map(len, names))
    for row, name in enumerate(names):
        cells = [f"{evidence.correlations[name][other]:7.4f}" for other in names[:row]]
        print(f"  {row + 1:>2} {name:<{width}} {' '.join(cells)}".rstrip())
    for name, score in evidence.methods.items():
        gain = "" if name == "mean" else f", over the mean {_format_gain(score.gain)}"
        print(f"{name:<7} nested {kind} {score.auc:.5f}{gain}")
    weights = ", ".join(f"{name} {weight:.3f}" for name, weight in evidence.weights.items())
    print(f"method: {evidence.method} ({weights})")
    print("AUC of the mean with each run minus without it")
    for name, comparison in evidence.members.items():
        low, high = comparison.interval
        print(f"  {name:<{width}} {comparison.difference:+.5f} ({low:+.5f} to {high:+.5f}), {_format_p(comparison.p)}")


def _print_against_best(
    evidence: EnsembleEvidence, gain: Comparison, folders: Mapping[str, Path], args: argparse.Namespace
) -> None:
    """Print the difference of the ensemble to the best run, and the command for that run if it is better.

    Args:
        evidence: the evidence of an ensemble of several runs.
        gain: its comparison with the best run.
        folders: the folder of each run, by name, as typed.
        args: the arguments of the command.
    """
    low, high = gain.interval
    significant = low > 0 or high < 0
    winner = evidence.best if gain.difference < 0 else "the ensemble"
    verdict = f"{winner} is better" if significant else f"{winner} scored higher, but the difference is not significant"
    if gain.difference == 0:
        verdict = "they score alike"
    numbers = f"{gain.difference:+.5f} ({low:+.5f} to {high:+.5f}), {_format_p(gain.p)}"
    print(f"ensemble compared with the best run, {evidence.best}: {numbers}: {verdict}")
    if gain.difference < 0:
        command = format_command("ensemble", folders[evidence.best], "--data", args.data, "--out", args.out)
        print(f"for {evidence.best} alone, in place of {args.out}: {command}")


def _print_calibration(calibration: CalibrationEvidence) -> None:
    """Print the temperature, and its effect on held-out folds."""
    before, after = calibration.before, calibration.after
    if after is None:
        print(
            f"temperature {calibration.temperature:.3f}: not applied, because it cannot be checked on held-out patches "
            "without several folds or a map of enough slides (claris fetch --slides)"
        )
        return
    effect = (
        f"log loss {before.log_loss:.4f} to {after.log_loss:.4f}, "
        f"calibration error {before.calibration_error:.4f} to {after.calibration_error:.4f}"
    )
    remark = f"AUC {calibration.auc:.4f} before and after" if calibration.applied else "not applied"
    print(f"temperature {calibration.temperature:.3f}: {effect}, on held-out folds; {remark}")
