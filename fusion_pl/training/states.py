"""Values from a checkpoint, held against those that this run has in their place."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sized
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fusion_pl.plain_data import NestingError, walk

MOST = 2**53  # of what is counted: steps, batches, epochs
MAX_DEPTH, MAX_VALUES = 20, 5_000_000  # of the state of a callback
LONGEST = 40  # of a text in a message
HARDWARE = {"fused", "foreach", "capturable", "differentiable"}  # how this machine computes a step, not the other one


class Unfit(Exception):  # noqa: N818  # becomes a UserError that names the file
    """A part of a checkpoint's training state is not what this run expects."""


class Other(Unfit):
    """A state is that of another optimizer or schedule."""

    def __init__(self, what: str, own: object, told: Iterable[str]) -> None:
        name = type(own).__name__
        super().__init__(f"was trained with another {what} than {name} (one with {', '.join(sorted(told))})")


def like(value: Any, template: Any, where: str) -> Any:
    """Return a value with the keys and lengths of a template, or the template where only this run can know.

    Args:
        value: from a checkpoint.
        template: what this run has in its place.
        where: names the value in messages.

    Raises:
        Unfit: for another type, shape or length, and for numbers that are not finite where the template's are.
    """
    if isinstance(template, dict):
        if not isinstance(value, Mapping):
            raise Unfit(f"{where} is {shown(value)}, expected a table")
        known = {key: own for key, own in template.items() if key in value}
        return template | {key: like(value[key], own, f"{where}.{key}") for key, own in known.items()}
    if isinstance(template, (list, tuple)):
        if not isinstance(value, (list, tuple)) or len(value) != len(template):
            raise Unfit(f"{where} is {shown(value)}, expected {len(template)} values")
        pairs = zip(value, template, strict=True)
        return type(template)(like(one, own, f"{where}.{index}") for index, (one, own) in enumerate(pairs))
    if isinstance(template, bool) and not isinstance(value, bool):
        raise Unfit(f"{where} is {shown(value)}, expected true or false")
    if isinstance(template, Tensor):
        return _tensor(value, template, where)
    if isinstance(template, (int, float)) and not isinstance(template, bool):
        return template if value is None else number(value, where, infinite=math.isinf(template))
    if template is None and value is not None:
        return number(value, where)
    return value if template is None or isinstance(template, bool) else template


def number(value: Any, where: str, infinite: bool = False) -> int | float:
    """Return a number, or raise ``Unfit``; one in a tensor counts as well."""
    if isinstance(value, Tensor) and value.numel() == 1 and value.layout == torch.strided and not value.is_meta:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Unfit(f"{where} is {shown(value)}, expected a number")
    if isinstance(value, int) and abs(value) > MOST:
        raise Unfit(f"{where} is {shown(value)}, expected a smaller number")
    if math.isnan(value) or (math.isinf(value) and not infinite):
        raise Unfit(f"{where} is {shown(value)}, expected a finite number")
    return value


def _tensor(value: Any, template: Tensor, where: str) -> Tensor:
    """Return a copy of a tensor in memory that is laid out like the template's."""
    if not isinstance(value, Tensor):
        value = torch.tensor(number(value, where, infinite=True))
    kind = (template.shape, template.layout, template.is_complex())
    if (value.shape, value.layout, value.is_complex()) != kind or value.is_meta:
        raise Unfit(f"{where} has shape {tuple(value.shape)}, expected {tuple(template.shape)}")
    endless = template.numel() == 1 and bool(template.isinf())
    if value.isnan().any() or not (endless or value.isfinite().all()):
        raise Unfit(f"{where} holds numbers that are not finite")
    return torch.empty_like(template, requires_grad=False).copy_(value)


def shown(value: Any) -> str:
    """Return a value for a message, shortened."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, int) and abs(value) > MOST:
        return "a huge number"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, str):
        return repr(value if len(value) <= LONGEST else f"{value[:LONGEST]} …")
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, Sized) else "")


def counts(value: Any, template: Any, where: str) -> Any:
    """Return counters with the keys of a template."""
    if isinstance(template, dict):
        if not isinstance(value, dict):
            raise Unfit(f"{where} is {shown(value)}, expected a table")
        return {
            key: counts(value[key], own, f"{where}.{key}") if key in value else own for key, own in template.items()
        }
    if type(value) is not type(template) or not 0 <= value <= MOST:
        raise Unfit(f"{where} is {shown(value)}, expected a count")
    return value


def check_plain(value: Any, where: str) -> None:
    """Refuse NaN, huge integers and endless nesting in the state of a callback."""
    try:
        for _, item in walk(value, MAX_DEPTH, MAX_VALUES):
            if isinstance(item, (int, float)) and not isinstance(item, bool):
                number(item, where, infinite=True)
    except NestingError as error:
        raise Unfit(f"{where} cannot be used: {error}") from error


def counted(saved: list[Any], wanted: list[Any], what: str) -> list[Any]:
    """Return a list, or raise ``Unfit`` where it is not as long as the other."""
    if len(saved) != len(wanted):
        raise Unfit(f"number of {what} is {len(saved)}, expected {len(wanted)}")
    return saved


def ranked(scores: dict[str, Tensor], losses: dict[str, float], mode: str) -> list[str]:
    """Return names of checkpoints, best first: by score, then by loss; an unknown loss comes last."""
    sign = 1 if mode == "min" else -1

    def rank(path: str) -> tuple[float, float]:
        loss = losses.get(path, math.nan)
        return sign * float(scores[path]), math.inf if math.isnan(loss) else loss

    return sorted(scores, key=rank)


def optimizer_state(optimizer: Optimizer, saved: Any) -> dict[str, Any]:
    """Return a saved state for an optimizer, in fresh memory.

    Each parameter's tensors must have the names and shapes that the optimizer would give them: torch trusts them, and
    its fused steps read beyond a tensor that is too small. How a step is computed stays as this run has it.

    Raises:
        Unfit: where there are other parameters.
        Other: where it is another optimizer.
    """
    wrong = Unfit("optimizer's state is no table of parameters and groups")
    if not isinstance(saved, dict) or not isinstance(saved.get("state"), dict):
        raise wrong
    groups = saved.get("param_groups")
    if not isinstance(groups, list) or not all(isinstance(one, dict) for one in groups):
        raise wrong
    checked: dict[str, Any] = {"state": {}, "param_groups": []}
    first = 0
    for own, old in zip(optimizer.param_groups, counted(groups, optimizer.param_groups, "groups"), strict=True):
        names = old.get("params")
        if not isinstance(names, list) or not all(isinstance(one, int) for one in names):
            raise wrong
        counted(names, own["params"], "parameters in a group")
        options = {key: value for key, value in own.items() if key != "params"}
        changes = {key: value for key, value in options.items() if key not in HARDWARE | {"lr_factor"}}
        lacking, more = set(optimizer.defaults) - HARDWARE - set(old), set(old) - HARDWARE - set(own)
        if lacking and more:  # another version of torch has either
            raise Other("optimizer", optimizer, map(str, more))
        options |= like({key: old[key] for key in changes if key in old}, changes, "optimizer")
        checked["param_groups"].append(options | {"params": list(range(first, first + len(names)))})
        shapes: dict[Any, dict[str, Any]] = {}
        for index, (name, parameter) in enumerate(zip(names, own["params"], strict=True), first):
            if name not in saved["state"]:
                continue  # a parameter that has had no gradient yet
            same = (parameter.shape, parameter.stride(), parameter.dtype, parameter.device)
            if same not in shapes:
                shapes[same] = state_after_a_step(optimizer, own, parameter)
            checked["state"][index] = _parameter_state(saved["state"][name], shapes[same])
            unknown = set(saved["state"][name]) - set(shapes[same])
            if (lacking or more) and unknown:  # where the options agree, it is made later than in the first step
                raise Other("optimizer", optimizer, map(str, unknown))
        first += len(names)
    return checked


def schedule_state(schedule: Any, saved: Any) -> Any:
    """Return a saved state for a schedule of the learning rate.

    Raises:
        Unfit: for another schedule, and for values that do not fit it.
    """
    own = schedule.state_dict()
    if isinstance(saved, dict):
        different = {key for key in set(own) ^ set(saved) if isinstance(key, str) and not key.startswith("_")}
        different -= {"total_steps", *dir(type(schedule))}  # of versions before; names of methods, which are dropped
        if different:
            raise Other("learning rate schedule", schedule, map(str, different & set(saved) or {"other settings"}))
    return like(saved, own, "schedule")


def _parameter_state(saved: Any, template: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(saved, dict):
        raise Unfit("optimizer's state is no table of parameters and groups")
    for key in template:
        if key not in saved:
            raise Unfit(f"optimizer has kept no {key}")
    return {key: like(saved[key], own, f"optimizer's {key}") for key, own in template.items()}


def state_after_a_step(optimizer: Optimizer, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
    """Return what an optimizer keeps for a parameter: names, shapes and types, those that a step on zeros makes.

    Args:
        optimizer: whose step it is; it is not changed.
        group: the parameter's group, for the options.
        parameter: whose shape, type and device matter; its values do not.
    """
    if parameter in optimizer.state:  # some make it before the first step
        return dict(optimizer.state[parameter])
    trial = torch.zeros_like(parameter, requires_grad=True)
    trial.grad = torch.zeros_like(trial)
    copy = object.__new__(type(optimizer))
    copy.__dict__.update(optimizer.__dict__)
    copy.__dict__.pop("step", None)  # a schedule counts the steps of the original there
    copy.state, copy.param_groups = defaultdict(dict), [group | {"params": [trial]}]
    copy.step(lambda: 0.0)
    return dict(copy.state[trial])
