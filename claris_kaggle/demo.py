"""Run the full pipeline on synthetic patches, with the same stages as a real run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import DataError
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data import tables
from claris_kaggle.data.integrity import check_data
from claris_kaggle.data.prepare import make_fold_file, make_packs
from claris_kaggle.data.synthetic import generate
from claris_kaggle.ensembling.ensemble_runs import ensemble_runs
from claris_kaggle.evaluation import metrics, predictions
from claris_kaggle.inference.predict import PredictJob, predict_run
from claris_kaggle.reporting.report import write_report
from claris_kaggle.runtime.distributed import choose_nproc
from claris_kaggle.training.setup import TrainJob, check_network
from claris_kaggle.training.train import train_run

# A few epochs with small batches are enough to learn the synthetic patches, within two minutes on two cores.
_RECIPE = {"weights": "none", "epochs": 4, "batch_size": 16, "ema": 0.0}


def run_demo(
    out: Path | str,
    *,
    model: str = "densenet121",
    train: int = 300,
    test: int = 60,
    slides: int = 20,
    seed: int = 0,
    nproc: int = 0,
) -> dict[str, Any]:
    """Run the full pipeline on synthetic patches.

    The stages are: generate, check, pack, split by slide, train five folds, predict, ensemble, report. A second call
    with the same `out` resumes. The same arguments give the same submission.

    Args:
        out: folder of all outputs.
        model: timm's name of the network, or `tiny`.
        train, test: number of training and test patches.
        slides: number of slides of the training patches, at least 5; test patches come from other slides.
        seed: seed of the patches, the folds and the training.
        nproc: number of processes; 0 means one per GPU, or one process without a GPU.
    Returns:
        The metrics `oof` and `test` (the labels of synthetic test patches are known), and the paths of `submission`,
        `report` and `run`.
    Raises:
        ClarisError: a stage failed.
    """
    out = Path(out).absolute()
    _check_options(model, nproc)
    data = DataDir(generate(out / "data", train=train, test=test, slides=slides, seed=seed))
    slide_map, fold_file, cache = data.root / "slides.csv", out / "folds.csv", out / "cache"
    run_dir = RunDir(out / "run")
    log_info(f"1 of 7, check: {train} synthetic training and {test} test patches")
    _require_sound(data, slide_map, out)
    log_info("2 of 7, pack: every patch decoded once and verified against its SHA-1 id")
    make_packs(data, cache)
    log_info("3 of 7, folds: five, by slide")
    make_fold_file(data, fold_file, slides=slide_map, seed=seed, cache=cache, force=True)
    job_inputs: dict[str, Any] = {"data": data, "run_dir": run_dir, "cache": cache, "nproc": nproc}
    log_info(f"4 of 7, train: {model}, five folds, {_RECIPE['epochs']} epochs")
    train_run(TrainJob(fold_file=fold_file, **job_inputs), {**_RECIPE, "model": model, "seed": seed})
    log_info("5 of 7, predict: 8-way test-time augmentation")
    predict_run(PredictJob(**job_inputs))
    log_info("6 of 7, ensemble: the mean of the folds, checked against the sample submission")
    result = ensemble_runs([run_dir], data, out / "submission.csv")
    log_info("7 of 7, report")
    report = write_report([run_dir], out / "report.html", data=data)
    return {
        "oof": result.oof.to_json(),
        "test": _score_test(run_dir, data),
        "submission": str(result.submission),
        "report": str(report),
        "run": str(run_dir.root),
    }


def _check_options(model: str, nproc: int) -> None:
    """Check the network and the number of processes before anything is written.

    Raises:
        UsageError: the network is unknown or cannot be trained, or this machine cannot run so many processes.
    """
    check_network(TrainConfig(model=model, weights="none"), None)
    choose_nproc(nproc)


def _require_sound(data: DataDir, slide_map: Path, out: Path) -> None:
    """Check the generated files.

    Raises:
        DataError: one of them was changed.
    """
    findings = check_data(data, slide_map)
    if findings.faults:
        hint = f"Remove {out} and run it again"
        raise DataError(findings.faults[0], "expected the synthetic patches of the demo", hint)


def _score_test(run_dir: RunDir, data: DataDir) -> dict[str, Any]:
    """Return the metrics of the test predictions, from the labels of the synthetic test patches."""
    _, labels = tables.read_labels(data.root / "test_answers.csv")
    return asdict(metrics.summary(labels, predictions.read_test(run_dir.test).probabilities))
