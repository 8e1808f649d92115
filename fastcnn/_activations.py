"""The fused activations in terms of ATen: values, gradients, and the gradients of those.

Names, formulas and what they give at kinks, NaN and infinities are torch's; gelu is the one by erf.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_aten = torch.ops.aten


def activate(tensor: Tensor, activation: str, negative_slope: float) -> Tensor:
    """`tensor` through the activation; a tensor of its own unless there is none."""
    if activation == "none":
        return tensor
    if activation == "relu":
        return _aten.relu(tensor)
    if activation == "sigmoid":
        return _aten.sigmoid(tensor)
    if activation == "tanh":
        return _aten.tanh(tensor)
    if activation == "silu":
        return _aten.silu(tensor)
    if activation == "gelu":
        return _aten.gelu(tensor)
    if activation == "hardswish":
        return _aten.hardswish(tensor)
    return _aten.leaky_relu(tensor, negative_slope)


def activation_grad(grad: Tensor, saved: Tensor, activation: str, negative_slope: float) -> Tensor:
    """The gradient at the activation's argument, from the one at its result.

    `saved` is the result for `_checks.DERIVED_FROM_OUTPUT`, the argument for the others. Differentiable.
    """
    if activation == "none":
        return grad
    if activation == "relu":
        return _aten.threshold_backward(grad, saved, 0)
    if activation == "sigmoid":
        return _aten.sigmoid_backward(grad, saved)
    if activation == "tanh":
        return _aten.tanh_backward(grad, saved)
    if activation == "silu":
        if not torch.is_grad_enabled():
            return _aten.silu_backward(grad, saved)
        # ATen's own operator has no derivative.
        sigmoid = torch.sigmoid(saved)
        return grad * sigmoid * (1 + saved * (1 - sigmoid))
    if activation == "gelu":
        return _aten.gelu_backward(grad, saved)
    if activation == "hardswish":
        return _aten.hardswish_backward(grad, saved)
    return _aten.leaky_relu_backward(grad, saved, negative_slope, True)


def activation_grad_at_saved(along: Tensor, grad: Tensor, saved: Tensor, activation: str) -> Tensor:
    """The gradient of ``(activation_grad(grad, saved) * along).sum()`` at `saved`. Differentiable."""
    if activation == "sigmoid":
        return along * grad * (1 - 2 * saved)
    if activation == "tanh":
        return along * grad * (-2 * saved)
    if activation == "silu":
        sigmoid = torch.sigmoid(saved)
        return along * grad * sigmoid * (1 - sigmoid) * (2 + saved * (1 - 2 * sigmoid))
    if activation == "gelu":
        pdf = torch.exp(-0.5 * saved * saved) / math.sqrt(2 * math.pi)
        return along * grad * pdf * (2 - saved * saved)
    if activation == "hardswish":
        return torch.where((saved > -3) & (saved < 3), along * grad / 3, 0)
    return torch.zeros_like(saved)
