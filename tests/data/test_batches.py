"""Test batches: the rows of a step depend only on ids, seed, epoch and world size."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.paths import DataDir
from claris_kaggle.data.batches import EpochBatches, PredictionBlocks, TrainSet, _split_evenly
from claris_kaggle.data.d4 import apply_symmetry
from claris_kaggle.data.pack import Pack
from claris_kaggle.data.prepare import get_pack
from claris_kaggle.data.tables import read_labels
from claris_kaggle.runtime.loading import load_in_order


@given(st.integers(1, 5000), st.integers(1, 300))
def test_parts_cover_all_rows_once_and_differ_by_one_at_most(total: int, size: int) -> None:
    parts = _split_evenly(total, size)
    assert [row for begin, end in parts for row in range(begin, end)] == list(range(total))
    sizes = [end - begin for begin, end in parts]
    assert max(sizes) <= size and max(sizes) - min(sizes) <= 1


CONFIG = TrainConfig(seed=5, batch_size=50, color=1.0)


@pytest.fixture(scope="module")
def trainset(generated: DataDir, cache: object) -> TrainSet:
    ids, labels = read_labels(generated.labels)
    return TrainSet(get_pack(generated, "train", ids, cache), ids, labels.astype(np.int64))  # type: ignore[arg-type]


def batches(
    trainset: TrainSet, *, epoch: int = 0, rank: int = 0, world_size: int = 1, augment: str = "light"
) -> EpochBatches:
    config = dataclasses.replace(CONFIG, augment=augment)
    return EpochBatches(trainset, config, epoch=epoch, rank=rank, world_size=world_size)


@pytest.mark.parametrize("augment", ["light", "strong"])
def test_the_ranks_together_take_each_patch_once_and_what_one_process_takes(trainset: TrainSet, augment: str) -> None:
    whole = batches(trainset, augment=augment)
    for world_size in (2, 3):
        parts = [batches(trainset, rank=rank, world_size=world_size, augment=augment) for rank in range(world_size)]
        for step in range(len(whole)):
            one = whole[step]
            many = [part[step] for part in parts]
            for rank, part in enumerate(many):
                assert torch.equal(part.images, one.images[rank::world_size])
                assert torch.equal(part.colors, one.colors[rank::world_size])
                assert part.total_weight == one.total_weight
        assert parts[0].item_bytes == max(parts[0][step].images.nbytes for step in range(len(whole)))
    assert sum(len(whole[step].labels) for step in range(len(whole))) == len(trainset.ids)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than the cores of a small machine
@pytest.mark.parametrize(("augment", "workers"), [("light", 2), ("strong", 4)])
def test_loader_workers_change_nothing(trainset: TrainSet, augment: str, workers: int) -> None:
    steps = batches(trainset, augment=augment)
    plain = list(load_in_order(steps, range(5), 0, pin=False))
    for one, other in zip(plain, load_in_order(steps, range(5), workers, pin=False), strict=True):
        assert all(torch.equal(left, right) for left, right in zip(one[:5], other[:5], strict=True))


def test_no_augmentation_leaves_the_pixels_and_nothing_to_the_device(trainset: TrainSet) -> None:
    steps = batches(trainset, augment="none")
    batch = steps[0]
    begin, end = steps.steps[0]
    assert np.array_equal(batch.images.numpy(), trainset.pack.pixels[steps.pack_rows[steps.order[begin:end]]])
    assert len(batch.symmetries) == 0


def test_strong_augmentation_is_the_same_whether_the_host_or_the_device_turns(trainset: TrainSet) -> None:
    config = dataclasses.replace(CONFIG, augment="strong")
    here, later = (
        EpochBatches(trainset, config, epoch=0, rank=0, world_size=1, transform_on_host=turn)[0]
        for turn in (True, False)
    )
    assert torch.equal(here.images, apply_symmetry(later.images, later.symmetries))


def test_an_epoch_can_begin_at_any_step(trainset: TrainSet) -> None:
    plain = list(load_in_order(batches(trainset), range(5), 0, pin=False))
    late = list(load_in_order(batches(trainset), range(3, 5), 0, pin=False))
    assert torch.equal(plain[3].images, late[0].images) and torch.equal(plain[4].images, late[1].images)


def test_epochs_differ_and_a_pack_of_more_patches_changes_nothing(trainset: TrainSet) -> None:
    assert not torch.equal(batches(trainset)[0].labels, batches(trainset, epoch=1)[0].labels) or not torch.equal(
        batches(trainset)[0].images, batches(trainset, epoch=1)[0].images
    )
    ids, labels = trainset.ids[::2], trainset.labels[::2]
    rows = trainset.pack.rows(ids)
    small = TrainSet(Pack(ids, trainset.pack.pixels[rows], trainset.pack.folder), ids, labels)
    assert torch.equal(batches(small)[1].images, batches(TrainSet(trainset.pack, ids, labels))[1].images)


@given(total=st.integers(0, 200), block=st.integers(1, 64))
def test_prediction_blocks_hold_each_place_once(total: int, block: int) -> None:
    ids = [f"{number:05d}" for number in range(total)]
    pack = Pack(ids, np.zeros((total, 1, 1, 3), np.uint8), None)  # type: ignore[arg-type]
    blocks = PredictionBlocks(pack, ids, block)
    places = [place for number in range(len(blocks)) for place in blocks[number].rows.tolist()]
    assert places == list(range(total))
