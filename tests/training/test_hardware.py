"""Defaults that depend on the hardware are logged, and change results by rounding only."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from fusion_pl.training.hardware import avoid_driver_search
from fusion_pl.training.optimisation import enable_fused_optimizer


def train_steps(model, optimizer):
    for _ in range(3):
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_fused_step_is_the_same_step(kind):
    model = nn.Linear(4, 3)
    twin = copy.deepcopy(model)
    optimizer = kind(model.parameters(), lr=0.1)
    enable_fused_optimizer(optimizer)
    assert optimizer.param_groups[0]["fused"]
    plain = train_steps(twin, kind(twin.parameters(), lr=0.1, foreach=False))
    torch.testing.assert_close(train_steps(model, optimizer), plain)


@pytest.mark.parametrize("given", [{"fused": False}, {"foreach": True}])
def test_an_option_of_the_user_is_not_changed(given):
    optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters(), **given)
    before = dict(optimizer.param_groups[0])
    enable_fused_optimizer(optimizer)
    assert optimizer.param_groups[0]["fused"] == before["fused"]


def test_an_optimizer_without_a_fused_step_is_unchanged():
    optimizer = torch.optim.LBFGS(nn.Linear(2, 2).parameters())
    enable_fused_optimizer(optimizer)
    assert "fused" not in optimizer.param_groups[0]


@pytest.mark.parametrize("has_gpu", [True, False])
def test_only_a_machine_without_gpu_asks_for_one_in_a_fast_way(monkeypatch, has_gpu):
    """The fast way is not safe before a fork if there is a GPU."""
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    avoid_driver_search()
    assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == str(int(has_gpu))


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can keep freed memory")
def test_freed_memory_is_reused():
    """In a new interpreter: the heap of other tests, also a forked one, changes where the next block is allocated."""
    script = """
import resource, torch
from fusion_pl.training.hardware import reuse_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 * 2**20).sum()  # 64 MiB, more than glibc keeps by default
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
returned = faults()
is_supported = reuse_freed_memory()
faults()
print(is_supported, returned, faults())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    is_supported, returned, reused = done.stdout.split()
    if is_supported == "False":
        pytest.skip("this C library cannot keep freed memory")
    assert int(reused) < 0.1 * max(int(returned), 1000)
