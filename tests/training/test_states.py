"""The training state of a checkpoint is checked against the state of the run."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, SequentialLR, StepLR

from fusion_pl.training.states import (
    InvalidStateError,
    check_callback_state,
    check_counters,
    check_number,
    check_optimizer_state,
    describe,
    match_template,
)

OPTIMIZERS = {
    "Adam": {"amsgrad": True},
    "AdamW": {"fused": True},
    "SGD": {"momentum": 0.9, "lr": 0.1},
    "Adadelta": {},
    "Adafactor": {},
    "Adagrad": {},
    "Adamax": {},
    "ASGD": {},
    "NAdam": {"foreach": True},
    "RAdam": {},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Rprop": {},
}


def model_and_optimizer(name="AdamW", steps=2, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2)).to(memory_format=torch.channels_last)
    groups = [{"params": [p for p in model.parameters() if p.ndim > 1]}, {"params": [model[0].bias, model[2].bias]}]
    optimizer = getattr(torch.optim, name)(groups, **options)
    step(model, optimizer, steps)
    return model, optimizer


def step(model, optimizer, steps):
    for seed in range(steps):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        model(torch.randn(5, 3, 3, 3)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_optimizer_gives_the_same_steps(name):
    model, optimizer = model_and_optimizer(name, **OPTIMIZERS[name])
    again, other = model_and_optimizer(name, steps=0, **OPTIMIZERS[name])
    again.load_state_dict(model.state_dict())
    before = set(other.state)
    checked = check_optimizer_state(other, copy.deepcopy(optimizer.state_dict()))
    assert set(other.state) == before  # what was tried out left nothing behind
    other.load_state_dict(checked)
    step(model, optimizer, 3)
    step(again, other, 3)
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s["state"][1].update(exp_avg=torch.zeros(1)), r"exp_avg has shape \(1,\), expected \(2, 4\)"),
        (lambda s: s["state"][1].update(exp_avg=torch.zeros(2, 4, device="meta")), "exp_avg has shape"),
        (lambda s: s["state"][1].update(exp_avg=torch.zeros(2, 4).to_sparse()), "exp_avg has shape"),
        (lambda s: s["state"][1]["exp_avg"].fill_(math.nan), "exp_avg contains numbers that are not finite"),
        (lambda s: s["state"][1].update(step=[1]), "step is a list of 1"),
        (lambda s: s["state"][1].pop("exp_avg_sq"), "state has no exp_avg_sq"),
        (lambda s: s["state"].update({1: 3}), "not a dictionary"),
        (lambda s: s["param_groups"].pop(), "number of groups is 1, expected 2"),
        (lambda s: s["param_groups"][0]["params"].pop(), "number of parameters in a group is 1, expected 2"),
        (lambda s: s["param_groups"][0].update(params=None), "not a dictionary"),
        (lambda s: s["param_groups"][0].update(betas=(0.9,)), "betas is a tuple of 1, expected 2 values"),
        (lambda s: s["param_groups"][0].update(lr="fast"), "lr is 'fast', expected a number"),
        (lambda s: s["param_groups"][0].update(maximize=1), "maximize is 1, expected true or false"),
        (lambda s: s.update(state=[]), "not a dictionary"),
    ],
)
def test_an_optimizer_state_of_another_form_is_refused(change, match):
    optimizer = model_and_optimizer()[1]
    saved = copy.deepcopy(optimizer.state_dict())
    change(saved)
    with pytest.raises(InvalidStateError, match=match):
        check_optimizer_state(optimizer, saved)


def test_hardware_options_are_those_of_this_run():
    optimizer = model_and_optimizer(fused=False)[1]
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0].update(fused=True, surprise=1, lr=0.5)
    checked = check_optimizer_state(optimizer, saved)["param_groups"][0]
    assert (checked["fused"], checked["lr"]) == (False, 0.5)
    assert "surprise" not in checked


@pytest.mark.parametrize(
    "make",
    [
        lambda o: StepLR(o, 2),
        lambda o: OneCycleLR(o, 0.1, total_steps=9),
        lambda o: ReduceLROnPlateau(o),
        lambda o: SequentialLR(o, [StepLR(o, 1), StepLR(o, 2)], [3]),
    ],
)
def test_a_resumed_schedule_has_the_same_state(make):
    optimizer = model_and_optimizer()[1]
    schedule = make(optimizer)
    optimizer.step()
    for _ in range(3):
        schedule.step(*[1.0] * isinstance(schedule, ReduceLROnPlateau))
    saved = copy.deepcopy(schedule.state_dict())
    other = make(model_and_optimizer()[1])
    assert match_template(saved | {"get_lr": 3}, other.state_dict(), "schedule") == saved


def test_messages_are_short_for_any_value():
    loop: list = []
    loop.append(loop)
    for value in ("x" * 10**6, 10**6000, loop, {"a": loop}, torch.zeros(10**6), object()):
        assert len(describe(value)) < 80
    with pytest.raises(InvalidStateError, match="state cannot be used: the data is nested too deeply"):
        check_callback_state(loop, "state")
    with pytest.raises(InvalidStateError, match="expected a smaller number"):
        check_number(10**6000, "score")
    with pytest.raises(InvalidStateError, match=r"current\.ready is True, expected a count"):
        check_counters({"ready": True}, {"ready": 0}, "current")
