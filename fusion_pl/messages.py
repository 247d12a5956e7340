"""Format names and errors for one-sentence messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

MAX_LENGTH = 200
MAX_NAMES = 10


def error_reason(error: BaseException) -> str:
    r"""Return the first line of an error's message, or the name of its class if it has none.

    Example:
        >>> error_reason(ValueError("too short\nmore details"))
        'too short'
        >>> error_reason(IndexError())
        'IndexError'
    """
    lines = str(error).strip().splitlines()
    return truncate(lines[0]) if lines else type(error).__name__


def truncate(text: str, max_length: int = MAX_LENGTH) -> str:
    """Truncate a text to ``max_length`` characters, and mark it with `` …``.

    Example:
        >>> len(truncate("x" * 10_000))
        202
    """
    return text if len(text) <= max_length else text[:max_length] + " …"


def one_line(text: str) -> str:
    r"""Join the lines of a text to one line, and truncate it.

    Example:
        >>> one_line("a\n   b")
        'a b'
    """
    return truncate(" ".join(text.split()), max_length=2 * MAX_LENGTH)


def join_names(names: Iterable[str]) -> str:
    """Join names by commas; of more than ten names, show the first ten and their number.

    Example:
        >>> join_names(["a", "b"])
        'a, b'
    """
    names = list(names)
    return ", ".join(names[:MAX_NAMES]) + (f" … ({len(names)} in all)" if len(names) > MAX_NAMES else "")


def join_lines(lines: Sequence[str], max_lines: int) -> str:
    r"""Join the first ``max_lines`` lines, indented, and add the number of lines that are left out.

    Example:
        >>> join_lines(["a", "b", "c"], max_lines=1)
        'a\n  … and 2 more'
    """
    more = [f"… and {len(lines) - max_lines} more"] if len(lines) > max_lines else []
    return "\n  ".join([*lines[:max_lines], *more])


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return the question ``; did you mean …?`` with the most similar known name in any case; empty if none is similar.

    Example:
        >>> did_you_mean("batchsize", ["batch_size", "seed"], prefix="--")
        '; did you mean --batch_size?'
        >>> did_you_mean("CONCAT", ["Concat", "Mean"])
        '; did you mean Concat?'
    """
    by_folded = {other.casefold(): other for other in known}
    matches = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return f"; did you mean {prefix}{by_folded[matches[0]]}?" if matches else ""


def escape_unprintable(text: str) -> str:
    r"""Escape control and bidirectional characters, which a terminal would interpret; line breaks stay.

    Example:
        >>> escape_unprintable("a\x1b[2Jb")
        'a\\x1b[2Jb'
    """
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode("ascii") for char in text
    )


def is_failure(error: BaseException) -> bool:
    """Return whether an exception is an error, not an interruption such as Ctrl-C.

    A panic in a Rust library is an error, although its class is not derived from ``Exception``.
    """
    return isinstance(error, Exception) or type(error).__module__ == "pyo3_runtime"
