"""Find and read weights: ImageNet, files, and finished folds.

Initial weights are timm's ImageNet weights, a local file, or random. Reading a file never executes code from it.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from claris_kaggle.core.errors import DataError, DiskError, RunError, UsageError, first_line, name_few
from claris_kaggle.core.files import explain_disk_errors, read_json, replace_file, sha256_bytes, sha256_file, write_json
from claris_kaggle.core.paths import FoldDir
from claris_kaggle.models.factory import _CLASS_COUNT
from claris_kaggle.models.pooling import _pooling_weights
from claris_kaggle.models.sources import _find_published


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
        weights: `none`, `imagenet` (the published weights: downloaded, or from the local cache or folder) or a path.
        model: name of the network, as in `create_model`.
    Raises:
        UsageError: the file does not exist, or there are no published weights of this network.
        ClarisError: the weights are not in the local cache and cannot be downloaded.
    """
    if weights == "none":
        return None
    if weights != "imagenet":
        path = Path(weights)
        if not path.is_file():
            raise UsageError(f"--weights is {weights}: no such file", "expected imagenet, none or a file")
        return path
    return _find_published(model)


def load_start(model: nn.Module, path: Path) -> list[str]:
    """Load initial weights into the network. Return the names of the tensors that keep their random values.

    Only the classifier may keep them, if the file has no classifier or one for another number of classes. The exponent
    of GeM keeps its initial value if the file has none. Position embeddings are interpolated to the input size.

    Raises:
        DataError: the file is damaged, belongs to another network, or is not a weight file.
    """
    found = {_timm_layer_name(key): value for key, value in read_weights(path).items()}
    own = model.state_dict()
    found = _rename_last_norm(found, own)
    head = {key for key, value in own.items() if value.ndim <= 2 and value.shape[:1] == (_CLASS_COUNT,)}
    optional = head | _pooling_weights(model) | {key for key in own if key.endswith("num_batches_tracked")}
    missing, wrong = _misfits(found, own, optional)
    if missing or wrong:
        found = _convert_weights(model, found)
        missing, wrong = _misfits(found, own, optional)
    skipped = sorted(key for key in head if key not in found or found[key].shape != own[key].shape)
    if missing or wrong:
        what = f"{len(missing)} layers missing, {len(wrong)} with another shape ({name_few(missing + wrong)})"
        raise DataError(f"{path}: {what}", "expected weights of the same network", "Check --model and --weights")
    model.load_state_dict({key: found[key] for key in own if key in found and key not in skipped}, strict=False)
    return skipped


def _rename_last_norm(found: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with the name that the last norm of a vision transformer has in this network.

    It is `norm` before the pooling of the class token, and `fc_norm` after other poolings.
    """
    for old, new in (("norm.", "fc_norm."), ("fc_norm.", "norm.")):
        if f"{new}weight" in own.keys() - found.keys() and f"{old}weight" in found.keys() - own.keys():
            found = {new + key[len(old) :] if key.startswith(old) else key: value for key, value in found.items()}
    return found


def _misfits(found: dict[str, Tensor], own: dict[str, Tensor], optional: set[str]) -> tuple[list[str], list[str]]:
    """Return the tensors of the network that the file lacks, and those that it has in another shape."""
    needed = [key for key in own if key not in optional]
    missing = sorted(key for key in needed if key not in found)
    return missing, sorted(key for key in needed if key in found and found[key].shape != own[key].shape)


def _convert_weights(model: nn.Module, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights after timm's own conversion for this network; unchanged if it has none or it fails.

    timm names this function `checkpoint_filter_fn` in all its modules. It renames tensors of older files, and
    interpolates position embeddings to the input size of the network.
    """
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return found
    try:
        return dict(convert(dict(found), model))
    except Exception:  # weights of another network fail in many ways; the caller names the tensors that do not fit
        return found


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
