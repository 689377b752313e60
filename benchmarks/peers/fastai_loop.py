"""Train and predict with fastai's Learner."""

import sys
from pathlib import Path

import pandas as pd
import torch
from fastai.vision.all import (
    Callback,  # measured
    CrossEntropyLossFlat,
    DihedralItem,
    ImageDataLoaders,
    Learner,
    Normalize,
    accuracy,
    imagenet_stats,
)
from timm import create_model

from benchmarks.peers import clock  # measured


class Times(Callback):  # measured
    def before_train(self):  # measured
        clock.start()  # measured

    def after_train(self):  # measured
        clock.stop("train", len(self.dls.train_ds))  # measured


data, name, epochs, batch = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
labels, test = pd.read_csv(data / "train_labels.csv"), pd.read_csv(data / "sample_submission.csv")
labels["path"], test["path"] = "train/" + labels.id + ".tif", "test/" + test.id + ".tif"
loaders = ImageDataLoaders.from_df(
    labels, data, valid_pct=0.2, seed=0, fn_col="path", label_col="label", item_tfms=DihedralItem(), bs=batch,
    batch_tfms=Normalize.from_stats(*imagenet_stats), num_workers=0,
)  # fmt: skip
model = create_model(name, num_classes=2)
learner = Learner(loaders, model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, path=".")
learner.fit_one_cycle(
    epochs, 1e-3, wd=0.05,
    cbs=[Times()],  # measured
)  # fmt: skip
learner.save("model")

clock.start()  # measured
parts = [learner.get_preds(dl=part)[0][:, 1] for part in (loaders.valid, loaders.test_dl(test))]
clock.stop("predict", len(loaders.valid_ds) + len(test))  # measured
frame = pd.concat([loaders.valid_ds.items, test]).assign(probability=torch.cat(parts).numpy())
frame[["id", "probability"]].to_csv("predictions.csv", index=False)
