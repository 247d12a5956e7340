"""Packages that only some commands need, in extras of the distribution."""

from __future__ import annotations

from importlib import import_module

from fusion_pl.types import UserError


def check_extra(extra: str, subject: str, *packages: str) -> None:
    """Import the packages of an extra.

    Args:
        extra: name of the extra.
        subject: what needs the packages, with its verb: the first words of the message.
        packages: names of the modules.

    Raises:
        UserError: if one cannot be imported.

    Example:
        >>> check_extra("serve", "a page needs", "no_such_package")
        Traceback (most recent call last):
        ...
        fusion_pl.types.UserError: a page needs no_such_package: pip install 'fusion-pl[serve]'
    """
    for package in packages:
        try:
            import_module(package)
        except ImportError as error:
            raise UserError(f"{subject} {package}: pip install 'fusion-pl[{extra}]'") from error
