"""Text from files and from other libraries, made fit for one printed sentence."""

from __future__ import annotations

LONGEST = 200


def reason(error: BaseException) -> str:
    r"""Return why something failed: the first line of the message, or the error's name where it has none.

    Example:
        >>> reason(ValueError("too short\nmore of no interest"))
        'too short'
        >>> reason(IndexError())
        'IndexError'
    """
    lines = str(error).strip().splitlines()
    return short(lines[0]) if lines else type(error).__name__


def short(text: str, longest: int = LONGEST) -> str:
    """Cut a text that a file supplied, so that it cannot fill the screen.

    Example:
        >>> len(short("x" * 10_000))
        202
    """
    return text if len(text) <= longest else text[:longest] + " …"


def one_line(text: str) -> str:
    r"""Write several lines as one, and cut it.

    Example:
        >>> one_line("a\n   b")
        'a b'
    """
    return short(" ".join(text.split()), longest=2 * LONGEST)


def printable(text: str) -> str:
    r"""Write what a terminal would obey (escape sequences, text that runs backwards) as escapes; line breaks stay.

    Example:
        >>> printable("a\x1b[2Jb")
        'a\\x1b[2Jb'
    """
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode("ascii") for one in text
    )


def is_failure(error: BaseException) -> bool:
    """Tell a library's failure from a stop: a panic of a Rust library (tokenizers) is no ``Exception``."""
    return isinstance(error, Exception) or type(error).__module__ == "pyo3_runtime"
