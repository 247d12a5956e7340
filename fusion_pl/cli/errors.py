"""One-sentence messages for errors that the user can fix."""

from __future__ import annotations

import errno
import os
import re

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from fusion_pl.messages import one_line
from fusion_pl.types import UserError

# Error number of a failed write -> what the user can do.
WRITE_ERRORS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room there, or choose another folder"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "choose a folder that you may write to"),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EEXIST, errno.EISDIR), "a folder has the name of a file, or a file that of a folder"
    ),
}


def user_message(error: BaseException) -> str | None:
    """Return a one-sentence message for an error that the user can fix; None for an error that needs a traceback."""
    cause: BaseException | None = error
    while cause is not None:  # jsonargparse wraps the errors of the classes that it builds
        if isinstance(cause, (UserError, MisconfigurationException)):
            return str(cause).strip()
        cause = cause.__cause__
    if isinstance(error, torch.OutOfMemoryError):
        return "the device is out of memory: lower --data.batch_size, or freeze encoders (freeze: all)"
    if isinstance(error, RuntimeError) and "loading state_dict" in str(error):
        detail = one_line(str(error))
        return f"the checkpoint's weights do not fit this configuration: use the config.yaml of its run ({detail})"
    match = re.match(r"Early stopping conditioned on metric `(.+?)` which is not available.*: (.+)", str(error))
    if match and isinstance(error, RuntimeError):
        metrics = match[2].replace("`", "")
        return f"--early_stopping.monitor: this run does not measure {match[1]!r} in validation; there are {metrics}"
    if isinstance(error, OSError) and error.errno in WRITE_ERRORS:
        return _file_message(error)
    return None


def _file_message(error: OSError) -> str:
    """Return the message for a file that cannot be written, or, if it exists and may not be read, cannot be read."""
    name = str(error.filename or "a file of the run").removesuffix(".partial")  # suffix of an atomic write
    if os.path.isfile(name) and not os.access(name, os.R_OK):
        return f"cannot read {name}: {error.strerror}: give a file that you may read"
    return f"cannot write {name}: {error.strerror}: {WRITE_ERRORS[error.errno or 0]}"
