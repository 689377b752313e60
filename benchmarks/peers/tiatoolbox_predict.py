"""Predict with TIAToolbox's PatchPredictor from the weights of a trained network."""

import sys
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file
from tiatoolbox.models.architecture.vanilla import CNNModel
from tiatoolbox.models.engine.patch_predictor import PatchPredictor
from tiatoolbox.models.models_abc import ModelABC
from timm import create_model

from benchmarks.peers import clock  # measured


class Network(ModelABC):
    infer_batch = staticmethod(CNNModel.infer_batch)

    def __init__(self, name, weights):
        super().__init__()
        self.model = create_model(name, num_classes=2)
        self.model.load_state_dict(load_file(weights))

    def forward(self, images):
        return self.model(images).softmax(1)

    @staticmethod
    def preproc(image):
        return (image / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)


data, name, batch, weights = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
ids = pd.read_csv(data / "train_labels.csv").id
paths = [data / "train" / f"{one}.tif" for one in ids]
device = "cuda" if torch.cuda.is_available() else "cpu"
predictor = PatchPredictor(Network(name, weights), batch_size=batch, num_workers=0, device=device)
size = dict(patch_input_shape=(96, 96), input_resolutions=[{"units": "baseline", "resolution": 1.0}])
clock.start()  # measured
output = predictor.run(paths, patch_mode=True, return_probabilities=True, **size)
clock.stop("predict", len(ids))  # measured
pd.DataFrame({"id": ids, "probability": output["probabilities"][:, 1]}).to_csv("predictions.csv", index=False)
