"""Batched augmentation does what its names say, and nothing else decides it but the generator."""

import pytest
import torch

from fer_utils.augment import NO_AUGMENT, PIXEL_MEAN, PIXEL_SD, Augment, augment_batch, random_affine, to_float


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(n: int = 1) -> torch.Tensor:
    """A batch with one bright square left of the middle and above it, on black."""
    images = torch.zeros(n, 1, 48, 48)
    images[:, :, 8:16, 6:14] = 1.0
    return images


def centre(image: torch.Tensor) -> tuple[float, float]:
    """Centre of mass (x, y) of one (48,48) image."""
    weights = image / image.sum()
    along = torch.arange(48.0)
    return float((weights.sum(0) * along).sum()), float((weights.sum(1) * along).sum())


def test_to_float_standardizes():
    pixels = torch.tensor([[[0, 255]]], dtype=torch.uint8)
    expected = torch.tensor([(0 - PIXEL_MEAN) / PIXEL_SD, (1 - PIXEL_MEAN) / PIXEL_SD])
    assert to_float(pixels).shape == (1, 1, 1, 2)
    assert torch.allclose(to_float(pixels).flatten(), expected)


def test_nothing_switched_on_changes_nothing():
    assert torch.equal(augment_batch(picture(), NO_AUGMENT, generator()), picture())


def test_flip_mirrors_left_and_right():
    always = Augment(flip=1.0, shift=0, rotate=0, scale=0, brightness=0, contrast=0)
    assert torch.allclose(augment_batch(picture(), always, generator()), picture().flip(-1), atol=1e-5)


def test_flip_probability():
    half = Augment(flip=0.5, shift=0, rotate=0, scale=0, brightness=0, contrast=0)
    flipped = random_affine(2000, half, generator())[:, 0, 0] < 0
    assert 0.45 < flipped.float().mean() < 0.55


def test_shift_stays_within_its_fraction_of_the_width_and_uses_it():
    how = Augment(flip=0, shift=0.1, rotate=0, scale=0, brightness=0, contrast=0)
    x, y = zip(*(centre(image[0]) for image in augment_batch(picture(200), how, generator())), strict=True)
    x0, y0 = centre(picture()[0, 0])
    moved = torch.tensor([x, y]) - torch.tensor([[x0], [y0]])
    assert moved.abs().max() < 0.1 * 48 + 0.1
    assert moved.abs().max() > 0.08 * 48
    assert abs(moved.mean()) < 0.5  # both ways alike


def test_rotation_keeps_the_distance_to_the_middle():
    how = Augment(flip=0, shift=0, rotate=30, scale=0, brightness=0, contrast=0)
    distance = [
        ((x - 23.5) ** 2 + (y - 23.5) ** 2) ** 0.5
        for x, y in (centre(i[0]) for i in augment_batch(picture(50), how, generator()))
    ]
    assert max(distance) - min(distance) < 0.5


def test_scale_changes_the_area_both_ways():
    how = Augment(flip=0, shift=0, rotate=0, scale=0.2, brightness=0, contrast=0)
    areas = augment_batch(picture(200), how, generator()).sum((1, 2, 3)) / picture().sum()
    assert areas.min() < 0.8 and areas.max() > 1.2
    assert areas.min() > 1 / 1.2**2 - 0.05 and areas.max() < 1 / 0.8**2 + 0.1


def test_brightness_and_contrast_are_drawn_for_each_image():
    how = Augment(flip=0, shift=0, rotate=0, scale=0, brightness=0.2, contrast=0.3)
    changed = augment_batch(picture(300), how, generator())
    gain = changed.amax((1, 2, 3)) - changed.amin((1, 2, 3))
    offset = changed.amin((1, 2, 3))
    assert 0.7 <= gain.min() < 0.75 and 1.25 < gain.max() <= 1.3
    assert 0.9 * 0.2 / PIXEL_SD < offset.abs().max() <= 0.2 / PIXEL_SD


def test_only_the_generator_decides():
    torch.manual_seed(1)
    first = augment_batch(picture(8), Augment(), generator(3))
    torch.manual_seed(2)
    assert torch.equal(first, augment_batch(picture(8), Augment(), generator(3)))
    assert not torch.equal(first, augment_batch(picture(8), Augment(), generator(4)))


@pytest.mark.parametrize("wrong", [{"flip": 1.5}, {"shift": -0.1}, {"rotate": 500}, {"scale": 1.0}])
def test_strengths_that_make_no_image_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augment(**wrong)
