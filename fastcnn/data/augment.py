"""Small random changes to training images, on the device that trains."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Augment:
    """Turns, shifts and zooms every image of a batch by its own random amounts.

    rotation: at most so many degrees either way; shift: at most this share of the width and of the height;
    zoom: at most this share larger or smaller. What comes in from outside repeats the edge. The defaults are
    mild enough for letters and photographs alike; nothing is mirrored.
    """

    rotation: float = 10.0
    shift: float = 0.07
    zoom: float = 0.1

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """`images` (N, C, H, W), floating point, on any device, changed by amounts drawn from `generator`,
        which is on the CPU; on one device, equal draws give equal bits."""
        _, _, height, width = images.shape
        amounts = torch.rand(4, len(images), generator=generator).mul_(2).sub_(1)
        angle = amounts[0] * math.radians(self.rotation)
        scale = 1 + amounts[1] * self.zoom
        cos, sin = scale * angle.cos(), scale * angle.sin()
        # In affine_grid's coordinates the image is 2 wide and 2 high, whatever its sides.
        matrix = torch.stack(
            (cos, -sin * (height / width), amounts[2] * (2 * self.shift),
             sin * (width / height), cos, amounts[3] * (2 * self.shift)),
            dim=1,
        )  # fmt: skip
        matrix = matrix.view(-1, 2, 3).to(images.device, images.dtype, non_blocking=True)
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
