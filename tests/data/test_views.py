"""Test views and augmentation: the symmetries of the square, and a pure function of (seed, epoch, id)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from claris_kaggle.core.errors import DataError, UsageError
from claris_kaggle.data.augment import (
    _GEOMETRY_WORD,
    _color_draws,
    _draw_words,
    _Geometry,
    _stain_draws,
    _symmetry_numbers,
    change_stain,
    crop_centre,
    to_input,
)
from claris_kaggle.data.d4 import apply_symmetry, view
from claris_kaggle.inference.tta import average_views, require_views

LABELLED = torch.arange(6 * 6).reshape(1, 6, 6, 1)


def all_views(images: torch.Tensor) -> list[torch.Tensor]:
    return [view(images, number) for number in range(8)]


def test_the_eight_views_of_a_labelled_image_all_differ() -> None:
    assert len({one.numpy().tobytes() for one in all_views(LABELLED)}) == 8
    assert torch.equal(view(LABELLED, 0), LABELLED)


def test_the_views_form_a_closed_group_with_inverses() -> None:
    known = {one.numpy().tobytes() for one in all_views(LABELLED)}
    for first, second in itertools.product(range(8), repeat=2):
        assert view(view(LABELLED, first), second).numpy().tobytes() in known
    for first in range(8):
        assert any(torch.equal(view(view(LABELLED, first), second), LABELLED) for second in range(8))


def test_the_views_are_those_of_ttach() -> None:
    import ttach

    group = ttach.aliases.d4_transform()
    image = LABELLED.permute(0, 3, 1, 2).float()
    theirs = {one.augment_image(image).permute(0, 2, 3, 1).long().numpy().tobytes() for one in group}
    assert theirs == {one.numpy().tobytes() for one in all_views(LABELLED)}


def test_an_equivariant_model_gives_eight_equal_answers() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8))
    answers = [to_input(one, "patches").square().sum(dim=(1, 2, 3)) for one in all_views(images)]
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0], rtol=1e-5, atol=0)


def test_a_model_that_looks_at_a_corner_sees_each_corner_twice() -> None:
    corners = [int(one[0, 0, 0, 0]) for one in all_views(LABELLED)]
    assert sorted(corners) == [0, 0, 5, 5, 30, 30, 35, 35]


def test_probabilities_are_averaged_and_not_logits() -> None:
    logits = torch.tensor([[[0.0, 0.0]], [[0.0, 20.0]]])
    assert average_views(logits).item() == pytest.approx(0.75, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(8)), st.integers(0, 100))
def test_the_mean_does_not_depend_on_the_order_of_views(order: list[int], seed: int) -> None:
    logits = torch.randn(8, 5, 2, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(average_views(logits[order]), average_views(logits), rtol=0, atol=1e-7)


@pytest.mark.parametrize("shape", [(0, 3, 2), (8, 3, 1), (8, 3)])
def test_logits_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"expected \[views, patches, 2\]"):
        average_views(torch.zeros(shape))


@pytest.mark.parametrize("views", [0, 2, 3, 7, 16, -8])
def test_other_numbers_of_views_are_refused(views: int) -> None:
    with pytest.raises(UsageError, match="it must be 1, 4 or 8"):
        require_views(views)


IDS = [f"{number:040x}" for number in range(400)]


def test_draws_depend_on_seed_epoch_and_id_and_on_nothing_else() -> None:
    words = _draw_words(1, 2, IDS)
    assert np.array_equal(_draw_words(1, 2, IDS[::-1])[::-1], words)
    for other in (_draw_words(0, 2, IDS), _draw_words(1, 3, IDS)):
        assert not (other == words).any()
    assert len(np.unique(words)) == words.size


def test_all_eight_turns_are_as_likely() -> None:
    patch = np.random.default_rng(0).integers(0, 256, (1, 96, 96, 3), dtype=np.uint8)
    turned = _Geometry()(patch.repeat(400, axis=0), _draw_words(0, 0, IDS))
    counts = np.unique(turned.reshape(400, -1)[:, :300], axis=0, return_counts=True)[1]
    assert len(counts) == 8 and counts.min() > 25


@pytest.mark.parametrize("geometry", [("d4", 96), ("d4", 64), ("flips", 96)])
def test_a_patch_is_cropped_and_turned_the_same_in_any_company(geometry: tuple[str, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 96, 96, 3), dtype=np.uint8)
    words = _draw_words(3, 1, IDS[:20])
    whole = _Geometry(*geometry)(pixels, words)
    assert whole.shape == (20, geometry[1], geometry[1], 3)
    for row in (0, 7, 19):
        alone = _Geometry(*geometry)(pixels[row : row + 1], words[row : row + 1])
        assert np.array_equal(alone[0], whole[row])


def test_a_crop_is_the_centre_in_training_as_in_prediction() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 96, 96, 3), dtype=np.uint8)
    cropped = _Geometry("d4", 64, transform=False)(pixels, _draw_words(0, 0, IDS[:20]))
    assert np.array_equal(cropped, pixels[:, 16:80, 16:80])
    assert np.array_equal(crop_centre(torch.from_numpy(pixels), 64).numpy(), cropped)


def test_the_originals_turns_keep_the_middle_and_blacken_corners() -> None:
    white = np.full((50, 96, 96, 3), 255, dtype=np.uint8)
    turned = _Geometry("flips")(white, _draw_words(0, 0, IDS[:50]))
    assert (turned[:, 40:56, 40:56] == 255).all() and (turned[:, 0, 0] == 0).any()


def test_stain_of_no_strength_changes_nothing_and_one_of_some_changes_colour_alone() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), dtype=np.uint8))
    words = _draw_words(0, 0, IDS[:4])
    same = change_stain(images, torch.from_numpy(_stain_draws(words, 0.0)))
    torch.testing.assert_close(same, images.float(), rtol=1e-3, atol=0.05)
    flat = torch.full((4, 2, 2, 3), 128, dtype=torch.uint8)
    other = change_stain(flat, torch.from_numpy(_stain_draws(words, 0.2)))
    assert (other[:, 0, 0] == other[:, 1, 1]).all() and (other - 128).abs().max() > 2
    assert (
        np.abs(_stain_draws(words, 0.2)).max() <= 0.2 and (_stain_draws(words, 0.2) != _color_draws(words, 0.2)).all()
    )


def test_epochs_turn_a_patch_differently() -> None:
    turns = {tuple(_draw_words(0, epoch, IDS[:1])[0, _GEOMETRY_WORD : _GEOMETRY_WORD + 1]) for epoch in range(20)}
    assert len(turns) == 20


def test_colour_of_no_strength_is_plain_normalisation() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), dtype=np.uint8))
    plain = to_input(images, "patches")
    still = to_input(images, "patches", torch.from_numpy(_color_draws(_draw_words(0, 0, IDS[:4]), 0.0)))
    torch.testing.assert_close(still, plain, rtol=1e-5, atol=1e-5)
    assert plain.shape == (4, 3, 96, 96) and plain.is_contiguous(memory_format=torch.channels_last)


def test_the_folded_colour_change_equals_its_steps_one_by_one() -> None:
    from claris_kaggle.data.augment import _LUMA, STATISTICS

    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8))
    draws = torch.from_numpy(_color_draws(_draw_words(0, 0, IDS[:2]), 1.0))
    mean, deviation = (torch.tensor(one) for one in STATISTICS["imagenet"])
    for row in range(2):
        contrast, saturation, brightness, *gains = draws[row].tolist()
        x = images[row] / 255
        grey = (x * torch.tensor(_LUMA)).sum(-1, keepdim=True)
        x = (1 + saturation) * x - saturation * grey
        x = x * (1 + torch.tensor(gains))
        x = (1 + contrast) * x - contrast * mean + brightness
        expected = ((x - mean) / deviation).permute(2, 0, 1)
        torch.testing.assert_close(to_input(images, "imagenet", draws)[row], expected, rtol=1e-4, atol=1e-5)


def test_the_device_turns_patches_as_albumentations_does() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 96, 3), dtype=np.uint8)
    words = _draw_words(3, 1, [f"{number:040x}" for number in range(64)])
    turns = _symmetry_numbers(words)
    assert set(turns.tolist()) == set(range(8))
    ours = apply_symmetry(torch.from_numpy(pixels), torch.from_numpy(turns))
    assert np.array_equal(ours.numpy(), _Geometry()(pixels, words))


def test_each_patch_has_the_mean_of_its_own_views() -> None:
    logits = torch.tensor([[[0.0, 2.0], [1.0, 0.0]], [[0.0, 4.0], [3.0, 0.0]]])
    odds = torch.tensor([[2.0, -1.0], [4.0, -3.0]])
    torch.testing.assert_close(average_views(logits), torch.sigmoid(odds).mean(dim=0))


def test_a_wrong_number_of_views_and_a_wrong_shape_are_named() -> None:
    with pytest.raises(UsageError) as asked:
        require_views(3)
    assert str(asked.value) == "--views is 3; it must be 1, 4 or 8"
    with pytest.raises(DataError) as shaped:
        average_views(torch.zeros(2, 3))
    assert str(shaped.value) == "logits of shape (2, 3); expected [views, patches, 2]"
