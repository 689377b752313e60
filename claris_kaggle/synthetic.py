"""Generated H&E-like patches in the competition's layout, to try everything without its files.

Same sizes, same id rule, labels and slides as there; `tissue` draws each patch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from claris_kaggle.console import Progress
from claris_kaggle.errors import UsageError
from claris_kaggle.files import new_folder, read_json, write_json, write_text
from claris_kaggle.patches import SIZE, Pixels, encode, patch_id
from claris_kaggle.tissue import draw_patch, make_stain

FORMAT = 1
MALIGNANT_SHARE = 0.4


class Patch(NamedTuple):
    """A generated patch: pixels uint8 [96, 96, 3], its label and its slide."""

    pixels: Pixels
    label: int
    slide: str


def generate(root: Path, *, train: int = 300, test: int = 60, slides: int = 20, seed: int = 0) -> Path:
    """A folder of generated patches in the competition's layout, with `slides.csv` and `test_answers.csv`.

    Args:
        root: is made, whole or not at all; left as it is when it holds these very patches.
        train, test: numbers of patches; four odd ones (black, white, bare glass, out of focus) among the
            training patches.
        slides: of the training patches, at least 5; the test patches come from a third as many others.
        seed: another seed gives other patches.
    Returns:
        root.
    Raises:
        UsageError: the numbers are too small, or root holds something else.
    """
    if slides < 5 or train < 4 * slides or test < 4:
        found = f"{train} training patches of {slides} slides and {test} test patches"
        raise UsageError(found, "at least 5 slides, 4 patches of each and 4 test patches are needed")
    wanted = {"format": FORMAT, "train": train, "test": test, "slides": slides, "seed": seed}
    if root.exists():
        if (root / "generated.json").exists() and read_json(root / "generated.json") == wanted:
            return root
        raise UsageError(f"{root}: holds something else", "a new folder is needed", "Name another, or remove it")
    with new_folder(root) as aside:
        fill(aside, train=train, test=test, slides=slides, seed=seed)
        write_json(aside / "generated.json", wanted)
    return root


def fill(root: Path, *, train: int, test: int, slides: int, seed: int) -> None:
    """Write all files of the layout."""
    with Progress("generate", train + test) as progress:
        patches = make_split("train", train - 4, slides, seed, progress) + odd_patches(seed)
        train_ids = write_patches(root / "train", patches)
        rows = sorted((name, one.label, one.slide) for name, one in zip(train_ids, patches, strict=True))
        write_csv(root / "train_labels.csv", "id,label", [(name, label) for name, label, _ in rows])
        write_csv(root / "slides.csv", "id,wsi", [(name, slide) for name, _, slide in rows])
        patches = make_split("test", test, max(2, slides // 3), seed, progress)
        test_ids = write_patches(root / "test", patches)
    # The sample's order is not sorted, as in the competition: a submission must follow it.
    write_csv(root / "sample_submission.csv", "id,label", [(name, 0) for name in test_ids])
    answers = [(name, one.label) for name, one in zip(test_ids, patches, strict=True)]
    write_csv(root / "test_answers.csv", "id,label", answers)


def write_csv(path: Path, header: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """A CSV of values that need no quotes."""
    write_text(path, "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")


def write_patches(folder: Path, patches: Sequence[Patch]) -> list[str]:
    """Write each as `<id>.tif`, and return the ids, in their order."""
    folder.mkdir()
    ids = [patch_id(one.pixels) for one in patches]
    for name, one in zip(ids, patches, strict=True):
        (folder / f"{name}.tif").write_bytes(encode(one.pixels))
    return ids


def make_split(split: str, total: int, slides: int, seed: int, progress: Progress) -> list[Patch]:
    """Patches dealt out to slides in turn, each from its own random numbers."""
    from joblib import Parallel, delayed

    stains = [make_stain(random(seed, split, "stain", number)) for number in range(slides)]

    def make(number: int) -> Patch:
        slide = number % slides
        generator = random(seed, split, "patch", number)
        # Every slide has both classes: patches are dealt to labels slide by slide.
        label = int((number // slides + slide * 0.37) * MALIGNANT_SHARE % 1 < MALIGNANT_SHARE)
        return Patch(draw_patch(generator, stains[slide], label), label, f"{split}_{slide:03d}")

    parallel = Parallel(n_jobs=os.cpu_count() or 1, prefer="threads", return_as="generator")
    patches = []
    for one in parallel(delayed(make)(number) for number in range(total)):
        patches.append(one)
        progress.update(1)
    return patches


def random(seed: int, *names: object) -> np.random.Generator:
    """Random numbers of their own for each purpose."""
    word = hashlib.blake2b("/".join(map(str, (seed, *names))).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(word, "little"))


def odd_patches(seed: int) -> list[Patch]:
    """All black, all white, bare glass, and out of focus: all benign, each on a slide of the others."""
    from scipy.ndimage import gaussian_filter

    generator = random(seed, "odd")
    glass = np.clip(np.rint(generator.normal(238, 2, (SIZE, SIZE, 3))), 0, 255).astype(np.uint8)
    sharp = draw_patch(generator, make_stain(generator), 0).astype(np.float64)
    pictures = [
        np.zeros((SIZE, SIZE, 3), np.uint8),
        np.full((SIZE, SIZE, 3), 255, np.uint8),
        glass,
        np.rint(gaussian_filter(sharp, (3, 3, 0))).astype(np.uint8),
    ]
    return [Patch(pixels, 0, f"train_{slide:03d}") for slide, pixels in enumerate(pictures)]
