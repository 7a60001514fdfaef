"""Batched augmentation does what its names say, and nothing else decides it but the generator."""

from dataclasses import replace

import pytest
import torch

from fer_utils.augment import (
    NO_AUGMENT,
    PIXEL_MEAN,
    PIXEL_SD,
    Augment,
    augment_batch,
    augment_with_points,
    random_affine,
    to_float,
)


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


FACE = torch.tensor([[0.35, 0.4], [0.62, 0.38], [0.4, 0.7], [0.6, 0.72]])  # left eye, right eye, lip corners


def dots(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (4n,1,48,48) of one bright dot each, at one of the points of FACE, and which point it is (4n,)."""
    which = torch.arange(4).repeat(n)
    along = (torch.arange(48) + 0.5) / 48
    x, y = FACE[which, :, None, None].unbind(1)
    return torch.exp(-((along - x) ** 2 + (along[:, None] - y) ** 2) / (2 * 0.03**2))[:, None], which


@pytest.mark.parametrize("strengths", [{"flip": 1.0}, {"shift": 0.1}, {"rotate": 30}, {"scale": 0.2}, vars(Augment())])
def test_points_move_with_the_pixels_and_swap_sides_in_a_mirror_image(strengths):
    how = replace(NO_AUGMENT, **strengths).without("brightness", "contrast")
    images, which = dots(20)
    changed, points = augment_with_points(images, FACE.repeat(80, 1, 1), how, generator())
    mirrored = random_affine(80, how, generator())[:, 0, 0] < 0
    now = torch.where(mirrored, which ^ 1, which)  # 0 and 1 are the eyes, 2 and 3 the lip corners
    found = (torch.tensor([centre(image[0]) for image in changed]) + 0.5) / 48
    assert (found - points[range(80), now]).norm(dim=1).max() * 48 < 0.1  # pixels
    assert (points - FACE).norm(dim=2).mean() * 48 > 1  # it was not easy
    assert (points[:, 0, 0] < points[:, 1, 0]).all()


def test_points_do_not_change_what_happens_to_the_images():
    images = torch.randn(8, 1, 48, 48)
    expected = augment_batch(images, Augment(), generator())
    assert torch.equal(augment_with_points(images, FACE.repeat(8, 1, 1), Augment(), generator())[0], expected)


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
