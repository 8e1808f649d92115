"""The fast paths of pooling in the emulator, below the operators: each against the general kernels, bit for
bit, and at the shapes of networks against its floor of bytes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.emulator import EmulatorUnavailable, build_program

ROOT = Path(__file__).resolve().parents[2]

#: Pools of networks (torchvision's ResNet-50, VGG-16, GoogLeNet, DenseNet-121, AlexNet, EfficientNet-B0, and
#: the small CNN): layer, kind, H, W, kernel, stride, pad, dilation, P, Q.
SHAPES = """
resnet50.maxpool max 112 112 3 2 1 1 56 56
googlenet.maxpool1 max 112 112 3 2 0 1 56 56
googlenet.maxpool2 max 56 56 3 2 0 1 28 28
googlenet.maxpool3 max 28 28 3 2 0 1 14 14
googlenet.inception3a max 28 28 3 1 1 1 28 28
googlenet.inception4a max 14 14 3 1 1 1 14 14
googlenet.inception5a max 7 7 3 1 1 1 7 7
alexnet.2 max 55 55 3 2 0 1 27 27
alexnet.5 max 27 27 3 2 0 1 13 13
alexnet.12 max 13 13 3 2 0 1 6 6
poolformer avg 56 56 3 1 1 1 56 56
vgg16.4 max 224 224 2 2 0 1 112 112
vgg16.16 max 56 56 2 2 0 1 28 28
vgg16.23 max 28 28 2 2 0 1 14 14
vgg16.30 max 14 14 2 2 0 1 7 7
densenet121.transition1 avg 56 56 2 2 0 1 28 28
densenet121.transition3 avg 14 14 2 2 0 1 7 7
smallcnn.pool1 max 26 26 2 2 0 1 13 13
smallcnn.pool2 max 11 11 2 2 0 1 5 5
resnet50.avgpool adaptive 7 7 7 7 0 1 1 1
efficientnet.112 adaptive 112 112 112 112 0 1 1 1
efficientnet.56 adaptive 56 56 56 56 0 1 1 1
efficientnet.28 adaptive 28 28 28 28 0 1 1 1
efficientnet.14 adaptive 14 14 14 14 0 1 1 1
spp max 20 20 13 1 6 1 20 20
dilated max 56 56 3 1 2 2 56 56
"""


@pytest.fixture(scope="module")
def program() -> Path:
    sources = [
        path for path in sorted((ROOT / "csrc" / "pool2d").iterdir()) if path.suffix in (".cu", ".cpp")
    ]
    try:
        return build_program([Path(__file__).with_name("pool2d_paths_program.cpp"), *sources])
    except EmulatorUnavailable as reason:
        pytest.skip(f"the emulator cannot be built: {reason}")


@pytest.mark.emulated
@pytest.mark.parametrize("check", ("values", "seeds", "bytes"))
def test_paths(program: Path, check: str) -> None:
    result = subprocess.run([program, check], input=SHAPES, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
