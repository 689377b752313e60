"""Train two small runs and average them into a checked submission.

python examples/train_and_blend.py FOLDER     creates synthetic patches in FOLDER; takes seconds with a tiny network
"""

from __future__ import annotations

import sys
from pathlib import Path

import claris_kaggle as ck


def main(folder: Path) -> Path:
    """Train and predict two runs on the same folds, write their mean, and return the path of the submission."""
    folder = folder.absolute()
    data = ck.DataDir(ck.generate(folder / "data", train=200, test=20))
    fold_file, cache = folder / "folds.csv", folder / "cache"
    ck.make_fold_file(data, fold_file, slides=data.root / "slides.csv", k=3, cache=cache)

    runs = [ck.RunDir(folder / "runs" / name) for name in ("first", "second")]
    for seed, run_dir in enumerate(runs):
        # One process is enough for a tiny network. Without `nproc`, one process per GPU is started.
        job = ck.TrainJob(data=data, fold_file=fold_file, run_dir=run_dir, cache=cache, nproc=1)
        ck.train_run(job, {"model": "tiny", "weights": "none", "epochs": 2, "seed": seed, "threads": 1})
        ck.predict_run(ck.PredictJob(data=data, run_dir=run_dir, cache=cache, nproc=1))

    result = ck.ensemble_runs(runs, data, folder / "submission.csv")
    for name, figures in {**result.runs, "together": result.oof}.items():
        print(f"{name}: OOF AUC {figures.auc:.4f}")
    print(result.submission)
    return result.submission


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-output"))
