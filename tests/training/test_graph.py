"""Trainer(graph=True): the bookkeeping around a captured step, with a stand-in for CUDA's capture, and on a
GPU the real one."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from fastcnn.training import Trainer
from fastcnn.training import trainer as trainer_module
from fastcnn.training.graph import WARM_UP, GraphedGradients


class StandIn:
    """Captures on the CPU. As with CUDA, recording changes no state, and a replay writes into the memory that
    was recorded, reading no other batch than the recorded tensors."""

    def __init__(self, model):
        self.model = model
        self.recorded = self.replays = self.warm_ups = 0

    def warming_up(self):
        self.warm_ups += 1
        return nullcontext()

    def __call__(self, work):
        self.recorded += 1
        buffers = [b.clone() for b in self.model.buffers()]
        work()
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        grads = [p.grad for p in self.model.parameters()]
        for grad in grads:
            grad.fill_(torch.nan)
        return _Replay(self, work, grads)


class _Replay:
    def __init__(self, stand_in, work, grads):
        self.stand_in, self.work, self.grads = stand_in, work, grads

    def replay(self):
        self.stand_in.replays += 1
        self.work()
        for grad, parameter in zip(self.grads, self.stand_in.model.parameters(), strict=True):
            grad.copy_(parameter.grad)


def problem(count=44):
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, 3, (count,), generator=generator)
    return torch.randn(count, 4, generator=generator) + 3 * nn.functional.one_hot(y, 4), y


def make_trainer(device="cpu", **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return Trainer(model, seed=0, device=device, label_smoothing=0.1, **settings)


SETTINGS = (
    {},
    {"optimizer": "sgd", "schedule": "one_cycle", "clip_norm": 0.1},
    {"precision": "bf16", "clip_norm": 1.0},
)


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_captured_step_trains_like_a_plain_one(monkeypatch, settings):
    plain, graphed = make_trainer(**settings), make_trainer(**settings)
    stand_in = StandIn(graphed.model)
    monkeypatch.setattr(trainer_module, "CudaCapture", lambda device: stand_in)
    graphed.graph = True
    # 44 images: five batches of 8 and one of 4 an epoch, so that plain steps come between replays.
    histories = [trainer.fit(problem(), epochs=3, batch_size=8).history for trainer in (plain, graphed)]
    assert stand_in.warm_ups == WARM_UP
    assert stand_in.recorded == 1
    assert stand_in.replays == 3 * 5 - WARM_UP
    assert histories[0] == histories[1]
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, graphed.model.state_dict()[name]), name
    graphed.fit(problem(), epochs=1, batch_size=8)
    assert stand_in.recorded == 2, "a fit of its own captures anew"


def test_the_captured_batch_is_the_first_kind():
    model = nn.Linear(4, 3)
    stand_in = StandIn(model)
    seen = []

    def compute(x, y):
        seen.append(len(x))
        model.zero_grad()
        model(x).sum().backward()
        return x.sum()

    graphed = GraphedGradients(compute, model.parameters(), stand_in)
    x, y = problem(8)
    for count in (8, 3, 8, 3, 8):
        result = graphed(x[:count], y[:count])
        assert result == x[:count].sum()
        assert torch.equal(model.bias.grad, torch.full((3,), float(count)))
    assert stand_in.recorded == stand_in.replays == 1


def test_what_cannot_be_captured_is_explained():
    class Refusing(StandIn):
        def __call__(self, work):
            raise RuntimeError("operation not permitted when stream is capturing")

    model = nn.Linear(4, 3)
    graphed = GraphedGradients(lambda x, y: model(x).sum(), model.parameters(), Refusing(model))
    x, y = problem(8)
    for _ in range(WARM_UP):
        graphed(x, y)
    with pytest.raises(RuntimeError, match=r"not permitted.*graph=False"):
        graphed(x, y)


def test_a_graph_needs_a_cuda_device():
    with pytest.raises(ValueError, match="needs a CUDA device, but the device is cpu"):
        make_trainer(graph=True)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("settings", (*SETTINGS, {"precision": "fp16"}))
def test_a_cuda_graph_trains_like_plain_steps(settings):
    plain, graphed = make_trainer("cuda", **settings), make_trainer("cuda", graph=True, **settings)
    for trainer in (plain, graphed):
        trainer.fit(problem(), epochs=3, batch_size=8)
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(value, graphed.model.state_dict()[name])
