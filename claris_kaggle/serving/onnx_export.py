"""Export all folds of a run as one ONNX file, from pixels to probability, for programs without torch."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from claris_kaggle.core.errors import ClarisError, TrainingError, UsageError
from claris_kaggle.core.files import write_bytes
from claris_kaggle.data.augment import crop_centre, to_input
from claris_kaggle.data.d4 import view
from claris_kaggle.data.patches import PATCH_SHAPE
from claris_kaggle.inference.fold_models import FoldModels, predict_ensemble
from claris_kaggle.inference.tta import require_views

# onnxruntime reads this when it is imported. Without it, it stores an id of the machine and sends usage data to
# Microsoft. Its function `disable_telemetry_events` is too late for the id.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_INPUT, _OUTPUT = "images", "probability"
# The largest allowed difference to the probabilities of torch, and the number of patches that are compared.
_TOLERANCE, _CHECKED_PATCHES = 1e-5, 5


class _AveragedModel(nn.Module):
    """A module that returns the mean probability over folds and views.

    The input is uint8 [N, 96, 96, 3], the output is the probability of label 1, float32 [N]. All views are in one
    batch, so each network is in the graph only once.
    """

    def __init__(self, trained: FoldModels, views: int) -> None:
        super().__init__()
        self.config, self.views = trained.config, require_views(views)
        self.folds = nn.ModuleList(trained.models.values())

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities. The softmax over two classes is a sigmoid of the difference of their logits."""
        pixels, config = crop_centre(images.float(), self.config.crop), self.config
        seen = [to_input(view(pixels, v), config.normalise, resolution=config.resolution) for v in range(self.views)]
        inputs = torch.cat(seen)
        logits = torch.stack([network(inputs) for network in self.folds])
        odds = (logits[:, :, 1] - logits[:, :, 0]).reshape(len(self.folds), self.views, -1)
        return odds.sigmoid().mean(dim=(0, 1))


def _require_onnx() -> None:
    """Check that the packages for ONNX are installed.

    Raises:
        UsageError: a package is missing; the hint names the extra to install.
    """
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        found = f"--onnx needs {', '.join(missing)}, not installed here"
        raise UsageError(found, "", "Install the extra: pip install 'claris_kaggle[onnx]'")


def _write_onnx(path: Path, trained: FoldModels, views: int, about: dict[str, str]) -> None:
    """Write the ONNX file after verifying that its probabilities equal those of `predict_ensemble` in float32.

    Args:
        path: the file to write.
        trained: the networks, on the CPU.
        views: number of test-time augmentation views: 1, 4 or 8.
        about: metadata of the file.
    Raises:
        UsageError: a package is missing, or the number of views is invalid.
        ClarisError: the network cannot be exported.
        TrainingError: the probabilities differ by more than 1e-5. Nothing is written.
    """
    _require_onnx()
    network = _AveragedModel(trained, views).eval()
    images = np.random.default_rng(0).integers(0, 256, (_CHECKED_PATCHES, *PATCH_SHAPE), dtype=np.uint8)
    try:
        content = _convert_to_onnx(network, torch.from_numpy(images), about)
    except Exception as error:  # the exporter raises different types, depending on its version
        found = f"{trained.config.model} could not be converted to ONNX ({type(error).__name__})"
        raise ClarisError(found, "", "Export without --onnx") from error
    exact = dataclasses.replace(trained, config=dataclasses.replace(trained.config, precision="fp32"))
    needed = predict_ensemble(exact, images, views=views).probabilities
    difference = float(np.abs(_run_onnx(content, images) - needed).max())
    if not difference <= _TOLERANCE:
        raise TrainingError(
            f"{path.name}: predictions differ from those of torch by {difference:.1e}", "", "Export without --onnx"
        )
    write_bytes(path, content)


def _convert_to_onnx(network: nn.Module, images: Tensor, about: dict[str, str]) -> bytes:
    """Convert the network to the bytes of an ONNX file with a dynamic batch size and without local paths."""
    logger = logging.getLogger("torch.onnx")
    level, logger.level = logger.level, logging.ERROR
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # warnings of the exporter about its own code
            program: Any = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                input_names=[_INPUT],
                output_names=[_OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("patches")},),
                verbose=False,
            )
    finally:
        logger.level = level
    model = program.model_proto
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info, model.graph):
        part.ClearField("metadata_props")  # stack traces with local paths
        part.ClearField("doc_string")
    for name, value in about.items():
        model.metadata_props.add(key=name, value=value)
    return bytes(model.SerializeToString())


def _run_onnx(content: bytes, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the probabilities that onnxruntime computes on the CPU, float32 [N]."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([_OUTPUT], {_INPUT: images})[0])
