"""Find and read weights: ImageNet, files, and finished folds.

Initial weights are timm's ImageNet weights, a local file, or random. Reading a file never executes code from it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import ClarisError, DataError, DiskError, RunError, UsageError, first_line, name_few
from claris_kaggle.core.files import explain_disk_errors, read_json, replace_file, sha256_bytes, sha256_file, write_json
from claris_kaggle.core.paths import FoldDir
from claris_kaggle.models.factory import _CLASS_COUNT, _require_known

_HUB_SECONDS = "10"


def save_weights(path: Path, model: nn.Module) -> None:
    """Write the weights of the network as a safetensors file, atomically."""
    import safetensors.torch

    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    content = safetensors.torch.save(state, {"format": "pt"})
    with replace_file(path) as temporary:
        temporary.write_bytes(content)


def finish_fold(fold_dir: FoldDir, facts: Mapping[str, object]) -> None:
    """Mark the fold as finished: write the SHA-256 of its weights and `facts` to `model.json`, after the weights."""
    write_json(fold_dir.weights_manifest, {"weights_sha256": sha256_file(fold_dir.weights), **facts})


def finished_sha256(fold_dir: FoldDir) -> str | None:
    """Return the SHA-256 of the weights of a finished fold, or None if the fold is unfinished or damaged."""
    with contextlib.suppress(DataError, DiskError):
        digest = read_json(fold_dir.weights_manifest).get("weights_sha256")
        if isinstance(digest, str) and fold_dir.weights.exists() and sha256_file(fold_dir.weights) == digest:
            return digest
    return None


def load_finished(fold_dir: FoldDir, model: nn.Module) -> str:
    """Load the weights of a finished fold into the network. Return their SHA-256.

    Raises:
        RunError: the weights are damaged, or belong to another network.
    """
    digest = str(read_json(fold_dir.weights_manifest).get("weights_sha256"))
    load_verified(fold_dir.weights, digest, model, f"Remove {fold_dir.weights_manifest} and run claris train again")
    return digest


def load_verified(path: Path, digest: object, model: nn.Module, hint: str) -> None:
    """Load the weights in the file into the network after verifying the SHA-256 of the file.

    Args:
        path: a .safetensors or .pth file.
        digest: expected SHA-256, in hexadecimal.
        model: the network, changed in place.
        hint: what the user should do if the SHA-256 differs.
    Raises:
        RunError: the weights are damaged, or belong to another network.
    """
    with explain_disk_errors(path):
        content = path.read_bytes()
    if sha256_bytes(content) != digest:
        raise RunError(f"{path}: not the weights of the finished fold", "", hint)
    try:
        model.load_state_dict(_parse_weights(content, path))
    except RuntimeError as error:
        raise RunError(f"{path}: from another network", "", "Restore the weights of this run") from error


def find_weights(weights: str, model: str) -> Path | None:
    """Return the file of the initial weights, or None for random weights.

    Args:
        weights: `none`, `imagenet` (downloaded, or from the local cache) or a path.
        model: timm's name of the network, or `tiny`.
    Raises:
        UsageError: the file does not exist, or timm has no ImageNet weights for this network.
        ClarisError: the weights are not in the local cache and cannot be downloaded.
    """
    if weights == "none":
        return None
    if weights != "imagenet":
        path = Path(weights)
        if not path.is_file():
            raise UsageError(f"--weights is {weights}: no such file", "expected imagenet, none or a file")
        return path
    return _fetch_imagenet(model)


def require_imagenet(model: str) -> str:
    """Return the repository of timm's ImageNet weights of a network.

    Raises:
        UsageError: there is no such network, or it has no such weights.
    """
    import timm

    config = None
    if model != "tiny":
        _require_known(model)
        config = timm.models.get_pretrained_cfg(model)
    if config is None or not config.hf_hub_id:
        raise UsageError(
            f"--weights imagenet: timm has no ImageNet weights for {model}", "", "Give --weights none, or a file"
        )
    return str(config.hf_hub_id)


def _fetch_imagenet(model: str) -> Path:
    """Return the file of timm's ImageNet weights, from the local cache or by download."""
    # Short timeouts: without a network connection the client would otherwise retry for minutes.
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", _HUB_SECONDS)
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", _HUB_SECONDS)
    repository = require_imagenet(model)
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    # Hide the client's messages about retries. It sets its own log level on import, so this comes after the import.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

    cached = try_to_load_from_cache(repository, "model.safetensors")
    if isinstance(cached, str):
        return Path(cached)
    log_info(f"downloading the ImageNet weights of {model}")
    try:
        return Path(hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # without a network the client raises many exception types, depending on its version
        raise ClarisError(
            f"--weights imagenet: the weights of {model} are not cached and could not be downloaded "
            f"({type(error).__name__})",
            "",
            "Use --weights none to train from scratch, or --weights FILE with downloaded weights",
        ) from error


def load_start(model: nn.Module, path: Path) -> list[str]:
    """Load initial weights into the network. Return the names of the tensors that keep their random values.

    Only the classifier may keep them, if the file has no classifier or one for another number of classes.

    Raises:
        DataError: the file is damaged, belongs to another network, or is not a weight file.
    """
    found = {_timm_layer_name(key): value for key, value in read_weights(path).items()}
    own = model.state_dict()
    head = {key for key, value in own.items() if value.ndim <= 2 and value.shape[:1] == (_CLASS_COUNT,)}
    skipped = sorted(key for key in head if key not in found or found[key].shape != own[key].shape)
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    missing = sorted(key for key in own if key not in found and key not in head | counters)
    wrong = sorted(key for key in own if key in found and key not in head and found[key].shape != own[key].shape)
    if missing or wrong:
        what = f"{len(missing)} layers missing, {len(wrong)} with another shape ({name_few(missing + wrong)})"
        raise DataError(f"{path}: {what}", "expected weights of the same network", "Check --model and --weights")
    model.load_state_dict({key: found[key] for key in own if key in found and key not in skipped}, strict=False)
    return skipped


def _timm_layer_name(key: str) -> str:
    """Convert a tensor name of DataParallel, DDP or older torchvision files to timm's name."""
    key = re.sub(r"^(module\.|model\.)+", "", key)
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)", r"\1\2", key)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a .safetensors or .pth file by name. Never executes code from the file.

    Raises:
        DataError: the file is damaged, or is not a weight file.
    """
    with explain_disk_errors(path):
        content = path.read_bytes()
    return _parse_weights(content, path)


def _parse_weights(content: bytes, source: object) -> dict[str, Tensor]:
    """Return the tensors in the bytes of a .safetensors or .pth file. `source` names the file in messages."""
    import io

    import safetensors.torch

    try:
        if content[:2] == b"PK" or content[:1] == b"\x80":
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            state = state.get("state_dict", state.get("model", state))
        else:
            state = safetensors.torch.load(content)
        if not state or not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("no tensors by name")
        return dict(state)
    except Exception as error:  # both readers raise many exception types on damaged files
        found = f"{source}: no readable weights ({first_line(error)})"
        raise DataError(found, "expected a complete .safetensors or .pth file") from error
