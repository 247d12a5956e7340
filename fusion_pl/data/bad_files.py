"""Log the files that could not be read and counted as missing."""

from __future__ import annotations

import logging
from collections.abc import Collection

from fusion_pl.messages import escape_unprintable, join_lines

MAX_SHOWN = 3

_log = logging.getLogger(__name__)


def log_bad_files(messages: Collection[str]) -> None:
    """Log how many files could not be read, and the messages about the first three; nothing if there are none."""
    if messages:
        files = "1 file" if len(messages) == 1 else f"{len(messages)} files"
        names = escape_unprintable(join_lines(list(messages), MAX_SHOWN))
        _log.warning("%s could not be read and counted as missing:\n  %s", files, names)
