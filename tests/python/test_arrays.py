"""fastcnn.arrays: NumPy in, NumPy out; torch in, torch out; whatever speaks DLPack."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastcnn import arrays


def numbers(*shape: int, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(-3, 4, shape).astype(dtype)


CALLS = {
    "conv2d": (
        lambda m, x: m.conv2d(x, x[:2, :, :3, :3], x[0, 0, 0, :2], stride=2, padding=1),
        (2, 4, 8, 7),
    ),
    "max_pool2d": (lambda m, x: m.max_pool2d(x, 2), (2, 4, 8, 7)),
    "max_pool2d-indices": (lambda m, x: m.max_pool2d(x, 3, 2, 1, return_indices=True), (2, 4, 8, 7)),
    "avg_pool2d": (lambda m, x: m.avg_pool2d(x, 2, 1, ceil_mode=True), (3, 6, 5)),
    "adaptive_avg_pool2d": (lambda m, x: m.adaptive_avg_pool2d(x, (2, None)), (1, 3, 6, 4)),
    "adaptive_max_pool2d": (lambda m, x: m.adaptive_max_pool2d(x, 2, return_indices=True), (1, 3, 6, 4)),
}


def parts(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", list(CALLS))
def test_numpy(operators_on_cpu, name, dtype):
    call, shape = CALLS[name]
    array = numbers(*shape, dtype=dtype)
    got, expected = parts(call(arrays, array)), parts(call(F, torch.from_numpy(array)))
    for one, other in zip(got, expected, strict=True):
        assert type(one) is np.ndarray
        assert one.dtype == other.numpy().dtype
        np.testing.assert_array_equal(one, other.numpy())


@pytest.mark.parametrize("name", list(CALLS))
def test_numpy_on_our_kernels(emulated_on_cpu, name):
    call, shape = CALLS[name]
    array = numbers(*shape)
    for one, other in zip(parts(call(arrays, array)), parts(call(F, torch.from_numpy(array))), strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-6)


def test_awkward_numpy_arrays(operators_on_cpu):
    array = numbers(2, 4, 8, 8)
    expected = arrays.max_pool2d(array, 2)
    frozen = array.copy()
    frozen.flags.writeable = False
    views = {
        "read-only": frozen,
        "transposed": array.transpose(0, 1, 3, 2).copy().transpose(0, 1, 3, 2),
        "negative strides": array[:, :, ::-1].copy()[:, :, ::-1],
        "other byte order": array.astype(array.dtype.newbyteorder()),
    }
    for name, view in views.items():
        np.testing.assert_array_equal(arrays.max_pool2d(view, 2), expected, err_msg=name)
    weight = numbers(3, 4, 3, 3)
    weight.flags.writeable = False
    assert arrays.conv2d(array, weight).shape == (2, 3, 6, 6)


def test_no_copy_on_the_way_in(operators_on_cpu):
    array = numbers(1, 2, 4, 4)
    tensor = arrays._to_tensor("input", array)
    assert tensor.data_ptr() == array.__array_interface__["data"][0]


def test_torch_stays_torch(operators_on_cpu):
    tensor = torch.randn(1, 2, 4, 4, requires_grad=True)
    result = arrays.avg_pool2d(tensor, 2)
    assert isinstance(result, torch.Tensor)
    assert not result.requires_grad


def test_any_library_with_dlpack(operators_on_cpu):
    """A library of its own: an array with __dlpack__, a namespace with from_dlpack."""

    class Namespace:
        @staticmethod
        def from_dlpack(source):
            return Array(torch.from_dlpack(source))

    class Array:
        def __init__(self, tensor):
            self.tensor = tensor

        def __dlpack__(self, **options):
            return self.tensor.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.tensor.__dlpack_device__()

        def __array_namespace__(self):
            return Namespace

    image = Array(torch.arange(16.0).reshape(1, 1, 4, 4))
    result = arrays.max_pool2d(image, 2)
    assert isinstance(result, Array)
    assert result.tensor.flatten().tolist() == [5, 7, 13, 15]
    assert arrays.conv2d(image, np.ones((1, 1, 2, 2), np.float32)).tensor.shape == (1, 1, 3, 3)


def test_wrong_arrays(operators_on_cpu):
    with pytest.raises(TypeError, match=r"input must be an array with __dlpack__.*list"):
        arrays.max_pool2d([[1.0]], 2)
    with pytest.raises(TypeError, match="weight must be an array"):
        arrays.conv2d(numbers(1, 1, 3, 3), [[1.0]])
    with pytest.raises(TypeError, match="input has dtype object"):
        arrays.max_pool2d(np.array([[[None]]]), 1)
    with pytest.raises(RuntimeError, match=r"3D|3-D"):
        arrays.avg_pool2d(numbers(4, 4), 2)


def test_cupy_is_not_imported():
    program = (
        "import sys, numpy, fastcnn\n"
        "fastcnn.arrays.max_pool2d(numpy.ones((1, 1, 4, 4), numpy.float32), 2)\n"
        "sys.exit('cupy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_cupy(kernels_on_cuda):
    cupy = pytest.importorskip("cupy")
    image = cupy.asarray(numbers(1, 4, 6, 6))
    weight = cupy.asarray(numbers(2, 4, 3, 3))
    with cupy.cuda.Stream(non_blocking=True) as stream:
        result = arrays.conv2d(image * 2, weight)
        stream.synchronize()
    assert isinstance(result, cupy.ndarray)
    expected = arrays.conv2d(image.get() * 2, weight.get())
    np.testing.assert_array_equal(result.get(), expected)
