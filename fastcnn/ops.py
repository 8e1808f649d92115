"""Every operator of the package, its schema, and what each dispatch key does with it.

The kernels (csrc/bindings) implement these schemas for CUDA tensors. Where they are not loaded, ATen runs
(`_aten.py`): the schemas are defined here, in Python, so that the operators always exist. Conventions:

- Tensors are 4-D, of one dtype out of float32, float16, bfloat16 and float64; any strides are accepted.
- A result is dense, NHWC where ``channels_last`` says so. Without that argument: NHWC if an operand is.
- No operator writes to, or aliases, an argument. Same inputs, same bits.
- ``activation`` is one of `_checks.ACTIVATIONS`; ``negative_slope`` is leaky_relu's, not negative, and the
  others leave it alone. ``residual`` has the output's size: y = activation(conv + bias + residual).
- ``saved`` is what the activation's derivative is taken at: its result for `_checks.DERIVED_FROM_OUTPUT`, its
  argument (the preactivation) for the others. ``conv2d_act_dgrad`` and ``conv2d_act_wgrad`` take the output
  gradient back through the activation as they load it; None leaves it as it is. ``conv2d_act_wgrad`` gives
  the weight's and the bias's gradient, the latter empty unless ``bias``.
- ``conv2d_act_max_pool2d`` is conv2d, its activation and max_pool2d with a 2x2 window, stride 2, no padding
  and floor mode; the values are those of the two, whose rounding between them is made, too.
- ``divisor_override`` 0 stands for none.
- Pooling ``indices`` are offsets in the window, r * kernel_w + s (uint8, or int32 for windows of more than
  256), or positions in the plane, h * width + w (int64); the dtype tells.
"""

from __future__ import annotations

import torch

from fastcnn import _aten, _autocast, _autograd, _fake

_CONV = (
    "int stride_h, int stride_w, int pad_top, int pad_bottom, int pad_left, int pad_right, "
    "int dilation_h, int dilation_w, int groups"
)
_ACTIVATION = "str activation, float negative_slope"
_FPROP = (
    f"Tensor input, Tensor weight, Tensor? bias, Tensor? residual, {_CONV}, {_ACTIVATION}, bool allow_tf32"
)
_MAX_POOL = (
    "int kernel_h, int kernel_w, int stride_h, int stride_w, int pad_h, int pad_w, "
    "int dilation_h, int dilation_w, bool ceil_mode"
)
_AVG_POOL = (
    "int kernel_h, int kernel_w, int stride_h, int stride_w, int pad_h, int pad_w, "
    "bool ceil_mode, bool count_include_pad, int divisor_override"
)

_CONV_POOL = f"Tensor input, Tensor weight, Tensor? bias, {_CONV}, {_ACTIVATION}, bool allow_tf32"

SCHEMAS = (
    f"conv2d({_FPROP}) -> Tensor",
    f"conv2d_with_preactivation({_FPROP}) -> (Tensor, Tensor)",
    f"conv2d_act_max_pool2d({_CONV_POOL}) -> Tensor",
    f"conv2d_act_max_pool2d_with_offsets({_CONV_POOL}) -> (Tensor, Tensor)",
    f"conv2d_dgrad(Tensor grad_output, Tensor weight, SymInt height, SymInt width, {_CONV}, "
    "bool channels_last, bool allow_tf32) -> Tensor",
    f"conv2d_wgrad(Tensor grad_output, Tensor input, SymInt kernel_h, SymInt kernel_w, {_CONV}, "
    "bool channels_last, bool allow_tf32) -> Tensor",
    "conv2d_bias_grad(Tensor grad_output) -> Tensor",
    "conv2d_act_dgrad(Tensor grad_output, Tensor saved, Tensor weight, SymInt height, SymInt width, "
    f"{_CONV}, {_ACTIVATION}, bool channels_last, bool allow_tf32) -> Tensor",
    "conv2d_act_wgrad(Tensor grad_output, Tensor? saved, Tensor input, SymInt kernel_h, SymInt kernel_w, "
    f"{_CONV}, {_ACTIVATION}, bool bias, bool channels_last, bool allow_tf32) -> (Tensor, Tensor)",
    f"max_pool2d(Tensor input, {_MAX_POOL}) -> Tensor",
    f"max_pool2d_with_offsets(Tensor input, {_MAX_POOL}) -> (Tensor, Tensor)",
    f"max_pool2d_with_indices(Tensor input, {_MAX_POOL}) -> (Tensor, Tensor)",
    f"max_pool2d_backward(Tensor grad_output, Tensor indices, SymInt height, SymInt width, {_MAX_POOL}, "
    "bool channels_last) -> Tensor",
    f"max_pool2d_gather(Tensor input, Tensor indices, {_MAX_POOL}) -> Tensor",
    f"avg_pool2d(Tensor input, {_AVG_POOL}) -> Tensor",
    f"avg_pool2d_backward(Tensor grad_output, SymInt height, SymInt width, {_AVG_POOL}, "
    "bool channels_last) -> Tensor",
    "adaptive_avg_pool2d(Tensor input, SymInt output_h, SymInt output_w) -> Tensor",
    "adaptive_avg_pool2d_backward(Tensor grad_output, SymInt height, SymInt width, "
    "bool channels_last) -> Tensor",
    "adaptive_max_pool2d(Tensor input, SymInt output_h, SymInt output_w) -> (Tensor, Tensor)",
    "adaptive_max_pool2d_backward(Tensor grad_output, Tensor indices, SymInt height, SymInt width, "
    "bool channels_last) -> Tensor",
    "adaptive_max_pool2d_gather(Tensor input, Tensor indices) -> Tensor",
    # No tensors: the kernel that would run, as JSON. The library has it; fastcnn/plan.py knows the numbers.
    "plan(str op, int[] problem, str dtype, bool channels_last, str chip) -> str",
)

_library = torch.library.Library("fastcnn", "DEF")

for _schema in SCHEMAS:
    _library.define(_schema)
for _name, _function in _aten.IMPLEMENTATIONS.items():
    # The weakest key: an implementation for a device's own key, ours on CUDA, goes before it.
    _library.impl(_name, _function, "CompositeExplicitAutograd")
for _name, _function in _fake.IMPLEMENTATIONS.items():
    torch.library.register_fake(f"fastcnn::{_name}", _function, lib=_library)
for _name, _formula in _autograd.FORMULAS.items():
    torch.library.register_autograd(
        f"fastcnn::{_name}", _formula.backward, setup_context=_formula.setup_context, lib=_library
    )
for _device_type, _key in _autocast.KEYS.items():
    for _name in _autocast.NAMES:
        _library.impl(_name, _autocast.conv2d_on(_device_type, _name), _key)
