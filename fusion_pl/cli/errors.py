"""One sentence for each mistake that a user can make at the command line."""

from __future__ import annotations

import errno
import re

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from fusion_pl.messages import one_line
from fusion_pl.types import UserError

# What to do about a file that cannot be written, by the reason.
UNWRITABLE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room there, or choose another folder"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "choose a folder that you may write to"),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EEXIST, errno.EISDIR), "a folder has the name of a file, or a file that of a folder"
    ),
}


def user_message(error: BaseException) -> str | None:
    """Say in a sentence what the user can fix; None where the fault is not theirs, so that the traceback is wanted."""
    cause: BaseException | None = error
    while cause is not None:  # jsonargparse wraps what a class that it builds says
        if isinstance(cause, (UserError, MisconfigurationException)):
            return str(cause).strip()
        cause = cause.__cause__
    if isinstance(error, torch.OutOfMemoryError):
        return "the device is out of memory: lower --data.batch_size, or freeze encoders (freeze: all)"
    if isinstance(error, RuntimeError) and "loading state_dict" in str(error):
        said = one_line(str(error))
        return f"the checkpoint's weights do not fit this configuration: give its run's config.yaml ({said})"
    found = re.match(r"Early stopping conditioned on metric `(.+?)` which is not available.*: (.+)", str(error))
    if found and isinstance(error, RuntimeError):
        there = found[2].replace("`", "")
        return f"--early_stopping.monitor: this run does not measure {found[1]!r} in validation; there are {there}"
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        name = str(error.filename or "a file of the run").removesuffix(".partial")  # its name until it is complete
        return f"cannot write {name}: {error.strerror}: {UNWRITABLE[error.errno]}"
    return None
