"""Files on web servers and in object stores, which are read from a bounded cache of local copies."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from fusion_pl.files import PARTIAL, atomic_path, cache_folder
from fusion_pl.messages import error_reason
from fusion_pl.processors.base import OPEN_ERRORS
from fusion_pl.types import MissingFileError, UserError

URL = re.compile(r"(https?|s3a?|gs|gcs|hf|az|abfss?)://", re.IGNORECASE)
ATTEMPTS = 5
WAIT = 1.0  # seconds before the second attempt; they double with each further one
COPY_NAME = re.compile("[0-9a-f]{32}(\\.|$)")
TIMEOUT = 30.0  # seconds without any data after which an attempt fails, for http and https
TRY_AGAIN = (408, 429)  # client errors of HTTP after which the same request may succeed later
GONE = (404, 410)
# A process adds up the sizes of all copies after it received 1 % of the limit. Above 80 % it removes copies
# down to 60 %, so that 20 processes stay below the limit.
COUNT_AFTER, HIGH, LOW, MAX_FILE = 0.01, 0.8, 0.6, 0.5
MAX_DOWNLOAD = 3600  # seconds after the last byte after which an incomplete copy belongs to a process that ended

Value = TypeVar("Value")


def is_url(path: Any) -> bool:
    """Return whether a cell is the address of a remote file.

    Example:
        >>> is_url("s3://bucket/1.png"), is_url("photos/1.png")
        (True, False)
    """
    return isinstance(path, str) and "://" in path and URL.match(path) is not None


def strip_query(path: str) -> str:
    """Return a URL without query and fragment; another path as it is.

    Example:
        >>> strip_query("https://example.org/pets.csv?signature=ab/cd"), strip_query("pets?.csv")
        ('https://example.org/pets.csv', 'pets?.csv')
    """
    return re.split(r"[?#]", path, maxsplit=1)[0] if is_url(path) else path


def join_url(folder: str, path: str) -> str:
    """Return the address of a path relative to a remote folder.

    Example:
        >>> join_url("https://example.org/pets", "photos/rex 1.jpg")
        'https://example.org/pets/photos/rex%201.jpg'
    """
    path = posixpath.normpath(path)
    return f"{folder.rstrip('/')}/{quote(path) if folder.lower().startswith('http') else path}"


def is_inside(path: str, folder: str) -> bool:
    """Return whether an absolute path or URL without ``..`` lies inside a folder; other URLs lie outside."""
    if not path.startswith(folder if folder.endswith("/") else f"{folder}/"):
        return False
    # Clients remove tabs and line breaks from a URL. urlsplit, which does it, too, raises an error for some URLs.
    return not is_url(path) or ".." not in re.split(r"[/\\]", unquote(re.sub(r"[\t\r\n]", "", strip_query(path))))


class RemoteFiles:
    """Local copies of remote files. A file at a URL must not change, since a copy is never compared with it.

    Several processes may use the same folder. The copies that were not used for the longest time are removed. A copy
    gets its name when it is complete, and its content is never executed.

    Args:
        folder: folder of the copies.
        max_bytes: maximum size of all copies; one file may take half of it.
    """

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = Path(folder), max_bytes
        self._received = max_bytes  # bytes since the files were last counted

    @classmethod
    def from_options(cls, folder: str | None, limit: float) -> RemoteFiles:
        """Return the files of ``data.remote_cache`` (None = the user's cache) and ``data.remote_cache_limit`` in GiB.

        Raises:
            UserError: if the limit is no number above 0.
        """
        if not 0 < limit < float("inf"):
            raise UserError(f"remote_cache_limit must be a number above 0, got {limit}")
        return cls(folder or cache_folder() / "remote", int(limit * 2**30))

    def open(self, url: str, open_file: Callable[[str], Value]) -> Value:
        """Return ``open_file(path)`` for the path of a local copy.

        Raises:
            UserError: if the file cannot be read; with the URL in place of the path if ``open_file`` raises it.
        """
        for _ in range(ATTEMPTS):
            path = self.fetch(url)
            try:
                return open_file(path)
            except OPEN_ERRORS as error:
                if not os.path.exists(path):
                    continue  # another process removed it in the meantime
                with suppress(FileNotFoundError):  # another process removed it first
                    os.unlink(path)  # so that a replaced file is read the next time
                raise UserError(str(error).replace(path, url)) from error
        raise UserError(f"{url} was removed from {self.folder} before it was read: raise data.remote_cache_limit")

    def fetch(self, url: str, refresh: bool = False) -> str:
        """Return the path of a local copy, which is downloaded if there is none or if ``refresh`` is set.

        Raises:
            MissingFileError: if the file does not exist.
            UserError: if the file cannot be read, or is larger than half of the cache.
        """
        suffix = posixpath.splitext(strip_query(url))[1][:16]
        path = self.folder / (hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:32] + suffix)
        with suppress(FileNotFoundError):
            os.utime(path)  # it was used now
            if not refresh:
                return str(path)
        self.folder.mkdir(parents=True, exist_ok=True)
        _try_often(url, lambda: self._receive(url, path))
        if self._received > COUNT_AFTER * self.max_bytes:
            self._shrink()
        return str(path)

    def exists(self, url: str) -> bool:
        """Return whether a remote file exists.

        Raises:
            UserError: if the server refuses access or cannot be reached.
        """
        try:
            _try_often(url, lambda: _filesystem(_protocol(url), os.getpid()).info(url))
        except MissingFileError:
            return False
        return True

    def _receive(self, url: str, path: Path) -> None:
        from fsspec.callbacks import Callback

        def check_size(_: int | None, received: int, **__: Any) -> None:
            if received > MAX_FILE * self.max_bytes:
                size = f"{MAX_FILE * self.max_bytes / 2**30:.3g} GiB"
                raise UserError(f"{url} is larger than {size}, half of the cache: raise data.remote_cache_limit")

        with atomic_path(path, concurrent=True) as partial:
            _filesystem(_protocol(url), os.getpid()).get_file(
                url, str(partial), callback=Callback(hooks={"size": check_size})
            )
            self._received += partial.stat().st_size  # another process may remove the complete copy at once

    def _shrink(self) -> None:
        """Remove the copies that were not used for the longest time, if the cache is nearly full."""
        files = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if not COPY_NAME.match(entry.name):
                    continue  # the folder may be the user's, with other files
                with suppress(FileNotFoundError):  # removed by another process
                    files.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
        size = sum(size for _, size, _ in files)
        if size > HIGH * self.max_bytes:
            for modified, bytes_of_file, path in sorted(files):
                if size <= LOW * self.max_bytes:
                    break
                if not path.endswith(PARTIAL) or modified < time.time_ns() - MAX_DOWNLOAD * 10**9:
                    with suppress(FileNotFoundError):
                        os.unlink(path)
                    size -= bytes_of_file
        self._received = 0


def _protocol(url: str) -> str:
    return url.partition("://")[0].lower()


@lru_cache
def _filesystem(protocol: str, process: int) -> Any:
    """Return the file system of a protocol; that of the parent process cannot be used after a fork."""
    import fsspec

    del process
    if not protocol.startswith("http"):
        return fsspec.filesystem(protocol)
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT)
    return fsspec.filesystem(protocol, client_kwargs={"timeout": timeout, "trust_env": True})  # proxies


def _try_often(url: str, action: Callable[[], object]) -> None:
    """Call an action until it succeeds.

    Raises:
        MissingFileError: if the file does not exist.
        UserError: if all attempts fail, or if further attempts would fail as well.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(WAIT * 2 ** (attempt - 1))
        try:
            action()
        except UserError:
            raise
        except Exception as error:  # each file system of fsspec has its own classes of errors
            is_http, cause = _protocol(url).startswith("http"), error.__cause__
            if not (is_http and isinstance(error, FileNotFoundError) and cause):  # ``info`` hides the cause
                cause = error
            status = getattr(cause, "status", None)
            if isinstance(cause, FileNotFoundError) or status in GONE:
                raise MissingFileError(f"{url} does not exist") from error
            reason = _describe(cause, status)
            if not _is_transient(cause, status):
                break
        else:
            return
    raise UserError(f"{url} cannot be read ({reason}): check the address, your access and the connection")


def _is_transient(error: BaseException, status: int | None) -> bool:
    """Return whether another attempt may succeed; object stores have their own attempts for errors of other classes."""
    from aiohttp import ClientError

    if status is not None:
        return status >= 500 or status in TRY_AGAIN
    return isinstance(error, (OSError, ClientError)) and not isinstance(error, (PermissionError, ValueError))


def _describe(error: BaseException, status: int | None) -> str:
    if status is not None:
        return f"the server answers {status} {getattr(error, 'message', '')}".strip()
    if isinstance(error, TimeoutError):
        return f"no data for {TIMEOUT:g} s"
    return error_reason(error)
