"""What a cached row goes by: everything that what an encoder returns depends on, its source code included."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from fusion_pl.config import config_of
from fusion_pl.encoders.base import Encoder

FORMAT = 2  # of the rows' files
INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def encoder_key(encoder: Encoder) -> str:
    """Hash an encoder: weights, buffers, arguments, files, source code, and the versions of the libraries."""
    parts = [*encoder.modules(), encoder.processor]
    outline = [FORMAT, config_of(encoder), *sources({type(part) for part in parts})]
    digest = hashlib.sha256(json.dumps(outline, sort_keys=True).encode())
    for name, content in sorted(encoder.files().items()):
        digest.update(name.encode() + content)
    for name, value in [*encoder.named_parameters(), *encoder.named_buffers()]:
        digest.update(name.encode() + _bytes(value))
    return digest.hexdigest()[:24]


def row_keys(inputs: dict[str, Tensor]) -> list[str]:
    """Hash each row; zeros at its end are padding, since the mask says how long it is."""
    masks = [value.cpu() for value in inputs.values() if value.dtype == torch.bool]
    first = next(iter(inputs.values()))
    kind = first.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.get_default_dtype()
    digests = [hashlib.sha256(str(dtype).encode()) for _ in first]
    for name, value in sorted(inputs.items()):
        plain = value.cpu()
        for mask in masks:
            if plain.shape == mask.shape:  # numbers of tokens, samples of a sound
                plain = plain.masked_fill(~mask, 0)
        for digest, row in zip(digests, plain, strict=True):
            digest.update(f"{name} {row.dtype} {list(row.shape[1:])}".encode())
            digest.update(_bytes(row).rstrip(b"\0"))
    return [digest.hexdigest() for digest in digests]


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def sources(classes: Iterable[type]) -> tuple[list[str], list[str]]:
    """Return the hash of each file of code that classes use, and the version of each library.

    From the classes and all that they inherit from, imports are followed; into installed libraries no further than to
    their versions.
    """
    classes = {base for one in classes for base in one.__mro__}
    files: dict[str, str] = {}
    libraries: dict[str, str] = {}
    waiting, seen = {one.__module__ for one in classes}, set[str]()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        top = name.partition(".")[0]
        if top != "fusion_pl" and (_place(top) or "").startswith(INSTALLED):
            if name != top:
                waiting |= {top} - seen  # once: to look its version up takes a millisecond
                continue
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                libraries[top] = importlib.metadata.version(top)
        elif (place := _place(name)) is not None:
            files[name], imported = _read(place, name)
            waiting |= imported - seen
    for one in classes:  # typed into a notebook: no file, though perhaps a source
        if _place(one.__module__) is None:
            with contextlib.suppress(OSError, TypeError):
                files[f"{one.__module__}:{one.__qualname__}"] = _hash(inspect.getsource(one).encode())
    listed = [[f"{name} {content}" for name, content in sorted(found.items())] for found in (files, libraries)]
    return listed[0], listed[1]


def _place(name: str) -> str | None:
    """Return a module's file, without importing it; None where there is no such module, or it has no file."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None)
    if hasattr(parent := sys.modules.get(name.rpartition(".")[0]), "__file__") and not hasattr(parent, "__path__"):
        return None  # what a module defines
    with contextlib.suppress(ImportError, ValueError):  # not a module, or one that is not installed
        spec = importlib.util.find_spec(name)
        return spec.origin if spec is not None and spec.has_location else None
    return None


@cache
def _read(place: str, name: str) -> tuple[str, set[str]]:
    """Return the hash of a module's source, and the names of the modules that it may import."""
    content = Path(place).read_bytes()
    package = name if Path(place).stem == "__init__" else name.rpartition(".")[0]
    imported: set[str] = set()
    with contextlib.suppress(SyntaxError, ValueError, ImportError):  # no Python, or of another version
        imported = set(_imports(ast.parse(content), package))
    return _hash(content), imported


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)  # some are modules


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
