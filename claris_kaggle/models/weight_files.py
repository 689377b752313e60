"""Read the tensors in a weight file, whatever framework wrote it. Never executes code from the file."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import re
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from claris_kaggle.core.errors import DataError, format_count, name_few

_EXPECTED_WEIGHT_FILE = "expected a complete .safetensors or .pth file"
_DOWNLOAD_AGAIN_HINT = "Download or copy it again"
_UNPACK_HINT = "Unpack it, then give the file inside"
_HTML_INSTEAD_HINT = "Download the file itself, not its page"
_CONVERT_HINT = "Convert it to PyTorch, or give other weights"
_SAVE_AGAIN = (
    "Save it again where it was made: python -c \"import torch; m = torch.load('{0}', weights_only=False); "
    "torch.save({1}.state_dict(), 'weights.pth')\""
)
_SAVE_TENSORS = (
    "Save it again where it was made: python -c \"import torch; m = torch.load('{0}', weights_only=False); "
    "torch.save(m, 'weights.pth')\""
)
_SAVE_ARRAYS = (
    "Save it again where it was made: python -c \"import torch; m = torch.load('{0}', weights_only=False); m = "
    "m.get('state_dict', m); torch.save({{key: torch.as_tensor(value) for key, value in m.items()}}, 'weights.pth')\""
)
_SAVE_SCRIPT = (
    "Save its tensors: python -c \"import torch; torch.save(torch.jit.load('{0}').state_dict(), 'weights.pth')\""
)
# First bytes of files that are often given as weights, with their name and what to do.
_OTHER_KINDS = {
    b"version https://git-lfs": ("a Git LFS pointer, not the file itself", "Run git lfs pull, or download the file"),
    b"# xet version": ("a pointer of Hugging Face's Xet, not the file itself", "Download the file itself"),
    b"\x89HDF\r\n\x1a\n": ("HDF5, a file of Keras or TensorFlow", _CONVERT_HINT),
    b"\x93NUMPY": ("a NumPy array", _CONVERT_HINT),
    b"\x08\x01\x12": ("a TensorFlow SavedModel", _CONVERT_HINT),
    b"GGUF": ("a GGUF file", _CONVERT_HINT),
    b"MATLAB": ("a MATLAB file", _CONVERT_HINT),
    b"\x1f\x8b": ("compressed with gzip", _UNPACK_HINT),
    b"BZh": ("compressed with bzip2", _UNPACK_HINT),
    b"\xfd7zXZ": ("compressed with xz", _UNPACK_HINT),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", _UNPACK_HINT),
    b"\x04\x22\x4d\x18": ("compressed with lz4", _UNPACK_HINT),
    b"7z\xbc\xaf": ("a 7z archive", _UNPACK_HINT),
    b"Rar!": ("a RAR archive", _UNPACK_HINT),
    b"%PDF": ("a PDF document", _HTML_INSTEAD_HINT),
    b"\x89PNG": ("a PNG image", "Check the path"),
    b"\xff\xd8\xff": ("a JPEG image", "Check the path"),
    b"II*\0": ("a TIFF image", "Check the path"),
}
# Suffixes of files of other frameworks that cannot be recognised by their content.
_FRAMEWORK_SUFFIXES = {
    ".msgpack": "a file of Flax", ".pb": "a graph of TensorFlow", ".index": "a part of a TensorFlow checkpoint",
    ".caffemodel": "a file of Caffe", ".params": "a file of MXNet", ".pdparams": "a file of PaddlePaddle",
    ".pdmodel": "a file of PaddlePaddle", ".t7": "a file of Torch7", ".mlmodel": "a file of Core ML",
    ".engine": "a file of TensorRT", ".plan": "a file of TensorRT", ".trt": "a file of TensorRT",
    ".weights": "a file of Darknet", ".joblib": "a file of joblib",
}  # fmt: skip
_WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".tar", ".pkl")
# Names of parts of a checkpoint that have tensors but no weights.
_NOT_WEIGHTS = re.compile(r"(^|_)opt(im\w*)?(_|$)|sched|scaler|(^|_)amp(_|$)|rng|random|loader|metric|history|callback")
_MAX_DEPTH, _MAX_SEQUENCE = 5, 16
# The number with which torch.save begins its old format, as it is pickled.
_MAGIC_NUMBER = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
# Modules and functions that no weight file needs. A file that names one would run code when it is unpickled.
_CODE_MODULES = ("os", "posix", "nt", "sys", "subprocess", "runpy", "importlib", "ctypes", "socket", "shutil", "pty")
_CODE_FUNCTIONS = ("builtins.eval", "builtins.exec", "builtins.__import__", "builtins.compile", "builtins.open")


class _Inert(dict[object, object]):
    """A stand-in for a pickled object that is not a tensor. Keeps its state and executes nothing."""

    path = ""
    state: object = None

    def __hash__(self) -> int:  # type: ignore[override]
        """Return the identity of this object, because some checkpoints use objects as keys."""
        return id(self)

    def __new__(cls, *_: object, **__: object) -> _Inert:
        """Accept the arguments of any class, and ignore them."""
        return dict.__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        """Accept the arguments of any class, and ignore them."""
        super().__init__()

    def __setstate__(self, state: object) -> None:
        """Keep the state of the pickled object."""
        self.state = state

    def is_network(self) -> bool:
        """Return True if the pickled object is a whole network (torch.nn.Module)."""
        return isinstance(self.state, Mapping) and "_modules" in self.state


class _InertDict(_Inert):
    """A stand-in for an object of a subclass of dict: a plain dict that keeps the items."""

    def __new__(cls, *_: object, **__: object) -> OrderedDict[object, object]:  # type: ignore[misc]
        """Return a dict without the arguments."""
        return OrderedDict()


def _parse_weights(content: bytes, source: object) -> dict[str, Tensor]:
    """Return the tensors in the bytes of a weight file by name, or the first of several dicts of tensors.

    Raises:
        DataError: as in `_find_network`.
    """
    return next(iter(_find_network(content, source)[0].values()))


def _find_network(content: bytes, source: object) -> tuple[dict[str, dict[str, Tensor]], str]:
    """Return every dict of tensors in the bytes of a weight file, by its key path in the file, such as `state_dict`.

    Also returns the name of the network that the file states under `arch`, as timm writes it; empty without one.

    Args:
        content: the bytes of the file.
        source: names the file in messages.
    Raises:
        DataError: the file is damaged, or is not a weight file. The message says what it is.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about old formats; faults that matter raise
            loaded = _load_any(content, source)
            networks = {key_path: tensors for key_path, tensors in _find_tensor_dicts(loaded, "", 0) if tensors}
            networks = _drop_unaveraged(loaded, networks)
    except DataError:
        raise
    except Exception as error:  # both readers raise many exception types on damaged files
        raise _unreadable(source, f"damaged or cut off, {len(content):,} bytes", _DOWNLOAD_AGAIN_HINT) from error
    if not networks:
        raise _describe_tensorless(loaded, source)
    architecture = loaded.get("arch") if isinstance(loaded, Mapping) else None
    return networks, architecture.split(".")[0] if isinstance(architecture, str) else ""


def _drop_unaveraged(loaded: object, networks: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Return the dicts of tensors without MMEngine's `ema_state_dict`.

    Its EMAHook swaps the two: `state_dict` holds the averaged weights.
    """
    if not (isinstance(loaded, Mapping) and "message_hub" in loaded and "state_dict" in networks):
        return networks
    return {key_path: tensors for key_path, tensors in networks.items() if key_path.split(".")[0] != "ema_state_dict"}


def _unreadable(source: object, what: str, hint: str) -> DataError:
    """Return the error for a file without readable weights."""
    return DataError(f"{source}: no readable weights ({what})", _EXPECTED_WEIGHT_FILE, hint)


def _refuse(source: object, what: str, hint: str) -> NoReturn:
    """Raise the error for a file without readable weights."""
    raise _unreadable(source, what, hint)


def _load_any(content: bytes, source: object) -> object:
    """Return the content of a safetensors file or of a file that torch.save wrote.

    Raises:
        DataError: the file is of another kind.
    """
    if content[8:9] == b"{" and content[:2] != b"PK":
        return _load_safetensors(content, source)
    _refuse_other_kinds(content, source)
    if content[:2] == b"PK":
        _require_torch_archive(content, source)
    return _load_pickle(content, source)


def _load_safetensors(content: bytes, source: object) -> dict[str, Tensor]:
    """Return the tensors in the bytes of a safetensors file.

    Raises:
        DataError: the file is cut off.
    """
    import safetensors.torch

    data_start = 8 + int.from_bytes(content[:8], "little")
    if data_start > len(content):
        _refuse(source, f"cut off: {len(content):,} bytes of at least {data_start:,}", _DOWNLOAD_AGAIN_HINT)
    header = json.loads(content[8:data_start])
    size = data_start + max(
        (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0
    )
    if size > len(content):
        _refuse(source, f"cut off: {len(content):,} of {size:,} bytes", _DOWNLOAD_AGAIN_HINT)
    return safetensors.torch.load(content)


def _refuse_other_kinds(content: bytes, source: object) -> None:
    """Raise an error that names the kind of a file that is neither safetensors nor a pickle.

    Raises:
        DataError: the file is of another kind.
    """
    if not content.strip(b"\0"):
        _refuse(
            source, "an empty file" if not content else "only zero bytes, an incomplete download", _DOWNLOAD_AGAIN_HINT
        )
    text_start = content[:400].removeprefix(b"\xef\xbb\xbf").lstrip()
    for magic, (what, hint) in _OTHER_KINDS.items():
        if content.startswith(magic):
            _refuse(source, what, hint)
    if text_start[:1] == b"<" and re.match(rb"<(!doctype|html|head|body|\?xml|!--|error)", text_start, re.IGNORECASE):
        _refuse(source, "a web page, not the file itself", _HTML_INSTEAD_HINT)
    if text_start[:1] in (b"{", b"["):
        index = b"weight_map" in content[:1_000_000]
        what = "the index of weights in several files" if index else "a JSON file"
        _refuse(source, what, "Join the files into one" if index else "Give the file of the weights")
    if content[4:8] == b"TFL3":
        _refuse(source, "a TensorFlow Lite file", _CONVERT_HINT)
    if other := _name_by_suffix(source):
        _refuse(source, other, _CONVERT_HINT)
    if content[:1] == b"\x08" and 1 <= content[1] <= 30 and content[2] in b"\x12\x1a\x3a\x42":
        _refuse(source, "an ONNX file", "Give the weights of the network that it was made from")
    if content[257:262] == b"ustar":
        _refuse(source, "a tar archive", _UNPACK_HINT)
    if content[:1] != b"\x80" and content[:2] != b"PK":
        first_line = text_start.split(b"\n")[0][:40].decode("ascii", "replace")
        kind = f"text: {first_line!r}" if first_line.isprintable() and first_line.isascii() else "an unknown format"
        _refuse(source, kind, "Give the file of the weights; if this should be it, download it again")


def _name_by_suffix(source: object) -> str:
    """Return what a file of another framework is by the end of its name; empty if unknown."""
    name = Path(str(source)).name.lower()
    suffix = ".index" if re.search(r"\.data-\d+-of-\d+$", name) else Path(name).suffix
    return _FRAMEWORK_SUFFIXES.get(suffix, "")


def _require_torch_archive(content: bytes, source: object) -> None:
    """Raise an error unless the ZIP archive was written by torch.save.

    Raises:
        DataError: the archive is cut off, or is of another kind.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise _unreadable(source, f"damaged or cut off, {len(content):,} bytes", _DOWNLOAD_AGAIN_HINT) from error
    names = archive.namelist()
    ends = {name.rsplit("/", 1)[-1] for name in names}
    if "data.pkl" in ends:
        if "constants.pkl" in ends or any("/code/" in f"/{name}" for name in names):
            _refuse(source, "a TorchScript archive", _SAVE_SCRIPT.format(_file_name(source)))
        if "data.pkl" in names:
            _refuse(source, "packed again without its folder", "Pack the folder itself, or download the file again")
        _require_checksums(archive, source)
        return
    if any(name.endswith(".npy") for name in ends):
        _refuse(source, "an archive of NumPy arrays", _CONVERT_HINT)
    if any(name.endswith((".h5", ".keras")) for name in ends):
        _refuse(source, "a Keras archive", _CONVERT_HINT)
    if "serialized_exported_program.json" in ends or "archive_format" in ends:
        _refuse(source, "a program of torch.export", "Save the state_dict of the network instead")
    inside = next((name for name in names if name.endswith(_WEIGHT_SUFFIXES)), "")
    _refuse(source, f"a ZIP archive{f' with {inside} in it' if inside else ''}", _UNPACK_HINT)


def _require_checksums(archive: zipfile.ZipFile, source: object) -> None:
    """Raise an error if a file in the archive differs from its checksum. torch.load does not compare them.

    Raises:
        DataError: names the first such file.
    """
    for entry in archive.infolist():
        if entry.CRC:  # torch can be told to write 0 instead
            try:
                with archive.open(entry) as stream:
                    while stream.read(1 << 24):
                        pass
            except (zipfile.BadZipFile, zlib.error) as error:
                raise _unreadable(
                    source, f"damaged: wrong checksum of {entry.filename} in it", _DOWNLOAD_AGAIN_HINT
                ) from error


def _load_pickle(content: bytes, source: object) -> object:
    """Return the content of a file that torch.save wrote. Objects other than tensors become inert stand-ins.

    Raises:
        DataError: the pickle would run code, or has a form that torch does not read without running code.
    """
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        names, protocol = _scan_pickle(content)
        code = sorted(name for name in names if name.split(".")[0] in _CODE_MODULES or name in _CODE_FUNCTIONS)
        if code:
            hint = "Do not open it with another tool. Take weights from a source that you trust"
            raise _unreadable(source, f"opening it would run {code[0]}", hint) from error
        if content[:2] != b"PK" and _MAGIC_NUMBER not in content[:40]:
            raise _describe_plain_pickle(names, source) from error
        if protocol > 2:
            hint = _SAVE_TENSORS.format(_file_name(source))
            raise _unreadable(source, f"pickle protocol {protocol}, which torch does not read safely", hint) from error
        return _load_with_stand_ins(content, source, names)


def _describe_plain_pickle(names: set[str], source: object) -> DataError:
    """Return the error for a pickle that torch.save did not write, from the names that it needs."""
    modules = {name.split(".")[0] for name in names}
    if "torch" not in modules:
        what = "NumPy arrays" if "numpy" in modules else "no tensors"
        return _unreadable(source, f"a plain pickle with {what}, not written by torch.save", _CONVERT_HINT)
    save = _SAVE_AGAIN.format(_file_name(source), "m") if any(".nn.modules." in one for one in names) else ""
    hint = save or _SAVE_TENSORS.format(_file_name(source))
    hint = hint.replace("torch.load(", "pickle.load(open(").replace(", weights_only=False)", ", 'rb'))")
    return _unreadable(
        source, "a plain pickle, not written by torch.save", hint.replace("import torch", "import pickle, torch")
    )


def _load_with_stand_ins(content: bytes, source: object, names: set[str]) -> object:
    """Return the content of a file that torch.save wrote, with an inert object for each object of these classes.

    torch restores items of plain dicts only. So the stand-in for a subclass of dict is a plain dict.

    Raises:
        DataError: torch does not read the file in this way either.
    """
    dicts: set[str] = set()
    while True:
        stand_ins: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
            (type(f"<{name}>", (_InertDict if name in dicts else _Inert,), {"path": name}), name)
            for name in sorted(names)
        ]
        try:
            with torch.serialization.safe_globals(stand_ins):  # torch's own safe names keep their meaning
                return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            found = {name for name in names - dicts if f"<{name}>" in str(error)}
            dicts |= found
            if not found:
                what = f"objects of other programs that torch does not read safely: {name_few(sorted(names))}"
                raise _unreadable(source, what, _SAVE_TENSORS.format(_file_name(source))) from error


def _scan_pickle(content: bytes) -> tuple[set[str], int]:
    """Return the names of all classes and functions that a file of torch.save needs, and its pickle protocol."""
    from torch._utils import IMPORT_MAPPING, NAME_MAPPING

    names: set[str] = set()
    protocol = 0
    texts = ["", ""]  # the last two, which name a class in protocol 4
    for operation, argument in _pickle_operations(content):
        if operation == "PROTO":
            protocol = max(protocol, int(str(argument)))
        if operation in ("GLOBAL", "INST"):
            module, name = str(argument).split(" ", 1)
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            names.add(f"{module}.{name}")
        if operation.endswith("UNICODE"):
            texts = [texts[1], str(argument)]
        if operation == "STACK_GLOBAL":
            protocol = max(protocol, 4)
            names.add(".".join(texts))
    return names, protocol


def _pickle_operations(content: bytes) -> Iterator[tuple[str, object]]:
    """Yield the operations of the pickles in a file of torch.save: one in an archive, else up to five in turn."""
    if content[:2] == b"PK":
        archive = zipfile.ZipFile(io.BytesIO(content))
        stream = io.BytesIO(archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl"))))
    else:
        stream = io.BytesIO(content)
    for _ in range(5):
        try:
            yield from ((operation.name, argument) for operation, argument, _ in pickletools.genops(stream))
        except ValueError:  # the end, or the bytes of the tensors
            return


def _find_tensor_dicts(loaded: object, key_path: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the key path and the tensors of each dict that has tensors, without those of optimizers."""
    if depth > _MAX_DEPTH:
        return
    if isinstance(loaded, Mapping) and not (isinstance(loaded, _Inert) and loaded.is_network()):
        children = {str(key): value for key, value in loaded.items()}
        yield key_path, {key: _to_plain(value) for key, value in children.items() if isinstance(value, Tensor)}
    elif isinstance(loaded, list | tuple) and len(loaded) <= _MAX_SEQUENCE:
        children = {str(number): value for number, value in enumerate(loaded)}
    else:
        return
    for key, value in children.items():
        if not _NOT_WEIGHTS.search(key.lower()):
            yield from _find_tensor_dicts(value, f"{key_path}.{key}" if key_path else key, depth + 1)


def _to_plain(value: Tensor) -> Tensor:
    """Return the tensor without gradient and in dense form."""
    return value.detach() if value.layout == torch.strided else value.detach().to_dense()


def _describe_tensorless(loaded: object, source: object) -> DataError:
    """Return the error for a file of torch.save without a dict of tensors."""
    parts = {"m": loaded}
    if isinstance(loaded, Mapping):
        parts |= {f"m['{key}']": value for key, value in loaded.items() if isinstance(key, str)}
    for code, part in parts.items():
        if isinstance(part, _Inert) and part.is_network():
            what = f"a whole pickled network of class {part.path}, not a dict of tensors"
            return _unreadable(source, what, _SAVE_AGAIN.format(_file_name(source), code))
    if isinstance(loaded, _Inert):
        hint = _SAVE_AGAIN.format(_file_name(source), "m.model")
        return _unreadable(source, f"a pickled object of class {loaded.path}, not a dict of tensors", hint)
    if any(_holds_arrays(part) for part in parts.values()):
        hint = _SAVE_ARRAYS.format(_file_name(source))
        return _unreadable(source, "NumPy arrays instead of tensors", hint)
    if isinstance(loaded, Tensor):
        return _unreadable(source, "one tensor without a name", "Give a file with all tensors of the network by name")
    keys = list(map(str, loaded)) if isinstance(loaded, Mapping) else []
    what = f"no tensors by name, only {format_count(len(keys), 'other value')}: {', '.join(keys)[:60]}" if keys else ""
    return _unreadable(source, what or "no tensors by name", "Give a file with all tensors of the network by name")


def _holds_arrays(part: object) -> bool:
    """Return True if a part of a file is a dict of NumPy arrays."""
    return isinstance(part, Mapping) and any(
        isinstance(value, _Inert) and value.path.startswith("numpy.") and "reconstruct" in value.path
        for value in part.values()
    )


def _file_name(source: object) -> str:
    """Return the name of the file without its folder, for a command."""
    return Path(str(source)).name.replace("'", "").replace('"', "")
