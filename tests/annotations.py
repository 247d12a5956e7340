"""Checks of annotations while tests run, in a quarter of the time of those of jaxtyping's import hook.

The hook decorates all functions of the package with ``jaxtyping.jaxtyped``, which compiles two functions for each,
binds the arguments of every call and checks them twice. ``check_annotations`` takes its place: a function gets its
checks when it is first called, and only one with shapes has what compares the dimensions within a call.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import TypeCheckError, jaxtyped

CONFIGURATION = BeartypeConf(violation_type=TypeCheckError)  # a TypeError, as jaxtyping raises it


def check_annotations(target=None, *, typechecker):
    """Decorate a function, or the constructor of a dataclass, with checks of its arguments and its result."""
    if target is None:
        return functools.partial(check_annotations, typechecker=typechecker)
    if inspect.isclass(target):
        if dataclasses.is_dataclass(target) and not hasattr(target.__init__, "__wrapped__"):
            target.__init__ = _check(target.__init__)
        return target
    if isinstance(target, (classmethod, staticmethod)):
        return type(target)(_check(target.__func__))
    if isinstance(target, property):
        return property(*(function and _check(function) for function in (target.fget, target.fset, target.fdel)))
    return _check(target)


def _check(function):
    hints = {name: _resolve(annotation, function) for name, annotation in function.__annotations__.items()}
    has_shapes = any(map(_has_shape, hints.values()))
    checked = None

    @functools.wraps(function)
    def call(*args, **kwargs):
        __tracebackhide__ = True
        nonlocal checked
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        if checked is None:
            checked = _add_checks(function, hints)
        if not has_shapes:
            return checked(*args, **kwargs)
        with jaxtyped("context"):
            return checked(*args, **kwargs)

    return call


def _add_checks(function, hints):
    annotations, function.__annotations__ = function.__annotations__, hints
    try:
        return beartype(conf=CONFIGURATION)(function)
    finally:
        function.__annotations__ = annotations


def _resolve(annotation, function):
    """Return the type of an annotation; ``Any`` if it cannot be resolved yet, such as a class that is defined below."""

    def of_value(value): ...

    of_value.__annotations__ = {"value": annotation}
    try:
        return get_type_hints(of_value, function.__globals__, include_extras=True)["value"]
    except Exception:  # an annotation raises whatever its expression raises
        return Any


def _has_shape(hint):
    is_array = inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)
    return is_array or any(map(_has_shape, get_args(hint)))
