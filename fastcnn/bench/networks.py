"""Whole networks: the small CNN's training step, and any model through `fastcnn.convert`."""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

import fastcnn
from fastcnn import models
from fastcnn import nn as fnn
from fastcnn._extras import require
from fastcnn.bench.cases import Case
from fastcnn.bench.check import errors, fault_of_ours
from fastcnn.bench.problem import (
    OURS,
    Call,
    Normal,
    NotHere,
    Operands,
    Problem,
    Rule,
    Way,
    precision,
)
from fastcnn.bench.suites import OtherRow

CHECKED_IMAGES = 8  # of a batch whose images do not depend on each other
STEP_SETS = 4
# A network's error is its layers' errors, grown on the way through it: far from any of theirs, but alike for
# ours and torch's. A network whose layers are wrong is off by the size of the values themselves (1.4).
# The unit leaves room where eager torch in float32 is itself the truth, and has no error at all.
_RULE = Rule(bound=0.8, unit=2e-3, factor=4.0)
# A rounding that brings one value to the other side of a ReLU's corner shows in every gradient before it.
_GRADIENT_RULE = Rule(bound=0.1, unit=2e-2, factor=4.0)
_MODES = {"compile": None, "compile_max_autotune": "max-autotune-no-cudagraphs"}


def network_problem(case: Case, device: torch.device, *, autotune: bool = True) -> Problem:
    """The case's contenders: ours, eager torch, and torch.compile in two modes.

    Ours runs eagerly, compiled where the operation's name ends in "_compiled", converted with ``fuse=True``
    where it ends in "_fused". `autotune` False leaves max-autotune out, which takes minutes for a large
    network.
    """
    row = case.row
    assert isinstance(row, OtherRow)
    training = not case.op.startswith("model_inference")
    ours, torchs, classes = _networks(case, device)
    dtype = getattr(torch, case.dtype)
    make = _training_way if training else _inference_way
    ways = [make(OURS, ours, "own" if case.op.endswith("_compiled") else None, case)]
    ways.append(make("eager", torchs, None, case))
    missing = {}
    for name in _MODES:
        if name == "compile_max_autotune" and not autotune:
            missing[name] = "left out of a quick run: tuning takes minutes"
        else:
            ways.append(make(name, copy.deepcopy(torchs), name, case))

    def operands(index: int) -> Operands:
        normal = Normal(device, dtype if not training else torch.float32, index)
        x = normal((row.batch, *row.image))
        generator = torch.Generator(device).manual_seed(index)
        return (x, torch.randint(classes, (row.batch,), device=device, generator=generator))

    small = row.suite == "small_cnn_step"
    exact = torch.float64 if small or not training else torch.float32
    reference = copy.deepcopy(torchs)

    def truth(operands: Operands) -> Operands:
        network = copy.deepcopy(reference).to(exact)
        x = operands[0] if training else operands[0][:CHECKED_IMAGES]
        with precision(tf32=False), torch.no_grad():
            return (network(x.to(exact)).double(),)

    def gradient_fault(operands: Operands) -> str | None:
        return _gradient_fault(ours, reference, *(part[:CHECKED_IMAGES] for part in operands))

    size = 4 if training else dtype.itemsize
    image = row.image[0] * row.image[1] * row.image[2]
    return Problem(
        ways=ways,
        operands=operands,
        truth=truth,
        rule=replace(_RULE, at_least_bound=case.tf32),
        bytes_per_call=row.batch * image * size,
        most_sets=STEP_SETS,
        missing=missing,
        oracle="float64" if exact is torch.float64 else "float32",
        further_fault=gradient_fault if training else None,
    )


def _networks(case: Case, device: torch.device) -> tuple[nn.Module, nn.Module, int]:
    """Ours and torch's, of equal weights, on the device in the case's layout; and the number of classes."""
    row = case.row
    torch.manual_seed(0)
    if row.suite == "small_cnn_step":
        ours = models.small_cnn(10, row.image[0], row.image[1])
        torchs = small_cnn_twin(ours)
        pair = (ours.to(device), torchs.to(device))
    else:
        torchs = find_model(row.layer).to(device)
        _settle(torchs, row, device)
        ours = copy.deepcopy(torchs).eval()  # the mode is set below; fusing asks for this one
        pair = (fastcnn.convert(ours, fuse=case.op.endswith("_fused")), torchs)
    training = case.op == "small_cnn_step" or case.op.startswith("model_training")
    memory_format = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format
    for network in pair:
        network.train(training).to(memory_format=memory_format)
        if not training:
            network.to(getattr(torch, case.dtype))
    with torch.no_grad():
        probe = torch.zeros((2, *row.image), device=device, dtype=next(torchs.parameters()).dtype)
        probe = probe.contiguous(memory_format=memory_format)
        given = copy.deepcopy(torchs).eval()(probe)
    if not isinstance(given, Tensor) or given.dim() != 2:
        raise NotHere(f"{row.layer} does not give one row of numbers for each image: only classifiers do")
    return (*pair, given.shape[1])


def small_cnn_twin(ours: nn.Sequential) -> nn.Sequential:
    """`fastcnn.models.small_cnn` in torch's own layers, with the same weights."""
    layers: list[nn.Module] = []
    for layer in ours:
        if isinstance(layer, fnn.ConvAct2d):
            conv = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size)
            conv.load_state_dict(layer.state_dict())
            layers += [conv, nn.ReLU(inplace=True)]
            if isinstance(layer, fnn.ConvActPool2d):
                layers.append(nn.MaxPool2d(2))
        else:
            layers.append(copy.deepcopy(layer))
    return nn.Sequential(*layers)


def find_model(name: str) -> nn.Module:
    """A torchvision model, else a timm one, with random weights, or what "module:function" returns.

    Raises:
        fastcnn.models.ModelError: there is none of that name, or it could not be built.
        fastcnn._extras.MissingExtraError: neither torchvision nor timm is installed.
    """
    if ":" in name:
        network = fastcnn.revert(models.build(name, num_classes=1000, in_channels=3, image_size=224))
        if any(isinstance(module, fnn.ConvAct2d) for module in network.modules()):
            raise NotHere(
                f"{name} has layers of fastcnn's own, which torch has no counterpart of to compare with"
            )
        return network
    tried = []
    if importlib.util.find_spec("torchvision") is not None:
        torchvision = importlib.import_module("torchvision.models")
        tried.append("torchvision")
        if name in torchvision.list_models(module=torchvision):
            arguments = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
            extra = {"aux_logits": False} if arguments else {}
            return torchvision.get_model(name, weights=None, **arguments, **extra)
    if importlib.util.find_spec("timm") is not None:
        timm = importlib.import_module("timm")
        tried.append("timm")
        if timm.is_model(name):
            return timm.create_model(name, pretrained=False)
    if not tried:
        require("torchvision", "bench")
    raise models.ModelError(
        f"there is no model {name!r} in {' or '.join(tried)}: expected one of their names (resnet50, ...) or "
        "module:function"
    )


def _settle(network: nn.Module, row: OtherRow, device: torch.device) -> None:
    """Makes results comparable: no dropout, and running statistics that fit random weights."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for module in network.modules():
        if "Drop" in type(module).__name__ or "StochasticDepth" in type(module).__name__:
            for attribute in ("p", "drop_prob"):
                if isinstance(getattr(module, attribute, None), float):
                    setattr(module, attribute, 0.0)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn((max(2, min(CHECKED_IMAGES, row.batch)), *row.image), device=device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _compiled(network: nn.Module, mode: str | None) -> Callable[[Tensor], Tensor]:
    """The network, or torch.compile of it: with graph breaks, as models come, for one shape."""
    if mode is None:
        return network
    if mode == "compile_max_autotune":
        # Tuning prints long tables unless told not to, and this is the only way to tell it from Python.
        importlib.import_module("torch._inductor.select_algorithm").PRINT_AUTOTUNE = False
    return torch.compile(network, dynamic=False, mode=_MODES.get(mode))


def _inference_way(name: str, network: nn.Module, mode: str | None, case: Case) -> Way:
    run = _compiled(network, mode)

    def bind(operands: Operands) -> Call:
        x = operands[0]

        def call() -> Tensor:
            with torch.no_grad():
                return run(x)

        return call

    def check(operands: Operands) -> Call:
        call = bind(operands)
        return lambda: call()[:CHECKED_IMAGES]

    return Way(name, bind, case.layout, check)


def _gradient_fault(ours: nn.Module, torchs: nn.Module, x: Tensor, labels: Tensor) -> str | None:
    """Whether our gradients are wrong, on a few images and in float32.

    In a shorter dtype this can't be told: the gradients of a deep network with random weights, torch's own as
    ours, are then off by about as much as they are large.
    """
    with precision(tf32=False):
        truth = _gradients(copy.deepcopy(torchs).double(), x.double(), labels)
        theirs = errors((_gradients(copy.deepcopy(torchs), x, labels),), (truth,))
        found = errors((_gradients(copy.deepcopy(ours), x, labels),), (truth,))
    fault = fault_of_ours(found, {"eager": theirs}, _GRADIENT_RULE)
    return f"gradients in float32: {fault}" if fault else None


def _gradients(network: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """All gradients of the loss, in one row."""
    with torch.enable_grad():
        loss = nn.functional.cross_entropy(network(x), labels)
    found = torch.autograd.grad(loss, list(network.parameters()))
    return torch.cat([gradient.flatten() for gradient in found])


def _training_way(name: str, network: nn.Module, mode: str | None, case: Case) -> Way:
    """One step: forward under autocast where the dtype is short, loss, backward, SGD with momentum.

    float16 goes without loss scaling, which would wait for the device.
    """
    run = _compiled(network, mode)
    leaves = list(network.parameters())
    optimizer = torch.optim.SGD(leaves, lr=1e-4, momentum=0.9)
    dtype = getattr(torch, case.dtype)

    def autocast() -> AbstractContextManager:
        if dtype is torch.float32:
            return nullcontext()
        return torch.autocast(leaves[0].device.type, dtype)

    def bind(operands: Operands) -> Call:
        x, labels = operands

        def call() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            with autocast():
                loss = nn.functional.cross_entropy(run(x), labels)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return call

    def check(operands: Operands) -> Call:
        def call() -> Tensor:
            with autocast():
                return run(operands[0]).detach()

        return call

    return Way(name, bind, case.layout, check)
