"""Read a checkpoint file as plain data and tensors, without executing code or unpacking compressed data."""

from __future__ import annotations

import errno
import zipfile
from pathlib import Path
from typing import Any

from fusion_pl.checkpoint.contents import check_contents
from fusion_pl.checkpoint.convert import convert_checkpoint
from fusion_pl.messages import error_reason
from fusion_pl.torch_files import READ_ERRORS, RefusedFileError, describe_error, load_torch_file
from fusion_pl.types import MissingFileError, UserError


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint as plain data, without executing code.

    Raises:
        MissingFileError: if the file does not exist.
        UserError: if the file is damaged, contains code or non-finite weights, or is not from fusion-pl.
    """
    refuse_shards(path)
    if not Path(path).is_file():  # reading a pipe would block
        raise MissingFileError(f"there is no checkpoint {path}" + (": it is not a file" if Path(path).exists() else ""))
    try:
        checkpoint = load_torch_file(path)
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{path} is not a checkpoint: it is another kind of file, or it was truncated or damaged while it was "
            f"written or copied ({error_reason(error)}); copy it again, or use another checkpoint of the run"
        ) from error
    except MemoryError as error:
        raise UserError(
            f"there is not enough memory to read {path} ({Path(path).stat().st_size / 1e6:.0f} MB): end other programs"
        ) from error
    except OSError as error:
        if error.errno not in {None, errno.EINVAL}:  # both mean a read beyond the end of a damaged file
            raise UserError(
                f"{path} cannot be read: {error.strerror}: check its permissions and its disk, or use another copy"
            ) from error
        raise UserError(f"{path} is not a checkpoint that can be read safely: it is damaged") from error
    except (*READ_ERRORS, RefusedFileError) as error:
        raise UserError(f"{path} is not a checkpoint that can be read safely: {describe_error(error)}") from error
    convert_checkpoint(checkpoint)
    check_contents(checkpoint, path)
    return dict(checkpoint)


def refuse_shards(path: str | Path) -> None:
    """Refuse a sharded checkpoint, the folder that FSDP writes with ``state_dict_type: sharded``.

    Raises:
        UserError: if the path is such a folder; the message contains the command that consolidates it.
    """
    if (Path(path) / "meta.pt").is_file():
        raise UserError(
            f"{path} is a folder with a sharded checkpoint of FSDP: consolidate it with python -m "
            f"lightning.pytorch.utilities.consolidate_checkpoint {path}, and use {Path(path)}.consolidated; "
            "to resume training, write full checkpoints (trainer.strategy.init_args.state_dict_type: full)"
        )
