"""Match the tensor names in a file with those of a network: prefixes, other names of layers, and leftovers."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from claris_kaggle.models.factory import _CLASS_COUNT

# Names of averaged and of best weights, which are preferred, and of the slow copies that MoCo and BYOL do not publish.
_AVERAGED = re.compile(r"(^|[._])(ema|teacher|averaged|swa|best)([._]|$)")
_SLOW_COPY = re.compile(r"(^|[._])(momentum\w*|encoder_k|key_encoder|target\w*|student)([._]|$)")
# First parts of names that belong to the head of another task, in any network.
_HEAD_NAMES = re.compile(
    r"(fc\w*|heads?\w*|classifier\w*|last_linear|logits|aux\w*|proj\w*|pred\w*|prototypes|mlp|queue\w*|decoder\w*)$",
    re.IGNORECASE,
)
# First parts of names of a network's body. Only pretraining needs mask_token.
_BODY_NAMES = re.compile(
    r"(?!mask_token)(\w+_tokens?|(ln|norm|bn|conv)_?(pre|post|\d+)?|pos_embed\w*|rope\w*|stem\w*|patch_embed\w*)$"
)
# Parts of names that wrappers of torch add inside a network: DataParallel of a part, FSDP, torch.compile and activation
# checkpoints.
_WRAPPERS = re.compile(r"(?<=\.)(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Last parts of names that hold no weights: counters, results of profilers, and constants of attention layers.
_NO_WEIGHT_ENDINGS = (
    "num_batches_tracked",
    "total_ops",
    "total_params",
    "relative_position_index",
    "attn_mask",
    "n_averaged",
)
# Networks that the weights of another network are compared with, and their number of tensors without counters.
_COMMON_NETWORKS = {
    "resnet18": 102, "resnet34": 182, "resnet50": 267, "resnet101": 522, "resnet152": 777,
    "wide_resnet50_2": 267, "resnext50_32x4d": 267,
    "densenet121": 606, "densenet169": 846, "densenet201": 1006, "densenet161": 806,
    "convnext_nano": 146, "convnext_tiny": 182, "convnext_small": 344, "convnext_base": 344,
    "efficientnet_b0": 311, "efficientnet_b1": 439, "efficientnet_b2": 439, "efficientnet_b3": 496,
    "efficientnet_b4": 610, "mobilenetv3_large_100": 266,
    "vit_tiny_patch16_224": 152, "vit_small_patch16_224": 152, "vit_base_patch16_224": 152,
    "swin_tiny_patch4_window7_224": 173, "swin_small_patch4_window7_224": 329,
    "vgg11": 22, "vgg13": 26, "vgg16": 32, "vgg19": 38,
}  # fmt: skip
_HEAD_TENSORS = 12  # at most, in a file with another head
_TIMM_FILE = "Give the weights of the same network in timm's format, if there are any: claris models lists networks"
# Names in files that no network here has, with what they are and what to do.
_OTHER_FORMS = {
    re.compile(r"(^|\.)(exp_avg|momentum_buffer|max_exp_avg_sq)$"): (
        "the state of an optimizer", "Give the file of the weights, often named model or pytorch_model"
    ),
    re.compile(r"_packed_params|\.zero_point$"): ("quantised weights", "Give the weights before quantisation"),
    re.compile(r"\.weight_(orig|mask)$"): (
        "pruned weights", "Call torch.nn.utils.prune.remove for each layer where it was made, and save it again"
    ),
    re.compile(
        r"(^|\.)(layer|block)\.\d+\.(\d+\.)?attention\.|encoder\.stages\.\d+\.layers\.|embedder\.convolution\."
        r"|encoder\.layers\.\d+\.(blocks\.\d+\.attention\.|self_attn\.[qkv]_proj)|expansion\.expand_conv\."
        r"|patch_embeddings\.projection\."
    ): ("names of Hugging Face transformers", _TIMM_FILE),
    re.compile(r"\.ln1\.|\.attn\.w_msa\.|\.ffn\.layers\.\d|\.(depthwise|pointwise|linear)_conv\d?\."): (
        "names of OpenMMLab", _TIMM_FILE
    ),
    re.compile(r"(^|\.)features\.\d+\.\d+\.(block|attn|mlp)\.|\.encoder_layer_\d+\."): (
        "names of torchvision", _TIMM_FILE
    ),
    re.compile(r"(^|\.)(_conv_stem|_blocks\.\d+)\."): ("names of the package efficientnet_pytorch", _TIMM_FILE),
    re.compile(r"(^|\.)lora_[ABab](\.|$)"): (
        "an adapter (LoRA), not the whole network", "Merge it into the network where it was made, and save that"
    ),
    re.compile(r"(^|[./])(kernel|moving_mean)(:0)?$"): (
        "names of Keras, TensorFlow or Flax", "Convert it to PyTorch, or give other weights"
    ),
}  # fmt: skip
# Repositories in the format of Hugging Face transformers, and timm's name of the same weights. Both were converted from
# one file of the authors: its address is in timm's settings, and in the conversion script of transformers.
_SAME_WEIGHTS = {
    "facebook/convnext-tiny-224": "convnext_tiny.fb_in1k",
    "facebook/convnext-small-224": "convnext_small.fb_in1k",
    "facebook/convnext-base-224": "convnext_base.fb_in1k",
    "facebook/dinov2-small": "vit_small_patch14_dinov2.lvd142m",
    "facebook/dinov2-base": "vit_base_patch14_dinov2.lvd142m",
    "facebook/dinov2-large": "vit_large_patch14_dinov2.lvd142m",
}


@dataclass(frozen=True)
class _Match:
    """The tensors of a file under the names of a network.

    Attributes:
        key_path: the keys of the dict in the file, such as `state_dict`.
        prefix: the part before the network's names, such as `module.`.
        tensors: the matched tensors by the network's names.
        unmatched_body: names of tensors in layers of a body that the network does not have.
        unmatched_other: names of tensors of other parts, such as a decoder.
    """

    key_path: str
    prefix: str
    tensors: dict[str, Tensor]
    unmatched_body: list[str]
    unmatched_other: list[str]

    @property
    def label(self) -> str:
        """The key path and the prefix as one text; empty for plain names at the top of the file."""
        return f"{self.key_path}.{self.prefix}".strip(".")


def _find_head(state: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the classifier's tensors. It is a linear layer, or a convolution of 1 x 1 (DPN, BiT)."""
    return {
        key
        for key, value in state.items()
        if value.shape[:1] == (_CLASS_COUNT,) and (value.ndim <= 2 or value.shape[2:] == (1, 1))
    }


def _match_names(found: Mapping[str, Mapping[str, Tensor]], model: nn.Module) -> list[_Match]:
    """Return the matches with the highest number of tensors, the preferred one first.

    Args:
        found: the dicts of tensors in a file, by their key path.
        model: the network.
    """
    head = _find_head(model.state_dict())
    matches = [
        _match_alias(key_path, {_current_name(key): value for key, value in tensors.items()}, prefix, alias, head)
        for key_path, tensors in found.items()
        for alias in _aliases(model, head)
        for prefix in _best_prefixes(tensors, alias)
    ]
    highest = max((len(match.tensors) for match in matches), default=0)
    best: dict[str, _Match] = {}
    for match in matches:
        if len(match.tensors) == highest:
            best.setdefault(match.label, match)  # the first naming that fits
    return sorted(
        best.values(), key=lambda match: (-_preference(match.label), len(match.unmatched_body), len(match.prefix))
    )


def _preference(label: str) -> int:
    """Return the preference of a network in a file: 2 for averaged weights, 0 for slow copies, else 1."""
    return 2 if _AVERAGED.search(label.lower()) else 0 if _SLOW_COPY.search(label.lower()) else 1


def _current_name(key: str) -> str:
    """Convert a tensor name of older torchvision files to today's name, and remove the parts of wrappers inside it."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)", r"\1\2", _WRAPPERS.sub("", key))


def _aliases(model: nn.Module, head: set[str]) -> list[dict[str, str]]:
    """Return dicts from the names that other programs use to the network's tensor names, one for each naming scheme.

    A body that was built as nn.Sequential of the network's children has numbers instead of names (fastai, TIAToolbox).
    A network that was saved as its `features` alone has no such first part.
    """
    names = list(model.state_dict())
    aliases = [{name: name for name in names}, _number_children(model, names, "")]
    containers = {name.split(".")[0] for name in names if name not in head}
    if len(containers) == 1:
        (container,) = containers
        start = f"{container}."
        aliases.append({name.removeprefix(start): name for name in names})
        numbered = _number_children(getattr(model, container), [name.removeprefix(start) for name in names], start)
        aliases.append({alias: name for alias, name in numbered.items() if name in set(names)})
    return [alias for number, alias in enumerate(aliases) if alias not in aliases[:number]]


def _number_children(module: nn.Module, names: list[str], start: str) -> dict[str, str]:
    """Map names in which the first layer has its number instead of its name to the network's names, after `start`."""
    numbers = {name: str(number) for number, (name, _) in enumerate(module.named_children())}
    split = [name.split(".", 1) for name in names]
    return {".".join([numbers.get(first, first), *rest]): start + ".".join([first, *rest]) for first, *rest in split}


def _best_prefixes(tensors: Mapping[str, Tensor], alias: Mapping[str, str]) -> list[str]:
    """Return the prefixes under which the highest number of names is in the file."""
    counts: Counter[str] = Counter()
    for key in map(_current_name, tensors):
        parts = key.split(".")
        for position in range(len(parts)):
            if ".".join(parts[position:]) in alias:
                counts["".join(f"{part}." for part in parts[:position])] += 1
    highest = max(counts.values(), default=0)
    return [prefix for prefix, count in counts.items() if count == highest]


def _match_alias(
    key_path: str, tensors: Mapping[str, Tensor], prefix: str, alias: Mapping[str, str], head: set[str]
) -> _Match:
    """Return the match of one naming scheme and one prefix. Unmatched tensors are of the body or of other parts."""
    candidates = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    matched = {alias[key]: value for key, value in candidates.items() if key in alias}
    body_names = {key.split(".")[0] for key, name in alias.items() if name not in head}
    head_names = {key.split(".")[0] for key, name in alias.items() if name in head}
    numbered = {re.sub(r"\d+", "#", top) for top in body_names}
    unmatched_body: list[str] = []
    unmatched_other: list[str] = []
    for key in candidates.keys() - alias.keys():
        first = key.split(".")[0]
        if key.rsplit(".", 1)[-1] in _NO_WEIGHT_ENDINGS or first in head_names or _is_other_head(first, body_names):
            continue
        is_body = first in body_names or re.sub(r"\d+", "#", first) in numbered or _BODY_NAMES.match(first)
        (unmatched_body if is_body else unmatched_other).append(key)
    order = {key: number for number, key in enumerate(candidates)}
    return _Match(
        key_path,
        prefix,
        matched,
        sorted(unmatched_body, key=order.__getitem__),
        sorted(unmatched_other, key=order.__getitem__),
    )


def _is_other_head(first: str, body_names: set[str]) -> bool:
    """Return True if the first part of a name is that of a head, and of no layer of the network."""
    return first not in body_names and bool(_HEAD_NAMES.match(first))


def _explain_names(keys: Sequence[str], missing: Sequence[str], path: Path) -> tuple[str, str]:
    """Return what tensors with these names are and what to do; empty texts if that is not known.

    Args:
        keys: names in a file.
        missing: names of the network that are not in the file.
        path: the file. Its name, or those of its folders, can name a repository.
    """
    for pattern, (what, advice) in _OTHER_FORMS.items():
        if any(pattern.search(key) for key in keys):
            return what, _name_same_weights(path) if advice == _TIMM_FILE else advice
    if missing and all(key.endswith(("running_mean", "running_var")) for key in missing):
        return "", "If the network is the same, save its state_dict(), which has them, instead of its parameters()"
    return "", ""


def _name_same_weights(path: Path) -> str:
    """Return what to give instead of a file that is not in timm's format, by the name of its repository."""
    names = {part.removeprefix("models--").replace("--", "/") for part in (*path.parts, path.stem)}
    for repository, name in _SAME_WEIGHTS.items():
        if names & {repository, repository.split("/")[1]}:
            return f"timm has the weights of {repository}: give --model {name} --weights imagenet"
    return _TIMM_FILE


def _find_fitting_network(found: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Return timm's name of a common network that the tensors in the file fit; empty if there is none."""
    sizes = [sum(not key.endswith(_NO_WEIGHT_ENDINGS) for key in tensors) for tensors in found.values()]
    for name, size in _COMMON_NETWORKS.items():
        # A file may hold a network twice. Creating only networks of the right size saves seconds.
        if all(abs(total // copies - size) > _HEAD_TENSORS for total in sizes for copies in (1, 2)):
            continue
        model = _create_without_values(name)
        state = model.state_dict()
        required = {key for key in state if not key.endswith(_NO_WEIGHT_ENDINGS)} - _find_head(state)
        for match in _match_names(found, model)[:1]:
            fits = all(key in match.tensors and match.tensors[key].shape == state[key].shape for key in required)
            if fits and not match.unmatched_body:
                return name
    return ""


@functools.lru_cache(maxsize=len(_COMMON_NETWORKS))
def _create_without_values(name: str) -> nn.Module:
    """Return the network without values: tensors on the meta device."""
    import timm

    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=_CLASS_COUNT)
    return model
