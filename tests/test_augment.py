"""Batched augmentation does what its names say, and nothing else decides it but the generator."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from fer_utils import augment
from fer_utils.augment import (
    NO_AUGMENT,
    PIXEL_MEAN,
    PIXEL_SD,
    Augment,
    augment_batch,
    augment_with_points,
    erase,
    mix,
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


def center(image: torch.Tensor) -> tuple[float, float]:
    """Center of mass (x, y) of one (48,48) image."""
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
    x, y = zip(*(center(image[0]) for image in augment_batch(picture(200), how, generator())), strict=True)
    x0, y0 = center(picture()[0, 0])
    moved = torch.tensor([x, y]) - torch.tensor([[x0], [y0]])
    assert moved.abs().max() < 0.1 * 48 + 0.1
    assert moved.abs().max() > 0.08 * 48
    assert abs(moved.mean()) < 0.5  # both ways alike


def test_rotation_keeps_the_distance_to_the_middle():
    how = Augment(flip=0, shift=0, rotate=30, scale=0, brightness=0, contrast=0)
    distance = [
        ((x - 23.5) ** 2 + (y - 23.5) ** 2) ** 0.5
        for x, y in (center(i[0]) for i in augment_batch(picture(50), how, generator()))
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
    found = (torch.tensor([center(image[0]) for image in changed]) + 0.5) / 48
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


@pytest.mark.parametrize(
    "wrong",
    [
        {"flip": 1.5},
        {"shift": -0.1},
        {"rotate": 500},
        {"scale": 1.0},
        {"erase": 1.1},
        {"erase": float("nan")},
        {"mixup": -0.2},
        {"cutmix": 1000},
        {"erase_area": (0.3, 0.1)},
        {"erase_area": 0.1},
        {"erase_area": (0.1, 0.2, 0.3)},
        {"erase_area": (0.0, 0.1)},
        {"erase_area": (0.1, 1.1)},
    ],
    ids=str,
)
def test_strengths_that_make_no_image_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augment(**wrong)


# ---- Mirror images by order ----


def test_who_is_mirrored_can_be_said_instead_of_left_to_chance():
    mirror = torch.tensor([True, False, True, True])
    how = replace(NO_AUGMENT, flip=0.5, alternate=True)
    expected = torch.where(mirror.view(-1, 1, 1, 1), picture(4).flip(-1), picture(4))
    assert torch.allclose(augment_batch(picture(4), how, generator(), mirror), expected, atol=1e-5)
    images, points = augment_with_points(picture(4), FACE.repeat(4, 1, 1), how, generator(), mirror)
    other_side = (FACE * torch.tensor([-1, 1]) + torch.tensor([1, 0]))[[1, 0, 3, 2]]
    assert torch.allclose(images, expected, atol=1e-5)
    assert torch.allclose(points, torch.where(mirror.view(-1, 1, 1), other_side, FACE), atol=1e-6)


# ---- Erasing ----


def holes(n: int, **strengths) -> torch.Tensor:
    """(n,48,48) bool: which pixels are erased; the images are of 5, so no pixel is gray by itself."""
    erased = erase(torch.full((n, 1, 48, 48), 5.0), replace(NO_AUGMENT, **strengths), generator())
    assert set(erased.unique().tolist()) <= {0.0, 5.0}  # 0 is the mean of all pixels
    return erased[:, 0] == 0


def sides(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Height and width (N,) of the rectangles in (N,48,48); nothing else must be there."""
    height, width = mask.any(2).sum(1), mask.any(1).sum(1)
    assert torch.equal(mask.sum((1, 2)), height * width)
    return height, width


@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_erasing_has_its_probability(probability):
    share = holes(2000, erase=probability).any((1, 2)).float().mean()
    assert share == pytest.approx(probability, abs=0.04 * (probability < 1))


@pytest.mark.parametrize("area", [(0.02, 0.33), (0.1, 0.1), (0.05, 0.2)])
def test_erased_rectangles_have_the_area_and_the_ratio_of_the_paper(area):
    height, width = sides(holes(2000, erase=1.0, erase_area=area))
    slack = (height + width + 1) / 48**2  # a side may be rounded by a pixel
    shares = height * width / 48**2
    assert (shares >= area[0] - slack).all() and (shares <= area[1] + slack).all()
    assert float(shares.mean()) == pytest.approx(sum(area) / 2, rel=0.05)  # all areas are equally likely
    assert ((height + 1) / (width - 1).clamp(min=0.1) >= 0.3).all() and ((height - 1) / (width + 1) <= 3.3).all()
    assert abs(float((height.log() - width.log()).mean())) < 0.05  # standing or lying alike
    assert (height > 2 * width).any() and (width > 2 * height).any()


def test_erased_rectangles_lie_anywhere_but_inside_the_image():
    mask = holes(3000, erase=1.0, erase_area=(0.1, 0.1))
    height, width = sides(mask)
    assert ((height * width / 48**2 - 0.1).abs() < 0.04).all()  # none is cut off by the border
    often = mask.float().mean(0)
    corners = [often[y, x].max() for y in (slice(4), slice(-4, None)) for x in (slice(4), slice(-4, None))]
    assert min(corners) > 0 and often[12:36, 12:36].mean() > often[[0, -1]].mean()
    assert torch.allclose(often.mean(0), often.mean(0).flip(0), atol=0.02)  # left and right alike
    assert torch.allclose(often.mean(1), often.mean(1).flip(0), atol=0.02)


def test_erasing_comes_after_light_and_leaves_points_where_they_are():
    how = replace(NO_AUGMENT, brightness=0.5, erase=1.0)
    images, points = augment_with_points(torch.full((50, 1, 48, 48), 5.0), FACE.repeat(50, 1, 1), how, generator())
    assert ((images == 0).sum((1, 2, 3)) > 20).all()
    assert torch.equal(points, FACE.repeat(50, 1, 1))


# ---- Mixing ----


def numbered(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n,1,48,48) of which every pixel holds the image's number, and labels (n,n) that name it."""
    return torch.arange(float(n)).view(-1, 1, 1, 1).repeat(1, 1, 48, 48), torch.eye(n)


def mixed(n: int, **alphas: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The neighbor's share at every pixel (n,48,48) of the numbered images once mixed, and in their labels (n,)."""
    images, labels = numbered(n)
    blended, shares = mix(images, labels, replace(NO_AUGMENT, **alphas), generator())
    neighbor = torch.arange(n).roll(1)
    assert shares.shape == (n, n) and torch.allclose(shares.sum(1), torch.ones(n))
    assert torch.allclose(shares[range(n), range(n)] + shares[range(n), neighbor], torch.ones(n))  # two classes
    at_pixels = (blended - images) / (neighbor - torch.arange(n)).view(-1, 1, 1, 1)
    return at_pixels[:, 0], shares[range(n), neighbor]


def test_mixup_blends_images_and_labels_in_the_same_share():
    at_pixels, in_label = mixed(600, mixup=1.0)
    assert torch.allclose(at_pixels, in_label.view(-1, 1, 1).expand_as(at_pixels), atol=1e-4)
    assert len(in_label.unique()) > 500  # each image draws its own


def assert_beta(shares: torch.Tensor, alpha: float) -> None:
    """Fail unless the shares (N,) may come from Beta(alpha, alpha)."""
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(shares.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
    assert stats.kstest(shares.numpy(), stats.beta(alpha, alpha).cdf).statistic < 0.03


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_draws_from_the_beta_distribution(alpha):
    odd = torch.arange(8000.0).view(-1, 1) % 2  # a share of 1 for odd images, all of whose neighbors are even
    _, shares = mix(torch.zeros(8000, 1, 8, 8), odd, replace(NO_AUGMENT, mixup=alpha), generator(1))
    assert_beta((shares - odd).abs().flatten(), alpha)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_cutmix_draws_the_area_from_the_beta_distribution(alpha, monkeypatch):
    areas, real = [], augment.rectangles

    def watched(top, left, height, width, size):
        areas.append(height * width)  # with what will be cut off by the border
        return real(top, left, height, width, size)

    monkeypatch.setattr(augment, "rectangles", watched)
    mix(torch.zeros(8000, 1, 8, 8), torch.zeros(8000, 1), replace(NO_AUGMENT, cutmix=alpha), generator(1))
    assert_beta(areas[0], alpha)


def test_cutmix_pastes_a_rectangle_of_the_neighbor_and_its_area_is_the_share_of_the_label():
    at_pixels, in_label = mixed(600, cutmix=1.0)
    pasted = at_pixels > 0.5
    assert torch.allclose(at_pixels, pasted.float(), atol=1e-6)  # a pixel is of one image or of the other
    height, width = sides(pasted)
    assert torch.allclose(in_label, height * width / 48**2, atol=1e-6)
    inside = ~(pasted[:, [0, -1]].any((1, 2)) | pasted[:, :, [0, -1]].any((1, 2)))
    assert ((height - width).abs()[inside] <= 1).all() and inside.sum() > 30  # as wide as high, unless cut off
    often = pasted.float().mean(0)
    assert torch.allclose(often, often.flip(0), atol=0.1) and torch.allclose(often, often.flip(1), atol=0.1)


def test_cutmix_pastes_the_same_place_of_the_neighbor():
    images, labels = torch.randn(50, 1, 48, 48), torch.eye(50)
    pasted, _ = mix(images, labels, replace(NO_AUGMENT, cutmix=1.0), generator())
    own, others = pasted == images, pasted == images.roll(1, 0)
    assert (own | others).all() and own.any() and others.any()


def test_with_both_about_half_get_each():
    at_pixels, in_label = mixed(2000, mixup=1.0, cutmix=1.0)
    cut = at_pixels.amin((1, 2)) < at_pixels.amax((1, 2)) - 1e-3  # the rest is even
    assert float(cut.float().mean()) == pytest.approx(0.5, abs=0.06)
    assert torch.allclose(at_pixels.mean((1, 2)), in_label, atol=1e-3)
    even = in_label[~cut]
    assert ((even > 0.1) & (even < 0.9)).float().mean() > 0.7  # blended, not left alone


@pytest.mark.parametrize("alphas", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_only_the_generator_decides_how_images_are_mixed(alphas):
    how, results = replace(NO_AUGMENT, **alphas), []
    for global_seed, seed in [(1, 3), (2, 3), (2, 4)]:
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        results.append(mix(*numbered(20), how, generator(seed)))
    (first, labels), (again, same_labels), (other, _) = results
    assert torch.equal(first, again) and torch.equal(labels, same_labels) and not torch.equal(first, other)


def test_an_image_alone_in_its_batch_stays_as_it_is():
    images, labels = numbered(1)
    assert torch.equal(mix(images, labels, Augment(mixup=1.0, cutmix=1.0), generator())[0], images)


@pytest.mark.parametrize("alphas", [{"mixup": 0.2}, {"cutmix": 1.0}])
def test_landmarks_are_not_mixed(alphas):
    with pytest.raises(ValueError, match="landmarks cannot be mixed; switch off"):
        augment_with_points(picture(4), FACE.repeat(4, 1, 1), Augment(**alphas), generator())


def test_strengths_say_what_they_do():
    assert not NO_AUGMENT.moves and not NO_AUGMENT.mixes
    assert replace(NO_AUGMENT, alternate=True).moves
    assert replace(NO_AUGMENT, mixup=0.1).mixes and replace(NO_AUGMENT, cutmix=0.1).mixes
    assert not Augment(mixup=0.1, cutmix=0.1).without("mixup", "cutmix").mixes
