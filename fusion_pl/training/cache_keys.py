"""Cache keys of encoder outputs: hashes of everything that an output depends on, including source code."""

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

from fusion_pl.config import config_of
from fusion_pl.encoders.base import Encoder
from fusion_pl.training.content_hash import hash_content, tensor_bytes

FILE_FORMAT_VERSION = 3  # format of the shards of features
LIBRARY_FOLDERS = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def encoder_key(encoder: Encoder, *details: str) -> str:
    """Return a hash of an encoder: weights, buffers, arguments, files, source code, and library versions.

    Args:
        encoder: encoder whose output is stored.
        details: what else decides the stored numbers, such as the precision.
    """
    parts = [*encoder.modules(), encoder.processor]
    description = [FILE_FORMAT_VERSION, details, config_of(encoder), *code_versions({type(part) for part in parts})]
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, content in sorted(encoder.files().items()):
        digest.update(name.encode() + content)
    for name, tensor in [*encoder.named_parameters(), *encoder.named_buffers()]:
        digest.update(name.encode() + tensor_bytes(tensor))
    for name, value in encoder.state_dict().items():
        if name.endswith("_extra_state"):  # any value that get_extra_state of a module returns
            digest.update(name.encode() + hash_content(value))
    return digest.hexdigest()[:24]


def code_versions(classes: Iterable[type]) -> tuple[list[str], list[str]]:
    """Return the hash of each source file that classes depend on, and the version of each library.

    Imports are followed from the modules of the classes and their base classes, but not into installed libraries.
    """
    classes = {base for subclass in classes for base in subclass.__mro__}
    files: dict[str, str] = {}
    libraries: dict[str, str] = {}
    pending, seen = {base.__module__ for base in classes}, set[str]()
    while pending:
        name = pending.pop()
        seen.add(name)
        top = name.partition(".")[0]
        if top != "fusion_pl" and (_source_path(top) or "").startswith(LIBRARY_FOLDERS):
            if name != top:
                pending |= {top} - seen  # look up each library only once: it takes 1 ms
                continue
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                libraries[top] = importlib.metadata.version(top)
        elif (path := _source_path(name)) is not None:
            files[name], imported = _hash_module(path, name)
            pending |= imported - seen
    for base in classes:  # classes of a notebook have no file, but inspect may find their source
        if _source_path(base.__module__) is None:
            with contextlib.suppress(OSError, TypeError):
                files[f"{base.__module__}:{base.__qualname__}"] = _sha256(inspect.getsource(base).encode())
    lines = [[f"{name} {value}" for name, value in sorted(versions.items())] for versions in (files, libraries)]
    return lines[0], lines[1]


def _source_path(name: str) -> str | None:
    """Return the path of a module without importing it; None if there is no such module, or it has no file."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None)
    if hasattr(parent := sys.modules.get(name.rpartition(".")[0]), "__file__") and not hasattr(parent, "__path__"):
        return None  # a class or function of a module, not a submodule
    with contextlib.suppress(ImportError, ValueError):  # not a module, or not installed
        spec = importlib.util.find_spec(name)
        return spec.origin if spec is not None and spec.has_location else None
    return None


@cache
def _hash_module(path: str, name: str) -> tuple[str, set[str]]:
    """Return the hash of a module's source file, and the names of the modules that it may import."""
    content = Path(path).read_bytes()
    package = name if Path(path).stem == "__init__" else name.rpartition(".")[0]
    imported: set[str] = set()
    with contextlib.suppress(SyntaxError, ValueError, ImportError):  # not Python, or another version of Python
        imported = set(_imported_modules(ast.parse(content), package))
    return _sha256(content), imported


def _imported_modules(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)  # submodules, or classes and functions


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
