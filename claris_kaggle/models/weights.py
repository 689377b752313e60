"""Find and read weights: ImageNet, files, and finished folds.

Initial weights are timm's ImageNet weights, a local file, or random. Reading a file never executes code from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import DataError, DiskError, RunError, UsageError, format_count, name_few
from claris_kaggle.core.files import explain_disk_errors, read_json, replace_file, sha256_bytes, sha256_file, write_json
from claris_kaggle.core.paths import FoldDir
from claris_kaggle.models.pooling import _pooling_weights
from claris_kaggle.models.sources import _find_published
from claris_kaggle.models.weight_files import _WEIGHT_SUFFIXES, _find_network, _parse_weights
from claris_kaggle.models.weight_names import _explain_names, _find_fitting_network, _find_head, _Match, _match_names

# Attempts of timm's conversion: the unchanged names, then without one to three prefixes.
_MAX_PREFIXES = 4


def save_weights(path: Path, model: nn.Module) -> None:
    """Write the weights of the network as a safetensors file, atomically."""
    import safetensors.torch

    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    content = safetensors.torch.save(state, {"format": "pt"})
    with replace_file(path) as temporary:
        temporary.write_bytes(content)


def finish_fold(fold_dir: FoldDir, metadata: Mapping[str, object]) -> None:
    """Mark the fold as finished: write the SHA-256 of its weights and `metadata` to `model.json`."""
    write_json(fold_dir.weights_manifest, {"weights_sha256": sha256_file(fold_dir.weights), **metadata})


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
        RunError: the weights are missing or damaged, or belong to another network.
    """
    if not path.exists():
        raise RunError(f"{path}: the weights are missing", "expected those of the finished fold", hint)
    content = _read_content(path)
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
        path = Path(os.path.expanduser(weights))  # noqa: PTH111 - keeps ~ where there is no home
        if not path.is_file():
            what, hint = _explain_no_file(path, weights)
            raise UsageError(f"--weights is {weights}: {what}", "expected imagenet, none or a file", hint)
        return path
    return _find_published(model)


def _explain_no_file(path: Path, weights: str) -> tuple[str, str]:
    """Return why there is no file of weights at the path, and what to do."""
    if re.match(r"(https?|s3|gs)://", weights):
        return "a web address", "Download it first, then give the file"
    if weights.startswith("hf-hub:"):
        return "the name of a network", f"Give it as --model {weights}, with --weights imagenet"
    if re.fullmatch(r"(true|yes|default|pretrained|imagenet\w*)", weights, re.IGNORECASE):
        return "no such file", "Give imagenet for the published weights of --model"
    if weights and path.is_dir():
        if next((file for level in ("data.pkl", "*/data.pkl") for file in path.glob(level)), None):
            return "a folder, an unpacked file of torch.save", "Download the file again, and keep it packed"
        files = [file for level in ("*", "*/*") for file in sorted(path.glob(level)) if file.is_file()]
        weight_files = [file for file in files if file.suffix.lower() in _WEIGHT_SUFFIXES]
        return (
            "a folder",
            f"Give a file in it: {name_few(weight_files)}" if weight_files else "It has no .safetensors or .pth file",
        )
    if re.fullmatch(r"[\w-]+/[\w.-]+", weights) and Path(weights).suffix.lower() not in _WEIGHT_SUFFIXES:
        return "no such file", f"If it is a name on Hugging Face, give --model hf-hub:{weights} --weights imagenet"
    return "no such file", ""


def load_initial_weights(model: nn.Module, path: Path) -> list[str]:
    """Load initial weights into the network. Return the names of the tensors that keep their random values.

    Only the classifier may keep them, if the file has no classifier or one for another number of classes. The names in
    the file may have any prefix. Of several networks in a file that fit, averaged weights are preferred. The exponent
    of GeM keeps its initial value if the file has none. Position embeddings are interpolated to the input size.

    Raises:
        DataError: the file is damaged, belongs to another network, has values that are not finite or layers of zeros
            only, or is not a weight file.
    """
    dicts, architecture = _find_network(_read_content(path), path)
    found = {key_path: _rename_last_norm(model, tensors) for key_path, tensors in dicts.items()}
    matches = _match_converted(found, model, _match_names(found, model))
    match = _resize_positions(matches[0], model) if matches else None
    state = model.state_dict()
    head = _find_head(state)
    tensors = match.tensors if match else {}
    skipped = sorted(key for key in head if key not in tensors or not _is_compatible(tensors[key], state[key]))
    _require_same_network(path, found, model, match, head | _pooling_weights(model))
    fitting = {key: value for key, value in tensors.items() if key not in skipped and value.shape == state[key].shape}
    converted = {key: value.to(state[key].dtype) for key, value in fitting.items()}
    _require_values(path, converted, head)
    if architecture and _timm_name(model) not in ("", architecture) and _is_timm_name(architecture):
        remark = "Its tensors have the same names; the network may compute differently"
        log_info(f"{path}: the file is of {architecture}, and --model is {_timm_name(model)}. {remark}")
    if match and len(matches) > 1:
        labels = name_few(match.label or "the top" for match in matches[1:])
        log_info(f"{path}: several networks fit; taking {match.label or 'the top'}, not {labels}")
    if match and match.unmatched_other:
        others = match.unmatched_other
        log_info(f"{path}: {format_count(len(others), 'tensor')} of other parts left out ({name_few(others)})")
    model.load_state_dict(converted, strict=False)
    return skipped


def _match_converted(found: Mapping[str, dict[str, Tensor]], model: nn.Module, matches: list[_Match]) -> list[_Match]:
    """Convert the original authors' names with timm, and return these matches if they have more tensors."""
    state = model.state_dict()
    convert = _timm_conversion(model)
    if convert is None or (matches and 2 * len(matches[0].tensors) > len(state)):
        return matches
    converted: dict[str, dict[str, Tensor]] = {}
    for key_path, tensors in found.items():
        conversions: list[dict[str, Tensor]] = []
        for stripped in _without_prefixes(tensors):
            with contextlib.suppress(Exception), warnings.catch_warnings():  # it expects the files of the authors
                warnings.simplefilter("ignore")
                conversions.append(convert(stripped, model))
        converted[key_path] = max(conversions, key=lambda conversion: len(state.keys() & conversion.keys()), default={})
    better = _match_names(converted, model)
    return better if better and (not matches or len(better[0].tensors) > len(matches[0].tensors)) else matches


def _without_prefixes(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors unchanged, then without one to three common prefixes of their names, such as `backbone.`."""
    stripped = dict(tensors)
    for _ in range(_MAX_PREFIXES):
        yield dict(stripped)
        counts = Counter(key.partition(".")[0] for key in stripped if "." in key)
        first, number = max(counts.items(), key=lambda item: item[1], default=("", 0))
        if 2 * number <= len(stripped):
            return
        stripped = {
            key.removeprefix(f"{first}."): item for key, item in stripped.items() if key.startswith(f"{first}.")
        }


def _timm_conversion(model: nn.Module) -> Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] | None:
    """Return timm's conversion of a file for this network, which is in the module of the network; None without one."""
    return getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)


def _is_timm_name(name: str) -> bool:
    """Return True if timm has a network of this name."""
    import timm

    return timm.is_model(name)


def _timm_name(model: nn.Module) -> str:
    """Return timm's name of the network without a tag; empty if it is not one of timm's."""
    return str((getattr(model, "pretrained_cfg", None) or {}).get("architecture", ""))


def _published_side(model: nn.Module) -> int:
    """Return the fixed input size in pixels of timm's weights of the network, or 0 if they take several sizes."""
    settings = getattr(model, "pretrained_cfg", None) or {}
    return int(settings["input_size"][-1]) if settings.get("fixed_input_size") else 0


def _rename_last_norm(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file with this network's name of the last norm of a vision transformer.

    It is `norm` before the pooling of the class token, and `fc_norm` after other poolings.
    """
    state = model.state_dict()
    for old, new in (("norm.", "fc_norm."), ("fc_norm.", "norm.")):
        if f"{new}weight" in state.keys() - tensors.keys() and f"{old}weight" in tensors.keys() - state.keys():
            tensors = {new + key[len(old) :] if key.startswith(old) else key: value for key, value in tensors.items()}
    return tensors


def _resize_positions(match: _Match, model: nn.Module) -> _Match:
    """Interpolate position embeddings of another input size, as timm does for its published weights."""
    state = model.state_dict()
    mismatched = [key for key, value in match.tensors.items() if not _is_compatible(value, state[key])]
    convert = _timm_conversion(model)
    if convert is None or not any("pos" in key for key in mismatched):
        return match
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the memory layout of timm's tensors
        try:
            converted = convert(dict(match.tensors), model)
        except RuntimeError:  # another number of tokens before those of the patches
            return match
    resized = {key: converted.get(key, match.tensors[key]) for key in mismatched if "pos" in key}
    return dataclasses.replace(match, tensors={**match.tensors, **resized})


def _is_compatible(found: Tensor, expected: Tensor) -> bool:
    """Return True if the two have the same shape and are both floating point, or both not."""
    return found.shape == expected.shape and found.is_floating_point() == expected.is_floating_point()


def _require_same_network(
    path: Path, found: Mapping[str, dict[str, Tensor]], model: nn.Module, match: _Match | None, head: set[str]
) -> None:
    """Raise an error unless the file has the tensors of the network's body, and no more layers.

    Raises:
        DataError: tensors are missing, of another shape, or surplus. The hint names the network that the file fits.
    """
    state = model.state_dict()
    tensors = match.tensors if match else {}
    counters = {key for key in state if key.endswith("num_batches_tracked")}
    missing = sorted(key for key in state if key not in tensors and key not in head | counters)
    body = [key for key in state if key in tensors and key not in head | counters]
    mismatched = sorted(key for key in body if not _is_compatible(tensors[key], state[key]))
    if missing or mismatched:
        what = _describe_mismatch(found, state, tensors, missing, mismatched)
    elif match and match.unmatched_body:
        surplus = match.unmatched_body
        what = f"{format_count(len(surplus), 'tensor')} that the network does not have ({name_few(surplus)})"
    else:
        return
    if part := re.search(r"-0*(\d+)-of-0*(\d+)\.\w+$", path.name):
        raise DataError(f"{path}: part {part[1]} of {part[2]}", "expected all weights in one file", "Join the parts")
    names = [key for tensors in found.values() for key in tensors]
    cause, advice = _explain_names(names, missing, path) if missing else ("", "")
    fitting = "" if cause or advice else _find_fitting_network(found)
    fitting = "" if fitting == _timm_name(model) else fitting
    differs_in_few = not missing and 2 * len(mismatched) < len(body)
    if not (fitting or cause or advice) and differs_in_few and (own_side := _published_side(model)):
        hint = f"Check --model. Its published weights are for --resolution {own_side}"
        raise DataError(f"{path}: {what}", "expected weights of the same network and input size", hint)
    hint = f"The file looks like {fitting}: give --model {fitting}, or other --weights" if fitting else advice
    what = f"{what}: {cause}" if cause else what
    raise DataError(f"{path}: {what}", "expected weights of the same network", hint or "Check --model and --weights")


def _describe_mismatch(
    found: Mapping[str, dict[str, Tensor]],
    state: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    missing: list[str],
    mismatched: list[str],
) -> str:
    """Describe which tensors of the network are missing or have another shape, and what the file has instead."""
    parts = []
    if missing:
        parts.append(f"{format_count(len(missing), 'layer')} missing ({name_few(missing)})")
    if 2 * len(missing) > len(state):
        largest = max(found.values(), key=len)
        parts.append(f"the file has {format_count(len(largest), 'tensor')} ({name_few(largest)})")
    if mismatched:
        shown = [f"{key} is {_describe_shape(tensors[key])}, not {_describe_shape(state[key])}" for key in mismatched]
        parts.append(f"{len(mismatched)} with another shape ({name_few(shown)})")
    return ", ".join(parts)


def _describe_shape(tensor: Tensor) -> str:
    """Return the shape of a tensor, such as 64x3x7x7, with its type if that is no floating-point type."""
    shape = "x".join(map(str, tensor.shape)) or "one number"
    if tensor.is_quantized:
        return f"{shape} quantised"
    return shape if tensor.is_floating_point() else f"{shape} of {str(tensor.dtype).removeprefix('torch.')}"


def _require_values(path: Path, tensors: Mapping[str, Tensor], head: set[str]) -> None:
    """Raise an error if a tensor has no values, NaN or infinite values, or if a layer outside `head` is all zero.

    Raises:
        DataError: names the first such tensors.
    """
    empty = [key for key, value in tensors.items() if value.is_meta]
    broken = [key for key, value in tensors.items() if not value.is_meta and not torch.isfinite(value).all()]
    layers = {key: value for key, value in tensors.items() if value.ndim > 1 and key.endswith("weight")}
    zero = [key for key, value in layers.items() if key not in head | {*empty, *broken} and not value.any()]
    for names, what, expected, hint in (
        (empty, "without values", "the values of each tensor", "Save it again from a network with values"),
        (broken, "with NaN or infinite values", "finite weights", "Take an earlier checkpoint, or download it again"),
        (zero, "of zeros only", "trained weights", "The download may be incomplete: download the file again"),
    ):
        if names:
            found = f"{path}: {format_count(len(names), 'tensor')} {what} ({name_few(names)})"
            raise DataError(found, f"expected {expected}", hint)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a weight file by name. Never executes code from the file.

    Raises:
        DataError: the file is damaged, or is not a weight file.
    """
    return _parse_weights(_read_content(path), path)


def _read_content(path: Path) -> bytes:
    """Return the bytes of the file.

    Raises:
        DiskError: the file does not exist or cannot be read.
    """
    with explain_disk_errors(path):
        return path.read_bytes()
