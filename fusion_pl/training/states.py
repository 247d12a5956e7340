"""Check parts of the training state in a checkpoint by comparison with the state of this run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sized
from types import NoneType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fusion_pl.messages import truncate
from fusion_pl.plain_data import NestingError, walk

MAX_COUNT = 2**53  # largest number of steps, batches or epochs
MAX_DEPTH, MAX_VALUES = 20, 5_000_000  # nesting depth and number of values in the state of a callback
# Optimizer options that depend on the hardware of this run.
HARDWARE_OPTIONS = {"fused", "foreach", "capturable", "differentiable"}
CURRENT_OPTIONS = HARDWARE_OPTIONS | {"params", "lr_factor"}  # options of this run, never those of a checkpoint
INVALID_OPTIMIZER_STATE = "optimizer's state is not a dictionary of parameters and groups"


class InvalidStateError(Exception):
    """Raised if a part of the training state is invalid for this run; converted to a ``UserError`` with the path."""


class MismatchError(InvalidStateError):
    """Raised if a state has the keys of another optimizer or schedule class."""

    def __init__(self, kind: str, expected: object, keys: Iterable[object]) -> None:
        names = ", ".join(sorted(map(str, keys)))
        super().__init__(f"was trained with another {kind} than {type(expected).__name__} (one with {names})")


def match_template(value: Any, template: Any, name: str) -> Any:
    """Return a value from a checkpoint with the keys, lengths, types and shapes of a template from this run.

    Strings and other objects are copied from the template, not from the checkpoint.

    Raises:
        InvalidStateError: if a type, shape or length differs, or a number is NaN, or infinite while the template's
            number is finite.
    """
    if isinstance(template, dict):
        return _match_values(value, template, name, match_template)
    if isinstance(template, (list, tuple)):
        if not isinstance(value, (list, tuple)) or len(value) != len(template):
            raise InvalidStateError(f"{name} is {describe(value)}, expected {len(template)} values")
        pairs = zip(value, template, strict=True)
        return type(template)(match_template(*pair, f"{name}.{index}") for index, pair in enumerate(pairs))
    if isinstance(template, Tensor):
        return _match_tensor(value, template, name)
    if isinstance(template, bool):
        if not isinstance(value, bool):
            raise InvalidStateError(f"{name} is {describe(value)}, expected true or false")
        return value
    if value is None or not isinstance(template, (int, float, NoneType)):
        return template
    return check_number(value, name, allow_infinite=template is not None and math.isinf(template))


def _match_values(value: Any, template: dict[Any, Any], name: str, match: Callable[..., Any]) -> dict[Any, Any]:
    """Match the values of a dictionary; missing values are taken from the template."""
    if not isinstance(value, Mapping):
        raise InvalidStateError(f"{name} is {describe(value)}, expected a dictionary")
    return {
        key: match(value[key], default, f"{name}.{key}") if key in value else default
        for key, default in template.items()
    }


def check_number(value: Any, name: str, allow_infinite: bool = False) -> int | float:
    """Return a number, or the number in a one-element tensor; raise an ``InvalidStateError`` for any other value."""
    if isinstance(value, Tensor) and value.numel() == 1 and value.layout == torch.strided and not value.is_meta:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        expected = "a number"
    elif isinstance(value, int) and abs(value) > MAX_COUNT:
        expected = "a smaller number"
    elif math.isnan(value) or (math.isinf(value) and not allow_infinite):
        expected = "a finite number"
    else:
        return value
    raise InvalidStateError(f"{name} is {describe(value)}, expected {expected}")


def _match_tensor(value: Any, template: Tensor, name: str) -> Tensor:
    """Return a copy of a tensor from a checkpoint, with the memory layout of the template."""
    if not isinstance(value, Tensor):
        value = torch.tensor(check_number(value, name, allow_infinite=True))
    expected = (template.shape, template.layout, template.is_complex())
    if (value.shape, value.layout, value.is_complex()) != expected or value.is_meta:
        raise InvalidStateError(f"{name} has shape {tuple(value.shape)}, expected {tuple(template.shape)}")
    infinite = template.numel() == 1 and bool(template.isinf())
    if value.isnan().any() or not (infinite or value.isfinite().all()):
        raise InvalidStateError(f"{name} contains numbers that are not finite")
    return torch.empty_like(template, requires_grad=False).copy_(value)


def describe(value: Any) -> str:
    """Return a short description of a value for a message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, int) and abs(value) > MAX_COUNT:
        return "a huge number"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, str):
        return repr(truncate(value, max_length=40))
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, Sized) else "")


def check_counters(value: Any, template: Any, name: str) -> Any:
    """Return nested dictionaries of counts and booleans from a checkpoint, with the keys of a template."""
    if isinstance(template, dict):
        return _match_values(value, template, name, check_counters)
    if type(value) is not type(template) or not 0 <= value <= MAX_COUNT:
        raise InvalidStateError(f"{name} is {describe(value)}, expected a count")
    return value


def check_callback_state(value: Any, name: str) -> None:
    """Raise an ``InvalidStateError`` if a callback's state contains NaN or huge integers, or is nested too deeply."""
    try:
        for _, item in walk(value, MAX_DEPTH, MAX_VALUES):
            if isinstance(item, (int, float)) and not isinstance(item, bool):
                check_number(item, name, allow_infinite=True)
    except NestingError as error:
        raise InvalidStateError(f"{name} cannot be used: {error}") from error


def check_length(saved: list[Any], expected: list[Any], items: str) -> list[Any]:
    """Return a list from a checkpoint, or raise an ``InvalidStateError`` if its length is wrong."""
    if len(saved) != len(expected):
        raise InvalidStateError(f"number of {items} is {len(saved)}, expected {len(expected)}")
    return saved


def rank_checkpoints(scores: dict[str, Tensor], losses: dict[str, float], mode: str) -> list[str]:
    """Sort the paths of checkpoints, best first: by score, then by loss. An unknown loss (NaN) ranks last."""
    sign = 1 if mode == "min" else -1
    known = {path: loss for path, loss in losses.items() if not math.isnan(loss)}
    return sorted(scores, key=lambda path: (sign * float(scores[path]), known.get(path, math.inf)))


def check_optimizer_state(optimizer: Optimizer, saved: Any) -> dict[str, Any]:
    """Return a validated copy of a saved optimizer state.

    The tensors of each parameter must have the names and shapes that this optimizer uses: torch does not check them,
    and its fused kernels read beyond a tensor that is too small. Hardware options are taken from this run.
    """
    groups: Any = saved.get("param_groups") if isinstance(saved, dict) else None
    if not _is_list_of(groups, dict) or not isinstance(saved.get("state"), dict):
        raise InvalidStateError(INVALID_OPTIMIZER_STATE)
    checked: dict[str, Any] = {"state": {}, "param_groups": []}
    first = 0
    for group, old in zip(optimizer.param_groups, check_length(groups, optimizer.param_groups, "groups"), strict=True):
        names = old.get("params")
        if not _is_list_of(names, int):
            raise InvalidStateError(INVALID_OPTIMIZER_STATE)
        check_length(names, group["params"], "parameters in a group")
        restored = {key: value for key, value in group.items() if key not in CURRENT_OPTIONS}
        absent = set(optimizer.defaults) - HARDWARE_OPTIONS - set(old)
        unknown = set(old) - HARDWARE_OPTIONS - set(group)
        if absent and unknown:  # another version of torch adds or removes options, but does not do both
            raise MismatchError("optimizer", optimizer, unknown)
        options = group | match_template({key: old[key] for key in restored if key in old}, restored, "optimizer")
        checked["param_groups"].append(options | {"params": list(range(first, first + len(names)))})
        templates: dict[Any, dict[str, Any]] = {}
        for index, (name, parameter) in enumerate(zip(names, group["params"], strict=True), first):
            if name not in saved["state"]:
                continue  # a parameter that had no gradient yet
            layout = (parameter.shape, parameter.stride(), parameter.dtype, parameter.device)
            if layout not in templates:
                templates[layout] = optimizer_state_after_step(optimizer, group, parameter)
            state, template = saved["state"][name], templates[layout]
            if not isinstance(state, dict):
                raise InvalidStateError(INVALID_OPTIMIZER_STATE)
            if missing := sorted(template.keys() - state.keys()):
                raise InvalidStateError(f"optimizer's state has no {missing[0]}")
            checked["state"][index] = {
                key: match_template(state[key], value, f"optimizer's {key}") for key, value in template.items()
            }
            other_keys = state.keys() - template.keys()
            if (absent or unknown) and other_keys:  # with equal options, a later step may have added the keys
                raise MismatchError("optimizer", optimizer, other_keys)
        first += len(names)
    return checked


def _is_list_of(value: Any, item_type: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, item_type) for item in value)


def check_schedule_state(schedule: Any, saved: Any) -> Any:
    """Return a validated state of a learning rate schedule, or raise a ``MismatchError`` for another schedule."""
    template = schedule.state_dict()
    if isinstance(saved, dict):
        different = {key for key in set(template) ^ set(saved) if isinstance(key, str) and not key.startswith("_")}
        different -= {"total_steps", *dir(type(schedule))}  # saved by earlier versions of fusion-pl; names of methods
        if different:
            raise MismatchError("learning rate schedule", schedule, different & set(saved) or {"other settings"})
    return match_template(saved, template, "schedule")


def optimizer_state_after_step(optimizer: Optimizer, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
    """Return the optimizer state of a parameter after a step on zeros.

    The result has the names, shapes and types of the state after a real step. The optimizer is not changed.
    """
    if parameter in optimizer.state:  # some optimizers create the state before the first step
        return dict(optimizer.state[parameter])
    zeros = torch.zeros_like(parameter, requires_grad=True)
    zeros.grad = torch.zeros_like(zeros)
    copy = object.__new__(type(optimizer))
    copy.__dict__.update(optimizer.__dict__)
    copy.__dict__.pop("step", None)  # a schedule wraps the original's step to count calls
    copy.state, copy.param_groups = defaultdict(dict), [group | {"params": [zeros]}]
    copy.step(lambda: 0.0)
    return dict(copy.state[zeros])
