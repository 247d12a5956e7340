"""Class paths and constructor arguments of encoders and heads, which a checkpoint stores instead of pickled objects."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from collections.abc import Callable, Collection
from typing import Any, TypedDict, TypeVar

from fusion_pl.messages import truncate
from fusion_pl.types import UserError

PLAIN_TYPES = (str, int, float, bool, type(None))
# Old -> new argument names of encoders and heads, to convert old checkpoints and to explain errors in old YAML files.
RENAMED_ARGUMENTS = {"levels": "hidden_layers", "doubt": "kl_weight", "top": "top_k"}
PartT = TypeVar("PartT", bound="Configurable")


class PartConfig(TypedDict):
    """Class path and constructor arguments of an encoder or head, as in a YAML configuration."""

    class_path: str
    init_args: dict[str, Any]


class Configurable:
    """Base of encoders and heads: records the constructor arguments of every subclass.

    Example:
        >>> class Part(Configurable):
        ...     def __init__(self, width: int, depth: int = 2): ...
        >>> Part(8).init_args
        {'width': 8}
    """

    init_args: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _record_arguments(cls.__init__)  # type: ignore[method-assign]


def _record_arguments(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def wrapper(self: Configurable, *args: Any, **kwargs: Any) -> None:
        if "init_args" not in self.__dict__:  # record only the outermost constructor, which runs first
            bound = inspect.signature(init).bind(self, *args, **kwargs)
            _, *rest = bound.arguments.items()
            extra = bound.arguments.get("kwargs", {})
            self.__dict__["init_args"] = {k: v for k, v in rest if k != "kwargs"} | extra
        init(self, *args, **kwargs)

    return wrapper


def config_of(part: Configurable, omit: Collection[str] = ()) -> PartConfig:
    """Return the configuration that rebuilds ``part``.

    Args:
        part: an encoder or a head.
        omit: names of arguments to omit, such as dimensions that are computed from the encoders.

    Raises:
        UserError: if an argument is not plain data, so that a checkpoint cannot store it.
    """
    path = f"{type(part).__module__}.{type(part).__qualname__}"
    args = {key: _to_plain_data(value, f"{path}({key}=…)") for key, value in part.init_args.items() if key not in omit}
    return PartConfig(class_path=path, init_args=args)


def _to_plain_data(value: Any, location: str) -> Any:
    if isinstance(value, PLAIN_TYPES):
        return value
    if isinstance(value, (list, tuple)):
        return [_to_plain_data(item, location) for item in value]
    if isinstance(value, dict):
        return {str(key): _to_plain_data(item, location) for key, item in value.items()}
    raise UserError(
        f"{location} is a {type(value).__name__}: a checkpoint stores only text, numbers, lists and dictionaries; pass "
        "plain arguments and build other objects in the constructor"
    )


def import_class(path: str, base: type[PartT], trust: Collection[str] = ()) -> type[PartT]:
    """Import the class of an encoder or head, from fusion_pl and trusted packages only.

    Args:
        path: class path, such as ``fusion_pl.fusion.Concat``.
        base: required base class.
        trust: top-level packages that the user trusts besides fusion_pl.

    Raises:
        UserError: if the package is not trusted or not installed, or the class is not a subclass of ``base``.
    """
    if not all(name.isidentifier() for name in path.split(".")):
        raise UserError(f"the checkpoint is damaged: {truncate(path)!r} is not a class path")
    module, _, name = path.rpartition(".")
    package = module.partition(".")[0]
    if package not in {"fusion_pl", *trust}:
        raise UserError(
            f"the checkpoint asks for {path}, which is not part of fusion-pl: loading it runs that package's code; if "
            f"you trust the package, give --trust {package} (in Python: trust=[{package!r}])"
        )
    try:
        cls = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"the checkpoint asks for {path}, which cannot be imported here: {missing_module_message(error, path)}"
        ) from error
    except (ImportError, AttributeError) as error:
        raise UserError(f"the checkpoint asks for {path}, which cannot be imported here: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise UserError(
            f"the checkpoint asks for {path}, which is not a {base.__name__}: the file is damaged or tampered with"
        )
    return cls


def missing_module_message(error: ModuleNotFoundError, path: str) -> str:
    """Return the message for a module that cannot be imported when the class ``path`` is loaded."""
    if error.name and not f"{path}.".startswith(f"{error.name}."):
        return f"{path} cannot be imported, because its module needs {error.name!r}, which is not installed"
    variable = os.environ.get("PYTHONPATH")
    return (
        f"there is no module {error.name!r} for {path} in the installed packages, the current folder ({os.getcwd()}) "
        f"or PYTHONPATH ({variable or 'not set'})"
    )
