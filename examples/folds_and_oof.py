"""Evaluate a scikit-learn model out of fold, on folds grouped by slide.

python examples/folds_and_oof.py FOLDER     creates synthetic patches in FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

import claris_kaggle as ck


def main(folder: Path) -> float:
    """Fit and predict each of the five folds, and return the out-of-fold AUC over all patches."""
    data = ck.DataDir(ck.generate(folder / "data", train=200, test=20))
    folds = ck.make_fold_file(data, folder / "folds.csv", slides=data.root / "slides.csv", cache=folder / "cache")
    pack = ck.ensure_pack(data.patches("train"), folds.ids, folder / "cache")

    # Features: mean and standard deviation of each colour in the centre of the patch, which defines the label.
    centre = pack.pixels[pack.rows(folds.ids), 32:64, 32:64].reshape(len(folds.ids), -1, 3)
    features = np.concatenate([centre.mean(axis=1), centre.std(axis=1)], axis=1) / 255

    probabilities = np.empty(len(folds.ids), dtype=np.float32)
    for fold in range(folds.k):
        train, valid = folds.train_rows(fold), folds.valid_rows(fold)
        model = LogisticRegression(C=100, max_iter=1000).fit(features[train], folds.labels[train])
        probabilities[valid] = model.predict_proba(features[valid])[:, 1]
        print(f"fold {fold}: AUC {ck.summary(folds.labels[valid], probabilities[valid]).auc:.4f}")
    figures = ck.summary(folds.labels, probabilities)
    print(f"all: AUC {figures.auc:.4f}, accuracy {figures.accuracy:.4f}, over {figures.patches} patches")
    return figures.auc


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-output"))
