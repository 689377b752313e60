"""Networks by timm's name, from a Hugging Face repository or from a local folder, with their published settings.

A repository or folder is in timm's own format: `config.json` with the architecture and the settings of its training,
and `model.safetensors`. A run stores the architecture, so that it needs neither folder nor network afterwards.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import ClarisError, DataError, UsageError, name_few
from claris_kaggle.core.files import read_json

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

_HUB, _FOLDER = "hf-hub:", "local-dir:"  # timm's prefixes
_CONFIG_NAME, _WEIGHTS_NAME = "config.json", "model.safetensors"
_HUB_SECONDS, _CONNECT_SECONDS = "10", 4.0


@dataclass(frozen=True)
class _Architecture:
    """The arguments with which timm creates a network.

    Attributes:
        name: timm's name of the architecture.
        arguments: arguments of the constructor that differ from timm's.
    """

    name: str
    arguments: dict[str, Any]


def canonical_name(model: str) -> str:
    """Return the name with its prefix: a path of a folder becomes `local-dir:FOLDER`, `hf_hub:` becomes `hf-hub:`."""
    if model.startswith("hf_hub:"):
        return _HUB + model.partition(":")[2]
    if _is_source(model) or model == "tiny":
        return model
    import timm

    if timm.is_model(model):
        return model
    looks_like_path = "/" in model or "\\" in model or (Path(model) / _CONFIG_NAME).is_file()
    return _FOLDER + str(Path(model).expanduser()) if looks_like_path else model


def portable_name(model: str) -> str:
    """Return the name without the path of a local folder."""
    return _FOLDER + Path(model.removeprefix(_FOLDER)).name if model.startswith(_FOLDER) else model


def read_architecture(model: str) -> str:
    """Return the architecture of a repository or folder as JSON text; empty for timm's names and `tiny`.

    Raises:
        UsageError: the folder or repository has no network of timm, or its network takes no RGB images.
        ClarisError: the repository is not in the local cache and cannot be downloaded.
    """
    if not _is_source(model):
        return ""
    _, name, arguments = _read_source(model)
    stored = {key: value for key, value in sorted(arguments.items()) if key != "num_classes"}
    if stored.pop("in_chans", 3) != 3:
        raise UsageError(f"--model {model}: {arguments['in_chans']} input channels", "expected 3 (RGB)")
    return json.dumps({"name": name, "arguments": stored})


def _parse_architecture(model: str, text: str) -> _Architecture:
    """Return the architecture of a network.

    Args:
        model: name of the network.
        text: from `read_architecture`; empty reads it now.
    Raises:
        UsageError, ClarisError: as in `read_architecture`, or timm has no such architecture.
        DataError: the text is damaged.
    """
    text = text or read_architecture(model)
    if not text:
        _require_known(model)
        return _Architecture(model, {})
    try:
        content = json.loads(text)
        found = _Architecture(str(content["name"]), dict(content["arguments"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"architecture of {model}: {text!r}", "expected JSON with name and arguments") from error
    _require_known(found.name, model)
    return found


def _pretrained_settings(model: str) -> PretrainedCfg | None:
    """Return the settings of a network's published weights; None if there are none, as for `tiny`."""
    if model == "tiny":
        return None
    import timm
    from timm.models import PretrainedCfg

    if not _is_source(model):
        return timm.models.get_pretrained_cfg(model)
    settings = _read_source(model)[0]
    fields = {key: value for key, value in settings.items() if key in PretrainedCfg.__dataclass_fields__}
    return PretrainedCfg(**fields)


def _find_published(model: str) -> Path:
    """Return the file of the published weights, from the folder, the local cache or by download.

    Raises:
        UsageError: there are no published weights of this network.
        ClarisError: the weights are not in the local cache and cannot be downloaded.
    """
    if model.startswith(_FOLDER):
        path = Path(model.removeprefix(_FOLDER)) / _WEIGHTS_NAME
        if not path.is_file():
            raise UsageError(f"{path}: no such file", "expected the weights of the network", "Give --weights FILE")
        return path
    repository = require_imagenet(model)
    cached = _find_cached(repository, _WEIGHTS_NAME)
    if cached:
        return cached
    log_info(f"downloading the {'' if _is_source(model) else 'ImageNet '}weights of {model}")
    try:
        return _download(repository, _WEIGHTS_NAME)
    except Exception as error:  # without a network the client raises many exception types, depending on its version
        raise ClarisError(
            f"--weights imagenet: the weights of {model} are not cached and could not be downloaded "
            f"({type(error).__name__})",
            "",
            "Use --weights none to train from scratch, or --weights FILE with downloaded weights",
        ) from error


def require_imagenet(model: str) -> str:
    """Return the repository of the published weights of a network.

    Raises:
        UsageError: there is no such network, or it has no published weights in a repository.
    """
    if model.startswith(_HUB):
        return model.removeprefix(_HUB)
    import timm

    settings = None
    if model != "tiny" and not _is_source(model):
        _require_known(model)
        settings = timm.models.get_pretrained_cfg(model)
    if settings is None or not settings.hf_hub_id:
        raise UsageError(
            f"--weights imagenet: timm has no ImageNet weights for {model}", "", "Give --weights none, or a file"
        )
    return str(settings.hf_hub_id)


def _find_cached(repository: str, file: str = _WEIGHTS_NAME) -> Path | None:
    """Return a file of a Hugging Face repository from the local cache; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = repository.partition("@")
    found = try_to_load_from_cache(name, file, revision=revision or None)
    return Path(found) if isinstance(found, str) else None


def _download(repository: str, file: str) -> Path:
    """Download a file of a repository, `owner/name` or `owner/name@revision`. The client raises many exceptions."""
    # Short timeouts: without a network connection the client would otherwise retry for minutes.
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", _HUB_SECONDS)
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", _HUB_SECONDS)
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    # Hide the client's messages about retries. It sets its own log level on import, so this comes after the import.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    name, _, revision = repository.partition("@")
    # Fails at once without a connection or repository. The download itself retries for half a minute.
    get_hf_file_metadata(hf_hub_url(name, file, revision=revision or None), timeout=_CONNECT_SECONDS)
    return Path(hf_hub_download(name, file, revision=revision or None))


def _is_source(model: str) -> bool:
    """Return True for the name of a repository or folder."""
    return model.startswith((_HUB, _FOLDER))


def _read_source(model: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Return the settings of the weights, timm's name of the architecture, and its arguments.

    Raises:
        UsageError: the file is missing, or not in timm's format.
        ClarisError: the file is not in the local cache and cannot be downloaded.
    """
    path = _find_config(model)
    try:
        content = read_json(path)
        settings = content.get("pretrained_cfg", content)  # older files have all keys in one level
        return dict(settings), str(content["architecture"]), dict(content.get("model_args") or {})
    except (DataError, KeyError, TypeError, ValueError) as error:
        found = f"--model {model}: its {_CONFIG_NAME} is not in timm's format"
        raise UsageError(
            found, "expected the keys architecture and pretrained_cfg", "Give a network of timm"
        ) from error


def _find_config(model: str) -> Path:
    """Return the path of the config.json of a repository or folder.

    Raises:
        UsageError: the folder has none, or the repository has no valid name.
        ClarisError: the file is not in the local cache and cannot be downloaded.
    """
    if model.startswith(_FOLDER):
        path = Path(model.removeprefix(_FOLDER)) / _CONFIG_NAME
        if not path.is_file():
            expected = f"expected a folder with {_CONFIG_NAME} and {_WEIGHTS_NAME}"
            hint = "Check the path; a repository is hf-hub:owner/name"
            raise UsageError(f"--model {model}: no {_CONFIG_NAME} there", expected, hint)
        return path
    from huggingface_hub.utils import HFValidationError

    repository = model.removeprefix(_HUB)
    try:
        return _find_cached(repository, _CONFIG_NAME) or _download(repository, _CONFIG_NAME)
    except HFValidationError as error:
        raise UsageError(f"--model is {model!r}", "expected hf-hub:OWNER/NAME, a repository on Hugging Face") from error
    except Exception as error:  # as in `_find_published`
        found = f"--model {model}: {_CONFIG_NAME} is not cached and could not be downloaded ({type(error).__name__})"
        hint = "Check the name and the network connection, or give a downloaded folder as --model"
        raise ClarisError(found, "", hint) from error


def _require_known(name: str, source: str = "") -> None:
    """Raise an error if timm has no network of that name.

    Raises:
        UsageError: unknown timm model. The message suggests similar names.
    """
    import timm

    if timm.is_model(name):
        return
    similar = get_close_matches(name.split(".")[0], timm.list_models(), 3) or timm.list_models(f"*{name[:8]}*")
    hint = f"Similar names: {name_few(similar)}" if similar else "Try densenet121"
    found = f"--model is {name!r}" if not source or source == name else f"--model {source} is a {name!r}"
    raise UsageError(found, "unknown timm model", hint)
