"""A BatchNorm in evaluation mode, folded into the weights of the convolution before it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

__all__ = ["fold", "problem"]


def problem(conv: torch.nn.Conv2d, norm: torch.nn.BatchNorm2d) -> str | None:
    """Why this BatchNorm cannot be folded into this convolution, in words."""
    if norm.training:
        return "its BatchNorm is in training mode"
    if norm.running_mean is None or norm.running_var is None:
        return "its BatchNorm keeps no running statistics (track_running_stats=False)"
    if norm.num_features != conv.out_channels:
        return f"its BatchNorm has {norm.num_features} features for {conv.out_channels} channels"
    tensors = [conv.weight, norm.running_mean, norm.running_var]
    tensors += [tensor for tensor in (conv.bias, norm.weight, norm.bias) if tensor is not None]
    if any(type(tensor) not in (Tensor, Parameter) for tensor in tensors):
        return "its parameters are of a tensor class of their own"
    if any(tensor.dtype != conv.weight.dtype for tensor in tensors):
        return "the convolution and its BatchNorm are of different dtypes"
    if any(tensor.device != conv.weight.device for tensor in tensors):
        return "the convolution and its BatchNorm are on different devices"
    if conv.weight.device.type == "meta":
        return "it is on the meta device: load the weights first"
    return None


def fold(conv: torch.nn.Conv2d, norm: torch.nn.BatchNorm2d) -> tuple[Parameter, Parameter] | str:
    """Weight and bias of ``norm(conv(x))`` as one convolution: in float64, then rounded once; or why there
    are none. They are new parameters, with the dtype, device, strides and requires_grad of the convolution's.
    """

    def exact(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", torch.float64)

    # An inference tensor could not take part in autograd later.
    with torch.inference_mode(False), torch.no_grad():
        scale = (exact(norm.running_var) + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = exact(norm.weight) * scale
        shift = (
            -exact(norm.running_mean) if conv.bias is None else exact(conv.bias) - exact(norm.running_mean)
        )
        shift = shift * scale
        if norm.bias is not None:
            shift = shift + exact(norm.bias)
        weight = exact(conv.weight) * scale[:, None, None, None]
        like = conv.weight
        grads = [like.requires_grad, (like if conv.bias is None else conv.bias).requires_grad]
        folded = [tensor.to(like.dtype) for tensor in (weight, shift)]
        if not all(bound.isfinite() for tensor in folded for bound in tensor.aminmax()):
            return f"the weights it folds to are not finite in {like.dtype}"
        return tuple(
            Parameter(tensor.to(like.device), requires_grad=grad)
            for tensor, grad in zip(folded, grads, strict=True)
        )
