"""Check the training state of a checkpoint against the state of this run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sized
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fusion_pl.plain_data import NestingError, walk

MAX_COUNT = 2**53  # of steps, batches, epochs
MAX_DEPTH, MAX_VALUES = 20, 5_000_000  # of the state of a callback
MAX_TEXT_LENGTH = 40  # of a value in a message
# Options of an optimizer that depend on the hardware of this run.
HARDWARE_OPTIONS = {"fused", "foreach", "capturable", "differentiable"}


class InvalidStateError(Exception):
    """A part of the training state has a form that this run does not expect.

    It becomes a ``UserError`` with the path of the checkpoint.
    """


class MismatchError(InvalidStateError):
    """A state belongs to another optimizer or schedule.

    Args:
        kind: ``optimizer`` or ``learning rate schedule``.
        expected: that of this run.
        keys: in the state, but unknown to ``expected``.
    """

    def __init__(self, kind: str, expected: object, keys: Iterable[str]) -> None:
        name = type(expected).__name__
        super().__init__(f"was trained with another {kind} than {name} (one with {', '.join(sorted(keys))})")


def match_template(value: Any, template: Any, name: str) -> Any:
    """Return a value with the keys, lengths, types and shapes of a template.

    Text and other objects are taken from the template.

    Args:
        value: from a checkpoint.
        template: the corresponding value of this run.
        name: of the value, for messages.

    Raises:
        InvalidStateError: for another type, shape or length, and for numbers that are not finite, unless the
            template's are infinite.
    """
    if isinstance(template, dict):
        if not isinstance(value, Mapping):
            raise InvalidStateError(f"{name} is {describe(value)}, expected a table")
        return {
            key: match_template(value[key], default, f"{name}.{key}") if key in value else default
            for key, default in template.items()
        }
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
        template = value
    elif isinstance(template, (int, float)):
        return template if value is None else check_number(value, name, infinite=math.isinf(template))
    return check_number(value, name) if template is None and value is not None else template


def check_number(value: Any, name: str, infinite: bool = False) -> int | float:
    """Return a finite number; a tensor with one number counts as well.

    Args:
        value: from a checkpoint.
        name: of the value, for messages.
        infinite: also accept infinity.

    Raises:
        InvalidStateError: for anything else.
    """
    if isinstance(value, Tensor) and value.numel() == 1 and value.layout == torch.strided and not value.is_meta:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidStateError(f"{name} is {describe(value)}, expected a number")
    if isinstance(value, int) and abs(value) > MAX_COUNT:
        raise InvalidStateError(f"{name} is {describe(value)}, expected a smaller number")
    if math.isnan(value) or (math.isinf(value) and not infinite):
        raise InvalidStateError(f"{name} is {describe(value)}, expected a finite number")
    return value


def _match_tensor(value: Any, template: Tensor, name: str) -> Tensor:
    """Return a copy of a tensor with the memory layout of the template."""
    if not isinstance(value, Tensor):
        value = torch.tensor(check_number(value, name, infinite=True))
    form = (template.shape, template.layout, template.is_complex())
    if (value.shape, value.layout, value.is_complex()) != form or value.is_meta:
        raise InvalidStateError(f"{name} has shape {tuple(value.shape)}, expected {tuple(template.shape)}")
    infinite = template.numel() == 1 and bool(template.isinf())
    if value.isnan().any() or not (infinite or value.isfinite().all()):
        raise InvalidStateError(f"{name} holds numbers that are not finite")
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
        return repr(value if len(value) <= MAX_TEXT_LENGTH else f"{value[:MAX_TEXT_LENGTH]} …")
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, Sized) else "")


def check_counters(value: Any, template: Any, name: str) -> Any:
    """Return counters with the keys of a template: nested tables of counts and flags."""
    if isinstance(template, dict):
        if not isinstance(value, dict):
            raise InvalidStateError(f"{name} is {describe(value)}, expected a table")
        return {
            key: check_counters(value[key], default, f"{name}.{key}") if key in value else default
            for key, default in template.items()
        }
    if type(value) is not type(template) or not 0 <= value <= MAX_COUNT:
        raise InvalidStateError(f"{name} is {describe(value)}, expected a count")
    return value


def check_plain(value: Any, name: str) -> None:
    """Refuse NaN, huge integers and endless nesting in the state of a callback."""
    try:
        for _, item in walk(value, MAX_DEPTH, MAX_VALUES):
            if isinstance(item, (int, float)) and not isinstance(item, bool):
                check_number(item, name, infinite=True)
    except NestingError as error:
        raise InvalidStateError(f"{name} cannot be used: {error}") from error


def check_length(saved: list[Any], expected: list[Any], items: str) -> list[Any]:
    """Return a list that has as many items as expected.

    Args:
        saved: from a checkpoint.
        expected: that of this run.
        items: what the list holds, for messages.

    Raises:
        InvalidStateError: for another length.
    """
    if len(saved) != len(expected):
        raise InvalidStateError(f"number of {items} is {len(saved)}, expected {len(expected)}")
    return saved


def rank_checkpoints(scores: dict[str, Tensor], losses: dict[str, float], mode: str) -> list[str]:
    """Sort checkpoints, best first: by score, then by loss. An unknown loss (NaN) ranks last.

    Args:
        scores: path -> monitored metric.
        losses: path -> validation loss.
        mode: ``min`` or ``max``.
    """
    sign = 1 if mode == "min" else -1

    def key(path: str) -> tuple[float, float]:
        loss = losses.get(path, math.nan)
        return sign * float(scores[path]), math.inf if math.isnan(loss) else loss

    return sorted(scores, key=key)


def check_optimizer_state(optimizer: Optimizer, saved: Any) -> dict[str, Any]:
    """Return a copy of a saved state that fits an optimizer.

    Each parameter's tensors need the names and shapes that the optimizer gives them: torch does not check them, and
    its fused steps read beyond a tensor that is too small. Options that depend on the hardware are those of this run.

    Raises:
        InvalidStateError: for other parameters.
        MismatchError: for another optimizer.
    """
    malformed = InvalidStateError("optimizer's state is no table of parameters and groups")
    if not isinstance(saved, dict) or not isinstance(saved.get("state"), dict):
        raise malformed
    groups = saved.get("param_groups")
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise malformed
    checked: dict[str, Any] = {"state": {}, "param_groups": []}
    first = 0
    for group, old in zip(optimizer.param_groups, check_length(groups, optimizer.param_groups, "groups"), strict=True):
        names = old.get("params")
        if not isinstance(names, list) or not all(isinstance(name, int) for name in names):
            raise malformed
        check_length(names, group["params"], "parameters in a group")
        options = {key: value for key, value in group.items() if key != "params"}
        restored = {key: value for key, value in options.items() if key not in HARDWARE_OPTIONS | {"lr_factor"}}
        absent = set(optimizer.defaults) - HARDWARE_OPTIONS - set(old)
        unknown = set(old) - HARDWARE_OPTIONS - set(group)
        if absent and unknown:  # another version of torch has only one of the two
            raise MismatchError("optimizer", optimizer, map(str, unknown))
        options |= match_template({key: old[key] for key in restored if key in old}, restored, "optimizer")
        checked["param_groups"].append(options | {"params": list(range(first, first + len(names)))})
        templates: dict[Any, dict[str, Any]] = {}
        for index, (name, parameter) in enumerate(zip(names, group["params"], strict=True), first):
            if name not in saved["state"]:
                continue  # a parameter without a gradient so far
            form = (parameter.shape, parameter.stride(), parameter.dtype, parameter.device)
            if form not in templates:
                templates[form] = state_after_step(optimizer, group, parameter)
            checked["state"][index] = _check_parameter_state(saved["state"][name], templates[form])
            other_keys = set(saved["state"][name]) - set(templates[form])
            if (absent or unknown) and other_keys:  # with equal options, the optimizer may add them in a later step
                raise MismatchError("optimizer", optimizer, map(str, other_keys))
        first += len(names)
    return checked


def check_schedule_state(schedule: Any, saved: Any) -> Any:
    """Return a saved state that fits a learning rate schedule.

    Raises:
        InvalidStateError: for values of another form.
        MismatchError: for another schedule.
    """
    template = schedule.state_dict()
    if isinstance(saved, dict):
        different = {key for key in set(template) ^ set(saved) if isinstance(key, str) and not key.startswith("_")}
        different -= {"total_steps", *dir(type(schedule))}  # of earlier versions; names of methods are ignored
        if different:
            keys = different & set(saved) or {"other settings"}
            raise MismatchError("learning rate schedule", schedule, map(str, keys))
    return match_template(saved, template, "schedule")


def _check_parameter_state(saved: Any, template: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(saved, dict):
        raise InvalidStateError("optimizer's state is no table of parameters and groups")
    for key in template:
        if key not in saved:
            raise InvalidStateError(f"optimizer's state has no {key}")
    return {key: match_template(saved[key], value, f"optimizer's {key}") for key, value in template.items()}


def state_after_step(optimizer: Optimizer, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
    """Return the state that an optimizer has for a parameter after a step on zeros: names, shapes and types.

    Args:
        optimizer: is not changed.
        group: the parameter's group, for the options.
        parameter: its shape, type and device matter, its values do not.
    """
    if parameter in optimizer.state:  # some optimizers make it before the first step
        return dict(optimizer.state[parameter])
    zeros = torch.zeros_like(parameter, requires_grad=True)
    zeros.grad = torch.zeros_like(zeros)
    copy = object.__new__(type(optimizer))
    copy.__dict__.update(optimizer.__dict__)
    copy.__dict__.pop("step", None)  # a schedule counts the steps of the original there
    copy.state, copy.param_groups = defaultdict(dict), [group | {"params": [zeros]}]
    copy.step(lambda: 0.0)
    return dict(copy.state[zeros])
