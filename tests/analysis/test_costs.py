"""Compute cost, against values counted by hand."""

from __future__ import annotations

import time

import pytest
import torch

import fusion_pl.fusion
from fusion_pl.analysis import costs
from fusion_pl.analysis.costs import count_flops, measure_costs, training_memory_bytes
from fusion_pl.data import ManifestData
from fusion_pl.module import FusionClassifier

from ..conftest import CLASSES


class Slow(fusion_pl.fusion.Mean):
    """Waits 50 ms in the forward pass."""

    def forward(self, inputs):
        time.sleep(0.05)
        return super().forward(inputs)


@pytest.fixture
def batch(encoders, manifest):
    data = ManifestData(str(manifest), batch_size=5, num_workers=0)
    data.processors = {name: encoder.processor for name, encoder in encoders.items()}
    data.setup("test")
    return next(iter(data.test_dataloader()))


@pytest.mark.parametrize("head", ["Concat", "Perceiver", "SelfAttention"])  # two of them pass views of parameters
def test_all_costs_are_measured(encoders, batch, head, monkeypatch):
    monkeypatch.setattr(costs, "MIN_TIMING_SECONDS", 0.1)
    model = FusionClassifier(encoders, getattr(fusion_pl.fusion, head), CLASSES)
    measured = measure_costs(model, batch)
    weights = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert measured["batch_size"] == 5
    # Each weight of the output projection is used in one multiplication and one addition per sample.
    assert measured["flops"] >= 2 * max(p.numel() for p in model.fusion.parameters() if p.shape[:1] == (len(CLASSES),))
    assert 0 < measured["latency_ms"] < measured["step_ms"]  # a step has a forward and a backward pass
    assert measured["memory_mb"] > 2 * weights / 2**20  # weights and gradients, besides activations


def test_latency_is_the_time_of_a_forward_pass(encoders, batch):
    model, started, seconds = FusionClassifier(encoders, Slow, CLASSES), [], []
    model.register_forward_pre_hook(lambda *_: started.append(time.perf_counter()))
    model.register_forward_hook(lambda *_: seconds.append(time.perf_counter() - started[-1]))
    measured = measure_costs(model, batch)
    assert len(seconds) > 1
    assert 50 < 1000 * min(seconds) <= measured["latency_ms"] < 1000 * 2 * max(seconds)


def test_flops_of_a_linear_layer_and_an_lstm():
    linear, lstm = torch.nn.Linear(6, 4), torch.nn.LSTM(6, 4, batch_first=True)
    assert count_flops(lambda: linear(torch.randn(5, 6))) == 2 * 5 * 6 * 4
    assert count_flops(lambda: lstm(torch.randn(5, 7, 6))) == 2 * 5 * 7 * (4 * 4 * 6 + 4 * 4 * 4)


def test_memory_is_weights_gradients_and_saved_activations():
    trainable, frozen, batch = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4).requires_grad_(False), torch.randn(5, 6)
    model = torch.nn.ModuleList([trainable, frozen])
    values = 2 * (6 * 4 + 4)  # weights of both layers
    values += 6 * 4 + 4  # gradients of the trainable one
    values += 5 * 6 + 5 * 4  # its input, and the output of relu, which two backward functions share
    assert [training_memory_bytes(model, lambda: trainable(batch).relu().square().sum()) for _ in range(2)] == [
        4 * values
    ] * 2
