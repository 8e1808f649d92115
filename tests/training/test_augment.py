import math

import pytest
import torch

from fastcnn.data import Augment


def spot(height=41, width=41, row=20, column=20):
    """A soft round spot, so that where it lies can be measured by its centre of mass."""
    rows = torch.arange(height).view(-1, 1) - row
    columns = torch.arange(width) - column
    return torch.exp(-(rows**2 + columns**2) / 4.0).view(1, 1, height, width)


def centre(image):
    height, width = image.shape[-2:]
    mass = image.double().sum()
    rows = (image.double() * torch.arange(height).view(-1, 1)).sum() / mass
    columns = (image.double() * torch.arange(width)).sum() / mass
    return float(rows), float(columns)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_nothing_asked_is_nothing_done():
    images = torch.rand(3, 2, 9, 14)
    torch.testing.assert_close(Augment(0, 0, 0)(images, generator()), images)


def test_shifts_stay_within_their_share_and_differ_by_image():
    images = spot(61, 41, 30, 20).expand(200, -1, -1, -1)
    moved = Augment(rotation=0, shift=0.1, zoom=0)(images, generator())
    places = torch.tensor([centre(image) for image in moved]) - torch.tensor([30.0, 20.0])
    for offsets, limit in ((places[:, 0], 6.1), (places[:, 1], 4.1)):
        assert offsets.abs().max() <= limit + 0.01
        assert offsets.min() < -0.9 * limit
        assert offsets.max() > 0.9 * limit
    assert len(places.unique(dim=0)) == 200


@pytest.mark.parametrize("shape", [(61, 61), (61, 121)])
def test_rotation_keeps_distances_and_stays_within_its_degrees(shape):
    height, width = shape
    middle = ((height - 1) / 2, (width - 1) / 2)
    images = spot(height, width, row=middle[0] - 20, column=middle[1]).expand(200, -1, -1, -1)
    turned = Augment(rotation=30, shift=0, zoom=0)(images, generator())
    angles = []
    for image in turned:
        row, column = (found - at for found, at in zip(centre(image), middle, strict=True))
        assert math.hypot(row, column) == pytest.approx(20, abs=0.1)
        angles.append(math.degrees(math.atan2(column, -row)))
    assert max(map(abs, angles)) <= 30.1
    assert min(angles) < -27
    assert max(angles) > 27


def test_zoom_stays_within_its_share():
    images = spot(61, 61, row=10, column=30).expand(200, -1, -1, -1)
    zoomed = Augment(rotation=0, shift=0, zoom=0.2)(images, generator())
    distances = [30 - centre(image)[0] for image in zoomed]
    assert 20 / 1.2 - 0.1 <= min(distances) < 17.2
    assert 24 < max(distances) <= 20 / 0.8 + 0.1


def test_what_comes_in_repeats_the_edge():
    changed = Augment(rotation=45, shift=0.5, zoom=0.5)(torch.full((8, 3, 10, 10), 7.0), generator())
    torch.testing.assert_close(changed, torch.full((8, 3, 10, 10), 7.0))


def test_equal_draws_give_equal_bits():
    images = torch.rand(5, 3, 16, 20)
    assert torch.equal(Augment()(images, generator(1)), Augment()(images, generator(1)))
    assert not torch.equal(Augment()(images, generator(1)), Augment()(images, generator(2)))
