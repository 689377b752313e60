"""Test files of random bytes: reading gives a result or one clear error, and writes nothing elsewhere."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import ClarisError, DataError
from claris_kaggle.core.files import read_json
from claris_kaggle.data.fold_file import Folds, read_folds, write_folds
from claris_kaggle.data.pack import _build_pack, open_pack
from claris_kaggle.data.patches import _decode_tiff, _encode_tiff, patch_id
from claris_kaggle.data.tables import read_labels, read_sample, read_slides, write_table
from claris_kaggle.ensembling.ledger import _LEDGER_COLUMNS, read_ledger
from claris_kaggle.ensembling.submission_file import check_submission
from claris_kaggle.evaluation.predictions import Oof, read_oof, read_test, write_run_oof, write_test
from claris_kaggle.kaggle.download import _unpack
from claris_kaggle.models.factory import _TinyNet
from claris_kaggle.models.weights import load_initial_weights
from claris_kaggle.training.checkpoint import _load_checkpoint

IDS = [patch_id(np.full((96, 96, 3), value, np.uint8)) for value in range(8)]
LABELS = np.array([0, 1] * 4, np.int8)
FOLDS = np.array([0, 0, 1, 1] * 2, np.int64)
VALUES = np.linspace(0.1, 0.9, 8, dtype=np.float32)
# What editors, spreadsheets, other programs and bad luck put into files.
TOKENS = [
    b"", b"\0", b"\xef\xbb\xbf", b"\r\n", b"\r", b"\n\n", b'"', b"'", b",", b",,,,", b";", b"\t", b"nan", b"inf",
    b"-1", b"1e999", b"0x1", b"1_0", b"\xd9\xa3", b"\xff\xfe", b"\xe2\x80\xa8", b" ", b"id", b"label", b"../../x",
    b"9" * 30, b"{", b"]", b"null", b"true", b"[" * 2000, b"\x1a", b"=1+1", b"I" * 300,
]  # fmt: skip
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["put", "cut", "flip", "drop", "double"]),
        st.floats(0, 1),
        st.one_of(st.sampled_from(TOKENS), st.binary(max_size=12)),
        st.integers(0, 60),
    ),
    min_size=1,
    max_size=4,
)


def edit(content: bytes, edits: list[tuple[str, float, bytes, int]]) -> bytes:
    """The content after the edits, each at its relative place."""
    for kind, place, token, length in edits:
        at = int(place * len(content))
        if kind == "put":
            content = content[:at] + token + content[at:]
        elif kind == "cut":
            content = content[:at]
        elif kind == "flip" and at < len(content):
            content = content[:at] + bytes([content[at] ^ (1 << length % 8)]) + content[at + 1 :]
        elif kind == "drop":
            content = content[:at] + content[at + length :]
        elif kind == "double":
            content = content[:at] + content[max(0, at - length) : at] + content[at:]
    return content


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A whole file of each kind."""
    folder = tmp_path_factory.mktemp("originals")
    write_table(folder / "labels", {"id": IDS, "label": LABELS})
    write_table(folder / "submission", {"id": IDS, "label": VALUES})
    write_table(folder / "slides", {"id": IDS, "slide": [f"s{row % 3}" for row in range(8)]})
    write_folds(folder / "folds.csv", Folds(IDS, LABELS, IDS, FOLDS), {})
    write_run_oof(folder / "oof", Oof(IDS, LABELS, FOLDS, VALUES))
    write_test(folder / "test", IDS, VALUES)
    (folder / "ledger").write_text(
        ",".join(_LEDGER_COLUMNS) + "\nnow,1,a.csv,00,run,abc,0.9,0.8,0.95,0.8,0.7,complete\n"
    )
    config = TrainConfig(model="tiny", weights="none", batch_size=40, lr=1e-3, color=0.3)
    (folder / "config").write_text(json.dumps(config.to_json()))
    (folder / "patch").write_bytes(
        _encode_tiff(np.arange(96 * 96 * 3, dtype=np.int64).reshape(96, 96, 3).astype(np.uint8))
    )
    stream = io.BytesIO()
    torch.save(_TinyNet().state_dict(), stream)
    (folder / "weights.pth").write_bytes(stream.getvalue())
    import safetensors.torch

    (folder / "weights.safetensors").write_bytes(safetensors.torch.save(_TinyNet().state_dict()))
    with zipfile.ZipFile(folder / "archive", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/a.tif", b"a" * 500)
        archive.writestr("labels.csv", b"id,label\n")
    return {path.name.removesuffix(".csv"): path.read_bytes() for path in folder.iterdir() if path.is_file()}


def with_digest(content: bytes) -> bytes:
    """A checkpoint of somebody who knows the format: damage under a right digest."""
    return content + hashlib.sha256(content).digest()


def read_archive(path: Path) -> None:
    _unpack(path, path.parent / "unpacked")


# name: (the whole file, what reads it)
READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "labels": ("labels", read_labels),
    "sample": ("labels", read_sample),
    "slides": ("slides", lambda path: read_slides(path, IDS)),
    "folds": ("folds", read_folds),
    "oof": ("oof", read_oof),
    "test": ("test", read_test),
    "submission": ("submission", lambda path: check_submission(path, IDS)),
    "ledger": ("ledger", read_ledger),
    "config": ("config", lambda path: TrainConfig.from_json(read_json(path), path)),
    "patch": ("patch", lambda path: _decode_tiff(path.read_bytes(), path)),
    "weights.pth": ("weights.pth", lambda path: load_initial_weights(_TinyNet(), path)),
    "weights.safetensors": ("weights.safetensors", lambda path: load_initial_weights(_TinyNet(), path)),
    "checkpoint": ("weights.pth", _load_checkpoint),
    "archive": ("archive", read_archive),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_no_bytes_give_a_traceback(tmp_path: Path, originals: dict[str, bytes], name: str) -> None:
    original, read = READERS[name]
    path = tmp_path / "inner" / "place" / f"file{Path(name).suffix}"
    path.parent.mkdir(parents=True)
    seen = {"cases": 0, "refused": 0}

    @settings(max_examples=1000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(EDITS)
    def attempt(edits: list[tuple[str, float, bytes, int]]) -> None:
        content = edit(originals[original], edits)
        path.write_bytes(with_digest(content) if name == "checkpoint" else content)
        seen["cases"] += 1
        try:
            read(path)
        except ClarisError as error:
            seen["refused"] += 1
            assert "\n" not in str(error)

    attempt()
    print(f"{name}: survived {seen['cases']} files, {seen['refused']} refused")
    assert seen["refused"] > 10
    assert [one.name for one in tmp_path.iterdir() if one.name != "home"] == ["inner"]
    assert [one.name for one in (tmp_path / "inner").iterdir()] == ["place"]


def test_an_archive_with_a_damaged_bzip2_stream_is_refused_in_one_line(tmp_path: Path) -> None:
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_BZIP2) as packed:
        packed.writestr("train_labels.csv", b"id,label\n" * 100)
    archive.write_bytes(archive.read_bytes().replace(b"BZh9", b"BZh0"))
    with pytest.raises(DataError, match="archive.zip: damaged"):
        _unpack(archive, tmp_path / "unpacked")


@pytest.mark.slow
def test_no_damage_to_a_pack_gives_a_traceback(tmp_path: Path) -> None:
    source, folder = tmp_path / "train", tmp_path / "pack"
    source.mkdir()
    for value, name in enumerate(IDS):
        (source / f"{name}.tif").write_bytes(_encode_tiff(np.full((96, 96, 3), value, np.uint8)))
    folder.mkdir()
    _build_pack(source, list(IDS), folder, 1)
    files = {path: path.read_bytes() for path in folder.iterdir()}

    @settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(sorted(files)), EDITS)
    def attempt(path: Path, edits: list[tuple[str, float, bytes, int]]) -> None:
        for other, content in files.items():
            other.write_bytes(content)
        path.write_bytes(edit(files[path][:4096], edits) + files[path][4096:])
        try:
            open_pack(folder, list(IDS))
        except ClarisError as error:
            assert "\n" not in str(error)

    attempt()
