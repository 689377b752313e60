"""A small competition folder with cache, folds, a finished run and a submission, and ways to damage it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from claris_kaggle.core.paths import DataDir, RunDir
from tests.conftest import contents


@dataclass
class Place:
    """A whole small world: data, packs, folds, a finished run, a submission."""

    root: Path

    @property
    def data(self) -> DataDir:
        return DataDir(self.root / "data")

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def folds(self) -> Path:
        return self.root / "folds.csv"

    @property
    def run(self) -> RunDir:
        return RunDir(self.root / "run")

    @property
    def submission(self) -> Path:
        return self.root / "submission.csv"

    def patch(self, split: str = "train", number: int = 3) -> Path:
        return sorted(self.data.patches(split).glob("*.tif"))[number]

    def pack(self, split: str = "train") -> Path:
        return next(path for path in self.cache.iterdir() if path.name.startswith(f"{split}-"))

    def command(self, verb: str) -> list[object]:
        """The verb as it was typed when this world was made."""
        data, cache, run = ["--data", self.data.root], ["--cache", self.cache], ["--run", self.run.root]
        return {
            "check": ["check", *data, "--slides", self.data.root / "slides.csv"],
            "pack": ["pack", *data, *cache],
            "folds": [
                "folds", *data, *cache, "--out", self.folds, "--k", 2, "--slides", self.data.root / "slides.csv"
            ],
            "train": ["train", *data, *cache, *run, "--folds", self.folds],
            "predict": ["predict", *data, *cache, *run],
            "ensemble": ["ensemble", self.run.root, *data, "--out", self.submission],
            "submission": ["submission", "check", self.submission, *data],
            "report": ["report", self.run.root, "--out", self.root / "report.html"],
        }[verb]  # fmt: skip


def cut(path: Path, keep: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def flip(path: Path, where: float = 0.7) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 1
    path.write_bytes(bytes(content))


def drop_pack(place: Place) -> None:
    shutil.rmtree(place.pack())


def to_nan(path: Path) -> None:
    lines = path.read_text().splitlines()
    lines[3] = lines[3].rsplit(",", 1)[0] + ",nan"
    path.write_text("\n".join(lines) + "\n")


def kept(root: Path) -> dict[str, bytes]:
    """Every file but the locks and the notes about caches, which say who holds one and when one was verified."""
    return {name: value for name, value in contents(root).items() if not name.endswith((".lock", "verified.json"))}


def one_line(said: str) -> str:
    lines = [line for line in said.splitlines() if line.startswith("claris: ")]
    assert len(lines) == 1 and "Traceback" not in said, said
    return lines[0]
