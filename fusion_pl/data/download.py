"""Download a file: resumed after an interruption, and checked before it gets its name."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from fusion_pl.files import PARTIAL
from fusion_pl.types import UserError

CHUNK = 1 << 16  # bytes
PARTIAL_CONTENT, RANGE_NOT_SATISFIABLE = 206, 416  # HTTP status codes
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
SERVER_ERRORS = 500  # this code and above: the same request may succeed later


class DownloadError(UserError):
    """The file cannot be fetched, or its content is wrong."""


def download(
    url: str,
    path: str | Path,
    check: Callable[[Path], Any],
    timeout: float = 30.0,
    attempts: int = 5,
    wait: float = 1.0,
) -> Any:
    """Download ``url`` to ``path``, unless the file exists, and return what ``check`` returned.

    The bytes received so far are in ``<path>.partial``, from which the next attempt continues, also that of another
    process. Only one process downloads the file at a time. Neither ``torchvision.datasets.utils`` nor ``pooch`` resumes
    a download, and the former waits without end for a server that stalls.

    Args:
        url: address of the file.
        path: destination; its folder is created.
        check: called with the path of the complete download, or of the file that exists; raises a UserError if its
            content is wrong.
        timeout: seconds without any data after which an attempt fails.
        attempts: number of attempts, each of which continues the previous one.
        wait: seconds before the second attempt; they double with each further one.

    Raises:
        DownloadError: if the file cannot be fetched, or if its content is wrong; then it is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    with FileLock(path.with_name(f".{path.name}.lock")):
        while not path.exists():
            resumed = partial.exists()
            _receive_all(url, partial, timeout, attempts, wait)
            try:
                result = check(partial)
            except UserError as error:
                partial.unlink()
                if not resumed:  # otherwise the beginning may be that of another file: download all of it once
                    raise DownloadError(f"{url} is not the expected file ({error})") from error
            else:
                partial.replace(path)
                return result
    return check(path)


def _receive_all(url: str, partial: Path, timeout: float, attempts: int, wait: float) -> None:
    """Receive the rest of the file in several attempts."""
    for attempt in range(attempts):
        if attempt:
            time.sleep(wait * 2 ** (attempt - 1))
        try:
            _receive(url, partial, timeout)
        except HTTPError as error:
            error.close()
            if error.code == RANGE_NOT_SATISFIABLE and partial.exists():
                return  # nothing is left to receive: the check decides
            reason = f"the server answers {error.code} {error.reason}"
            if error.code < SERVER_ERRORS:
                break
        except URLError as error:  # unknown host, no route, refused connection: the next attempt would fail as well
            reason = f"no connection: {error.reason}"
            break
        except TimeoutError:
            reason = f"no data for {timeout:g} s"
        except (HTTPException, OSError) as error:
            reason = f"the transfer broke off: {str(error) or type(error).__name__}"
            if getattr(error, "errno", None) in DISK_FULL:
                break
        else:
            return
    raise DownloadError(f"{url} cannot be downloaded ({reason})")


def _receive(url: str, partial: Path, timeout: float) -> None:
    """Append the bytes that are missing from the partial file; all of them if the server does not resume."""
    start = partial.stat().st_size if partial.exists() else 0
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urlopen(request, timeout=timeout) as response:
        if response.status != PARTIAL_CONTENT:
            start = 0
        expected = None if response.length is None else start + response.length  # None: length is not announced
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with (
            Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
            partial.open("ab" if start else "wb") as file,
        ):
            task = bar.add_task(f"Downloading {url.rpartition('/')[2]}", total=expected, completed=start)
            while data := response.read1(CHUNK):
                file.write(data)
                bar.advance(task, len(data))
        received = partial.stat().st_size
        if expected is not None and received < expected:
            raise ConnectionError(f"{received:,} of {expected:,} bytes were received")
