"""The public sources of ``Digits``: the Free Spoken Digit Dataset and MNIST, downloaded or from local copies."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from lightning.pytorch.utilities import rank_zero_info

from fusion_pl.data.download import DownloadError, download
from fusion_pl.messages import error_reason
from fusion_pl.types import UserError

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")  # in alphabetical order
IMAGE_HEADER, LABEL_HEADER = 16, 8  # bytes before the pixels and the labels in files of the idx format
SIDE = 28  # pixels
MAX_RECORDING, MAX_IDX = 1 << 20, 1 << 26  # bytes; the longest recording has 37 kB, the largest file of MNIST 47 MB
GZIP_MAGIC = b"\x1f\x8b"
# NotImplementedError and RuntimeError: zip archives with other methods of compression, or with a password
UNREADABLE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)


class Pictures(NamedTuple):
    """Pictures of handwritten digits, and the digit of each."""

    pixels: UInt8[np.ndarray, "N 28 28"]
    labels: UInt8[np.ndarray, " N"]


@dataclass(frozen=True)
class Release:
    """Addresses and checksums of both sources.

    GitHub compresses an archive anew at will, so its bytes have no fixed checksum; those of the recordings have. The
    checksums of MNIST are those of the uncompressed files, so that they apply to unpacked copies as well.
    """

    archive: str = "free-spoken-digit-dataset-1.0.10.tar.gz"
    archive_url: str = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz"
    recordings: int = 50  # per speaker and digit
    # SHA-256 of all recordings in alphabetical order: each name, size and content, of commit d6938f9 (tag v1.0.10).
    recordings_sha256: str = "8fed8b0b058a7efa7544bbb3e8e98607ecdcbd47a2f0ea31139cab18a6b679c9"
    pictures_url: str = "https://ossci-datasets.s3.amazonaws.com/mnist"  # the mirror that torchvision uses
    pictures_sha256: Mapping[str, str] = field(
        default_factory=lambda: {
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        }
    )

    @property
    def recording_names(self) -> list[str]:
        """File names in alphabetical order: ``<digit>_<speaker>_<number>.wav``."""
        return sorted(
            f"{digit}_{speaker}_{i}.wav" for digit in range(10) for speaker in SPEAKERS for i in range(self.recordings)
        )


RELEASE = Release()


class SourceFile(NamedTuple):
    """A file of a source."""

    name: str  # file name of a download
    url: str
    copies: tuple[str, ...]  # patterns of paths inside the folder of the sources that are copies of it
    read: Callable[[Path], Any]  # refuses a copy whose content is wrong


def load_sources(folder: str | Path, release: Release | None = None) -> tuple[dict[str, bytes], dict[str, Pictures]]:
    """Return the content of each recording by file name, and the pictures of MNIST's splits "train" and "t10k".

    What the folder lacks is downloaded into it.

    Args:
        folder: folder with copies of the sources. The recordings are an archive or a folder ``recordings``; the four
            files of MNIST may be unpacked, and may be in ``MNIST/raw``, the path that torchvision gives them.
        release: addresses and checksums; by default those of ``RELEASE``.

    Raises:
        UserError: if a source is damaged, or is missing and cannot be downloaded.
    """
    folder, release = Path(folder), release or RELEASE
    files = _source_files(release)
    missing = [file for file in files if not _find_copy(folder, file)]
    if missing:
        rank_zero_info(f"downloading {len(missing)} file{'s' * (len(missing) > 1)} into {folder}")
    try:
        contents = {file.name: download(file.url, folder / file.name, file.read) for file in missing}
    except DownloadError as error:
        urls = [file.url for file in missing if not _find_copy(folder, file)]
        raise UserError(
            f"{error}: run the command again with a connection, or save {len(urls)} file{'s' * (len(urls) > 1)} in "
            f"{folder} (data.sources) that another machine can download: {', '.join(urls)}"
        ) from error
    except OSError as error:
        raise UserError(
            f"the sources cannot be saved in {folder} ({error.strerror or error}): name another folder as data.sources"
        ) from error
    contents |= {file.name: _read(folder, file) for file in files if file.name not in contents}
    recordings, *idx = [contents[file.name] for file in files]
    splits = dict(zip(release.pictures_sha256, idx, strict=True))
    pictures = {
        split: Pictures(
            splits[f"{split}-images-idx3-ubyte"][IMAGE_HEADER:].reshape(-1, SIDE, SIDE),
            splits[f"{split}-labels-idx1-ubyte"][LABEL_HEADER:],
        )
        for split in ("train", "t10k")
    }
    return recordings, pictures


def _source_files(release: Release) -> list[SourceFile]:
    """Return the archive of the recordings and the files of MNIST, in the order of ``release.pictures_sha256``."""
    patterns = (
        "recordings",
        "*spoken*digit*/recordings",
        # Browsers save the archive under the name of the repository, wget and curl under that of the tag.
        *(f"{name}.{end}" for name in ("*spoken*digit*", "v1.0.10") for end in ("tar.gz", "tgz", "zip")),
    )
    files = [SourceFile(release.archive, release.archive_url, patterns, partial(_read_recordings, release=release))]
    for name, sha256 in release.pictures_sha256.items():
        copies = tuple(f"{folder}{name}{end}" for folder in ("", "MNIST/raw/") for end in ("", ".gz"))
        files.append(
            SourceFile(f"{name}.gz", f"{release.pictures_url}/{name}.gz", copies, partial(_read_idx, sha256=sha256))
        )
    return files


def _find_copy(folder: Path, file: SourceFile) -> Path | None:
    return next((path for pattern in file.copies for path in sorted(folder.glob(pattern))), None)


def _read(folder: Path, file: SourceFile) -> Any:
    try:
        return file.read(_find_copy(folder, file) or folder / file.name)
    except UserError as error:
        raise UserError(
            f"{error}: replace it by {file.url}, or remove it, so that the next run downloads it"
        ) from error


def _read_recordings(path: Path, release: Release) -> dict[str, bytes]:
    """Return the content of each recording in a folder or in an archive, in alphabetical order."""
    names = release.recording_names
    with _refusing_unreadable(path):
        if path.is_dir():
            found = {name: (path / name).read_bytes() for name in names if (path / name).is_file()}
        else:
            wanted = set(names)
            found = {name: content for name, content in _read_archive(path) if name in wanted}
    if lost := [name for name in names if name not in found]:
        raise UserError(
            f"{path} lacks {len(lost):,} of the {len(names):,} recordings of version 1.0.10, such as {lost[0]}"
        )
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name} {len(found[name])}\n".encode() + found[name])
    _check_sha256(path, digest.hexdigest(), release.recordings_sha256)
    return {name: found[name] for name in names}


def _read_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each file of the folder ``recordings`` in a tar or zip archive."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if _is_recording(info.filename, info.file_size):
                    yield Path(info.filename).name, archive.read(info)
        return
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and _is_recording(member.name, member.size) and (file := archive.extractfile(member)):
                yield Path(member.name).name, file.read()


def _is_recording(name: str, size: int) -> bool:
    return Path(name).parent.name == "recordings" and size <= MAX_RECORDING


def _read_idx(path: Path, sha256: str) -> UInt8[np.ndarray, " N"]:
    """Return the bytes of a file of MNIST, compressed or not."""
    with _refusing_unreadable(path):
        with path.open("rb") as file:
            compressed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        with gzip.open(path) if compressed else path.open("rb") as file:
            content = file.read(MAX_IDX)
    _check_sha256(path, hashlib.sha256(content).hexdigest(), sha256)
    return np.frombuffer(content, np.uint8)


@contextmanager
def _refusing_unreadable(path: Path) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read ({error_reason(error)})") from error


def _check_sha256(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise UserError(f"{path} has another content than expected (SHA-256 {found}, expected {expected})")
