"""The frozen training config. Flags, validation and JSON are derived from its fields.

The config defines the result. How a run is executed (processes, workers, folders, time limit) is not part of it, so
two runs with equal configs are comparable on any machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from claris_kaggle.core.errors import DataError, RunError, UsageError
from claris_kaggle.core.presets import _PRESETS, _choose_preset, _preset_for
from claris_kaggle.version import __version__

PRECISIONS = ("auto", "fp32", "fp16", "bf16")
# cuDNN settings, from fast to safe: autotuning with channels-last tensors, channels-last only, neither.
CUDNN_MODES = ("default", "no-autotune", "contiguous")
COMPILE_MODES = ("never", "auto", "always")
_SCHEDULES = ("onecycle", "cosine", "constant")
_SELECTIONS = ("last", "best")
_AUGMENTATIONS = ("none", "light", "strong")
_GEOMETRIES = ("d4", "flips")
_NORMALISATIONS = ("model", "patches", "imagenet", "inception", "clip", "dpn", "none")
_STEMS = ("pool", "pool4", "no-pool")
_TAILS = ("pool", "no-pool")
_EQUIVARIANCES = ("none", "p4m")
# Global pooling by timm's names, and generalised mean pooling; empty: the network's own.
POOLINGS = ("avg", "max", "avgmax", "catavgmax", "gem")
# Channel means and standard deviations as numbers: `0.5,0.5,0.5/0.25,0.25,0.25`.
_NUMBER = r"[0-9]+(\.[0-9]+)?(e-?[0-9]+)?"
_STATISTICS_TEXT = ",".join([_NUMBER] * 3) + "/" + ",".join([rf"(?=[0-9.]*[1-9]){_NUMBER}"] * 3)
# Options of earlier versions with their defaults. A config.json that has them at these values still loads.
_REMOVED_OPTIONS = {"small_share": 0.0, "shift": 0, "pooling": "mean", "cutmix": 0.0, "drop_path": 0.0}
# Options that older versions do not have. A config.json without them is read with their defaults.
_ADDED_OPTIONS = {
    "architecture",
    "augment",
    "clip_grad",
    "dropout",
    "equivariance",
    "extra_sha256",
    "extra_weight",
    "freeze_epochs",
    "global_pool",
    "layer_decay",
    "lr_head",
    "mixup",
    "optimizer",
    "resolution",
    "swa_epochs",
    "swa_lr",
    "tail",
}
# The number of the format of config.json. Format 1 stores neither this number nor the version. Raise it for a change
# that earlier versions would misread, such as a new meaning of a field. A new option does not change it.
_CONFIG_SCHEMA = 2
_GENERATED = "generated_data"
_METADATA_KEYS = {"schema", "claris_kaggle", _GENERATED}
PATCH_SIZE = 96  # the side of a patch, in pixels
CENTRE_SIZE = 32  # the side of the centre square that the label describes, in pixels
MIN_SIDE, _MAX_SIDE = 32, 384  # DenseNet halves the side five times; few timm networks take more than 384
_FlagValue = TypeVar("_FlagValue", str, int, float)
_DEFAULT_BATCH_SIZE, _MIN_BATCH_SIZE, _MIN_STEPS = 128, 16, 30


def default_batch_size(patches: int) -> int:
    """Return the default batch size for a number of training patches.

    Starts at 128, as in the original project, and halves until an epoch has 30 steps. Never below 16.

    Args:
        patches: number of training patches.
    Returns:
        A global batch size from 16 to 128.

    >>> default_batch_size(176_020), default_batch_size(960), default_batch_size(100)
    (128, 32, 16)
    """
    size = _DEFAULT_BATCH_SIZE
    while size > _MIN_BATCH_SIZE and patches < _MIN_STEPS * size:
        size //= 2
    return size


def default_learning_rate(steps: int) -> float:
    """Return the default peak learning rate for fine-tuning.

    Few training steps need a high learning rate; with many steps, a low one preserves the pretrained weights better.
    2e-3 was the best peak for 180 and for 1,000 steps in `docs/recipes.md`. Above 1,000 steps the peak decreases with
    the square root of their number, into the range of published solutions of this competition (1e-4 to 1e-3).

    Args:
        steps: number of training steps in all epochs.
    Returns:
        A peak learning rate from 2e-4 to 2e-3.

    >>> default_learning_rate(180), default_learning_rate(13_750)
    (0.002, 0.00054)
    """
    return float(f"{min(2e-3, max(2e-4, 2e-3 * (1000 / steps) ** 0.5)):.2g}")


def _flag_field(default: _FlagValue, text: str, **limits: object) -> _FlagValue:
    """Return a dataclass field that is also a command-line flag; `limits` are choices, pattern, low or high."""
    return field(default=default, metadata={"help": text, "flag": True, **limits})


def _recorded_field(text: str) -> str:
    """Return a dataclass field that the train command fills in from its inputs."""
    return field(default="", metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The frozen config of a run, written to `config.json`.

    Raises:
        UsageError: a value is not allowed for its field; the message names the flag.
    """

    model: str = _flag_field(
        "densenet121",
        "timm model name, hf-hub:OWNER/NAME, a folder in timm's format (config.json, model.safetensors), or `tiny` "
        "for quick trials",
    )
    weights: str = _flag_field(
        "imagenet",
        "initial weights: imagenet (the published weights of the network), none (random), or a file "
        "(.safetensors, .pth)",
    )
    batch_size: int = _flag_field(
        0, "global batch size (over all processes); 0: 128, or less for small data sets and to fit a T4's memory", low=0
    )
    preset: str = _flag_field(
        "auto", "sets the defaults of the options below; auto: pretrained, or scratch with --weights none",
        choices=("auto", *_PRESETS),
    )  # fmt: skip
    epochs: int = _flag_field(6, "number of passes over the training patches", low=1)
    lr: float = _flag_field(1e-4, "peak learning rate; 0: chosen from the number of steps", low=0, high=1)
    schedule: str = _flag_field("onecycle", "learning rate schedule", choices=_SCHEDULES)
    lr_head: float = _flag_field(
        1.0, "factor for the learning rate of the classifier, which starts from random weights", low=0.01, high=1000
    )
    layer_decay: float = _flag_field(
        1.0,
        "layer-wise learning rate decay from the last layer to the first; 1: no decay",
        low=0.1,
        high=1,
    )
    freeze_epochs: int = _flag_field(0, "number of initial epochs that train only the classifier", low=0)
    clip_grad: float = _flag_field(0.0, "maximum gradient norm for clipping; 0: no clipping", low=0)
    optimizer: str = _flag_field("adamw", "optimizer, by timm's name: adamw, sgd, lion, lamb and others")
    weight_decay: float = _flag_field(
        0.0, "weight decay, decoupled with adamw; 0 with adamw: plain Adam", low=0, high=10
    )
    augment: str = _flag_field(
        "light",
        "augmentation: none; light (--geometry, --color and --stain only); or strong, which adds scaling, distortion, "
        "HSV, gamma, CLAHE and holes to them",
        choices=_AUGMENTATIONS,
    )
    geometry: str = _flag_field(
        "d4",
        "augmentation: d4 (flips and 90-degree rotations), or flips with rotations of up to 20 degrees",
        choices=_GEOMETRIES,
    )
    color: float = _flag_field(0.0, "strength of the colour augmentation; 0: none", low=0, high=4)
    stain: float = _flag_field(0.0, "strength of the H&E stain augmentation in optical density; 0: none", low=0, high=1)
    normalise: str = _flag_field(
        "patches", "channel mean and standard deviation; model: those of the network's published weights",
        choices=_NORMALISATIONS, pattern=_STATISTICS_TEXT,
    )  # fmt: skip
    crop: int = _flag_field(PATCH_SIZE, "side of the centre crop in pixels", low=MIN_SIDE, high=PATCH_SIZE)
    resolution: int = _flag_field(
        0,
        "input size in pixels; patches are resized (bilinear up, area averaging down); 0: crop size",
    )
    stem: str = _flag_field(
        "pool",
        "first pooling of a DenseNet: pool, pool4 (a quarter of the compute), or no-pool (four times the compute)",
        choices=_STEMS,
    )
    tail: str = _flag_field(
        "pool", "last pooling between blocks of a DenseNet: pool, or no-pool for small patches", choices=_TAILS
    )
    equivariance: str = _flag_field(
        "none", "p4m: share weights among the eight symmetries of the square; needs --weights none and --crop 93",
        choices=_EQUIVARIANCES,
    )  # fmt: skip
    global_pool: str = _flag_field(
        "", "global pooling before the classifier; gem: generalised mean; empty: the network's own",
        choices=("", *POOLINGS),
    )  # fmt: skip
    dropout: float = _flag_field(
        0.0, "dropout before the classifier (timm's drop_rate); 0: the network's own", low=0, high=0.9
    )
    class_weight: float = _flag_field(
        1.0, "weight of malignant patches in the loss, relative to benign ones", low=0.01, high=100
    )
    label_smoothing: float = _flag_field(0.0, "label smoothing, as in PyTorch", low=0, high=0.5)
    mixup: float = _flag_field(0.0, "alpha of mixup's Beta distribution; 0: no mixup", low=0, high=10)
    ema: float = _flag_field(
        0.0, "decay of the EMA of the weights, which is used for prediction; lower in the first steps; 0: no EMA",
        low=0, high=1,
    )  # fmt: skip
    swa_epochs: int = _flag_field(
        0,
        "number of epochs after the schedule whose weights are averaged for prediction (SWA); needs --ema 0; 0: no SWA",
        low=0,
    )
    # 0.1 to 0.5 in the experiments of Izmailov et al. 2018 (github.com/timgaripov/swa)
    swa_lr: float = _flag_field(
        0.2, "constant learning rate of the SWA epochs, as a fraction of the peak", low=0.001, high=1
    )
    extra_weight: float = _flag_field(
        0.5, "weight of a pseudo-labelled patch of --extra in the loss, relative to a training patch", low=0.01, high=10
    )
    select: str = _flag_field(
        "last", "epoch whose weights are used: last, or best by validation AUC", choices=_SELECTIONS
    )
    precision: str = _flag_field("auto", "precision; auto: fp16 on a GPU, fp32 on a CPU", choices=PRECISIONS)
    seed: int = _flag_field(0, "seed of all random numbers", low=0, high=2**31 - 1)
    threads: int = _flag_field(0, "CPU threads per process; 0: number of cores / number of processes", low=0)
    architecture: str = _recorded_field("JSON text of a network from hf-hub or a folder: timm's name and arguments")
    weights_sha256: str = _recorded_field("SHA-256 of the file of starting weights")
    data_sha256: str = _recorded_field("digest of the training ids and labels")
    folds_sha256: str = _recorded_field("digest of the fold file's content")
    extra_sha256: str = _recorded_field("digest of the pseudo-labels of a second round; empty for none")

    def __post_init__(self) -> None:
        """Validate all fields."""
        for item in dataclasses.fields(self):
            _check_value(item, getattr(self, item.name))
        _check_normalisation(self)
        _check_sides(self)
        _check_combinations(self)

    @property
    def side(self) -> int:
        """The input size of the network in pixels, after crop and resolution."""
        return self.resolution or self.crop

    @property
    def min_side(self) -> int:
        """The smallest input size in pixels that leaves at least one cell in the last feature map."""
        return 2 * MIN_SIDE if self.stem == "pool4" and self.tail == "pool" else MIN_SIDE

    def to_json(self) -> dict[str, object]:
        """Return all fields as plain values."""
        return dataclasses.asdict(self)

    def to_stored_json(self, *, generated: bool) -> dict[str, object]:
        """Return the content of `config.json`: all fields, the format and the version that writes it.

        Args:
            generated: True if the patches are synthetic.
        """
        about = {"schema": _CONFIG_SCHEMA, "claris_kaggle": __version__, **generated_mark(generated)}
        return {**about, **self.to_json()}

    @classmethod
    def from_json(cls, content: Mapping[str, object], source: object) -> TrainConfig:
        """Return the config in the content of `to_json` or `to_stored_json`; `source` is the file that messages name.

        Options that are missing in older files get their defaults, which reproduce the behaviour of older versions.

        Raises:
            DataError: the file is of a later format, or a field is unknown, missing or of the wrong type. An unknown
                option may change the result, so it is never ignored.
        """
        _require_known_schema(content, source)
        options = _without_removed_options(without_metadata(content), source)
        field_names = {item.name for item in dataclasses.fields(cls)}
        unknown, missing = sorted(set(options) - field_names), sorted(field_names - set(options) - _ADDED_OPTIONS)
        if unknown or missing:
            parts = ("unknown", unknown), ("missing", missing)
            problem = " and ".join(f"{kind} fields {', '.join(names)}" for kind, names in parts if names)
            raise DataError(f"{source}: {problem}", _name_versions(content), _SCHEMA_HINT)
        defaults = {item.name: item.default for item in dataclasses.fields(cls) if item.name in _ADDED_OPTIONS}
        try:
            return _create_config({**defaults, **options})
        except (UsageError, TypeError) as error:
            raise DataError(f"{source}: {error}", "", "Start a new run folder") from error


_SCHEMA_HINT = "Use the claris version that wrote it, or a new --run folder"


def generated_mark(generated: bool) -> dict[str, object]:
    """Return the part of a `config.json` or `metrics.json` that says that the patches are synthetic, if they are."""
    return {_GENERATED: True} if generated else {}


def is_generated(content: Mapping[str, object]) -> bool:
    """Return True if the content of a `config.json` or `metrics.json` says that the patches are synthetic."""
    return bool(content.get(_GENERATED))


def without_metadata(content: Mapping[str, object]) -> dict[str, object]:
    """Return the options in the content of a `config.json`: without format, version and the mark of synthetic data."""
    return {name: value for name, value in content.items() if name not in _METADATA_KEYS}


def _name_versions(content: Mapping[str, object]) -> str:
    """Return the version that wrote a config.json and this version, as text."""
    written = content.get("claris_kaggle")
    return f"written by claris {written}, and this is {__version__}" if written else f"this is claris {__version__}"


def _require_known_schema(content: Mapping[str, object], source: object) -> None:
    """Reject a config.json of a later format.

    Raises:
        DataError: names both versions.
    """
    schema = content.get("schema", 1)
    if not isinstance(schema, int) or not 1 <= schema <= _CONFIG_SCHEMA:
        found = f"{source}: config of format {schema!r}, {_name_versions(content)}"
        raise DataError(found, f"expected format 1 to {_CONFIG_SCHEMA}", "Use the claris version that wrote it")


def _without_removed_options(content: Mapping[str, object], source: object) -> dict[str, object]:
    """Return the content of a config.json without the options that no longer exist.

    Raises:
        DataError: one of them is not at its default, so the run cannot be repeated.
    """
    changed = [
        f"{name} {content[name]!r}"
        for name, default in _REMOVED_OPTIONS.items()
        if content.get(name, default) != default
    ]
    if changed:
        found = f"{source}: trained with {', '.join(changed)}"
        raise DataError(found, "this option was removed", "Use the version that trained the run")
    return {name: value for name, value in content.items() if name not in _REMOVED_OPTIONS}


def require_resolution(side: int, expected: str = f"{MIN_SIDE} to {_MAX_SIDE}") -> None:
    """Reject an input size that is too small or too large for the networks of this task.

    Raises:
        UsageError: names the flag and what was expected.
    """
    if not MIN_SIDE <= side <= _MAX_SIDE:
        raise UsageError(f"--resolution is {side}", f"expected {expected}")


def _check_normalisation(config: TrainConfig) -> None:
    """Reject a mean or deviation of pixels from 0 to 255.

    Raises:
        UsageError: names the flag.
    """
    if "/" in config.normalise and max(map(float, re.split("[,/]", config.normalise))) > 1:
        found = f"--normalise is {config.normalise}"
        raise UsageError(found, "expected means and deviations of pixels from 0 to 1", "Divide the numbers by 255")


def _check_sides(config: TrainConfig) -> None:
    """Reject a crop, resolution or pooling that leaves an empty feature map.

    Raises:
        UsageError: names the flags.
    """
    if config.resolution:
        require_resolution(config.resolution, f"0 (no resizing), or {MIN_SIDE} to {_MAX_SIDE}")
    side, least = config.side, config.min_side
    if side < least:
        found = f"--stem pool4 with --tail pool leaves no feature map at {side} pixels"
        raise UsageError(found, f"expected at least {least}", "Give --tail no-pool")


def _check_combinations(config: TrainConfig) -> None:
    """Reject incompatible options.

    Raises:
        UsageError: names the flags.
    """
    if config.freeze_epochs >= config.epochs:
        found = f"--freeze-epochs is {config.freeze_epochs} and --epochs {config.epochs}"
        raise UsageError(found, "at least one epoch must train all layers", "Give fewer --freeze-epochs")
    if config.swa_epochs:
        _check_swa(config)
    if config.equivariance != "none" and config.weights != "none":
        found = f"--equivariance {config.equivariance} with --weights {config.weights}"
        hint = "Give --weights none, or --equivariance none"
        raise UsageError(found, "shared weights can only be trained from scratch", hint)


def _check_swa(config: TrainConfig) -> None:
    """Reject options that are incompatible with SWA.

    Raises:
        UsageError: names the flags.
    """
    found = f"--swa-epochs is {config.swa_epochs}"
    if config.freeze_epochs + config.swa_epochs >= config.epochs:
        found = f"{found} and --epochs {config.epochs}"
        raise UsageError(found, "the schedule needs at least one epoch before them", "Give fewer --swa-epochs")
    if config.ema:
        raise UsageError(
            f"{found} with --ema {config.ema}", "expected one kind of average", "Give --ema 0 or --swa-epochs 0"
        )
    if config.select != "last":
        raise UsageError(f"{found} with --select {config.select}", "the average is complete after the last epoch")


def _check_value(item: dataclasses.Field[object], value: Any) -> None:
    """Reject a value outside the limits of its field.

    Raises:
        UsageError: the value has another type, is not among the choices, or is out of range.
    """
    flag = "--" + item.name.replace("_", "-")
    limits = item.metadata
    types: tuple[type, ...] = {"int": (int,), "float": (int, float)}.get(str(item.type), (str,))
    if not isinstance(value, types) or isinstance(value, bool):
        raise UsageError(f"{flag} is {value!r}", f"expected {types[-1].__name__}")
    matches_pattern = "pattern" in limits and re.fullmatch(limits["pattern"], str(value))
    if "choices" in limits and value not in limits["choices"] and not matches_pattern:
        numbers = " or numbers such as 0.5,0.5,0.5/0.2,0.2,0.2" if "pattern" in limits else ""
        raise UsageError(f"{flag} is {value!r}", f"it must be one of {', '.join(limits['choices'])}{numbers}")
    if "low" in limits and not limits["low"] <= value <= limits.get("high", 1e9):
        allowed = f"from {limits['low']} to {limits['high']}" if "high" in limits else f"at least {limits['low']}"
        raise UsageError(f"{flag} is {value}", f"it must be {allowed}")


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add one flag for each flagged field to the parser; a flag that is not given sets no attribute."""
    group = parser.add_argument_group("training config (stored in config.json; must not change on resume)")
    for item in dataclasses.fields(TrainConfig):
        if item.metadata.get("flag"):
            value_type = {"int": int, "float": float}.get(str(item.type), str)
            choices = item.metadata.get("choices", ())
            accepts_numbers = "pattern" in item.metadata  # argparse would reject other values than the choices
            placeholder = "{" + ",".join([*choices, "NUMBERS"]) + "}" if accepts_numbers else None
            group.add_argument(
                "--" + item.name.replace("_", "-"),
                type=functools.partial(_parse_text, item) if accepts_numbers else value_type,
                default=argparse.SUPPRESS,
                metavar=item.name.upper() if value_type is str and not choices else placeholder,
                choices=None if accepts_numbers else choices or None,
                help=f"{item.metadata['help']} [{_describe_default(item)}]",
            )


def _parse_text(item: dataclasses.Field[object], text: str) -> str:
    """Return the text of a flag after checking it as a value of its field."""
    try:
        _check_value(item, text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(f"{error.found}; {error.expected}") from None
    return text


def _describe_default(item: dataclasses.Field[object]) -> str:
    """Return the default of a field as text, with the presets that change it.

    >>> fields = {item.name: item for item in dataclasses.fields(TrainConfig)}
    >>> _describe_default(fields["seed"]), _describe_default(fields["epochs"])
    ('0', '6; scratch: 20; pretrained: 10')
    """
    by_preset = {name: values.get(item.name, item.default) for name, values in _PRESETS.items()}
    others = [f"{name}: {value}" for name, value in by_preset.items() if value != item.default]
    return "; ".join([str(item.default), *others])


def _create_config(options: Mapping[str, object]) -> TrainConfig:
    """Return the config with these options; the others have their defaults.

    Raises:
        UsageError: as in `TrainConfig`.
    """
    return TrainConfig(**options)  # type: ignore[arg-type]  # the config checks the type of each value


def update_config(config: TrainConfig, options: Mapping[str, object]) -> TrainConfig:
    """Return the config with other values for these options.

    Raises:
        UsageError: as in `TrainConfig`.
    """
    return _create_config({**config.to_json(), **options})


def read_given_flags(args: argparse.Namespace) -> dict[str, object]:
    """Return the config fields that were given on the command line."""
    names = {item.name for item in dataclasses.fields(TrainConfig)}
    return {name: value for name, value in vars(args).items() if name in names}


def parse_config_flags(words: Sequence[str], weights: str = "") -> dict[str, object]:
    """Return the config fields in the flags of `claris train`; other flags are ignored.

    Args:
        words: the flags as typed.
        weights: the initial weights, which override those in `words`; empty to use those in `words`.
    """
    parser = argparse.ArgumentParser(add_help=False)
    add_config_flags(parser)
    given = read_given_flags(parser.parse_known_args(words)[0])
    return {**given, "weights": weights} if weights else given


def apply_preset(given: Mapping[str, object]) -> TrainConfig:
    """Return the config of the given fields. The preset sets the other fields; `auto` becomes the chosen preset.

    Raises:
        UsageError: as in `TrainConfig`.
    """
    chosen = _create_config({name: given[name] for name in ("model", "weights", "preset") if name in given})
    preset = _choose_preset(chosen.preset, pretrained=chosen.weights != "none")
    return _create_config({**_preset_for(preset, chosen.model), **given, "preset": preset})


def require_same(stored: TrainConfig, requested: TrainConfig, source: object) -> None:
    """Reject a resume with another config.

    Raises:
        RunError: names each field that differs, with both values.
    """
    old, new = stored.to_json(), requested.to_json()
    if old["weights_sha256"] and old["weights_sha256"] == new["weights_sha256"]:
        new["weights"] = old["weights"]  # the same file under another name
    changed = [f"{name}: {old[name]!r} in the run, {new[name]!r} now" for name in old if old[name] != new[name]]
    if changed:
        raise RunError(
            f"{source}: made with another config ({'; '.join(changed)})",
            "a run resumes only with its own config",
            "Use the same flags and data, or another --run",
        )
