"""Find rows with the same content, and images that look nearly the same, in time that is linear up to a logarithm."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int, UInt8, UInt64
from numpy.typing import NDArray

MARGIN = 4  # smallest difference of two neighbouring grey values that sets a bit, so that noise does not
MAX_BITS = 3  # largest number of different bits; with one more band than bits, one band of both hashes is equal
NUM_BANDS = MAX_BITS + 1
MAX_DIFFERENCE = 2.0  # largest mean difference of the grey values, of 255
MAX_NEIGHBOURS = 50  # with which an image is compared per band; bounds the time for many images with equal bands


def combine_hashes(hashes: list[UInt64[NDArray[np.uint64], " N"]]) -> UInt64[NDArray[np.uint64], " N"]:
    """Return a hash of several hashes per row."""
    combined = np.zeros_like(hashes[0])
    for values in hashes:
        combined = (combined + values) * np.uint64(0x9E3779B97F4A7C15)  # modulo 2**64
        combined ^= combined >> np.uint64(29)
    return combined


def find_duplicates(
    hashes: UInt64[NDArray[np.uint64], " N"], rank: Int[NDArray[np.int64], " N"], used: Bool[NDArray[np.bool_], " N"]
) -> Int[NDArray[np.int64], "K 2"]:
    """Return the rows that repeat another row.

    Args:
        hashes: hash of the content of each row.
        rank: of rows with the same content, the first one with the highest rank is the original.
        used: whether each row takes part.

    Returns:
        Pairs (row, its original), in the order of the rows.
    """
    rows = np.flatnonzero(used)
    rows = rows[np.lexsort((rows, -rank[rows], hashes[rows]))]
    is_first = np.ones(len(rows), bool)
    is_first[1:] = hashes[rows[1:]] != hashes[rows[:-1]]
    originals = rows[is_first][np.cumsum(is_first) - 1]
    pairs = np.stack([rows, originals], axis=1)[~is_first]
    return pairs[np.argsort(pairs[:, 0])]


def find_near_duplicates(grey: UInt8[NDArray[np.uint8], "N 8 9"]) -> Int[NDArray[np.int64], "K 2"]:
    """Return the images that look like another one, by the difference hash (dHash) and the mean difference of pixels.

    Each bit of the hash tells whether a pixel is brighter than its left neighbour. Only images of which one of four
    bands of the hash is equal are compared, each with at most ``MAX_NEIGHBOURS`` others per band.

    Source: Neal Krawetz, "Kind of Like That" (2013). Deviation: a bit is set only from a difference of ``MARGIN`` on.

    Args:
        grey: images of 9 × 8 grey pixels.

    Returns:
        Pairs (image, the first image that it looks like), in the order of the images.
    """
    bits = np.diff(grey.astype(np.int16), axis=2) >= MARGIN
    hashes = np.packbits(bits.reshape(len(grey), 64), axis=1).view(np.uint64).ravel()
    pairs = [pair for band in range(NUM_BANDS) for pair in _compare_band(grey, hashes, band)]
    first = np.full(len(grey), len(grey))
    for low, high in pairs:
        np.minimum.at(first, high, low)
    images = np.flatnonzero(first < len(grey))
    return np.stack([images, first[images]], axis=1)


def _compare_band(
    grey: UInt8[NDArray[np.uint8], "N 8 9"], hashes: UInt64[NDArray[np.uint64], " N"], band: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield arrays of pairs (lower index, higher index) of images that look alike."""
    bands = hashes.view(np.uint16).reshape(-1, NUM_BANDS)[:, band]
    order = np.lexsort((hashes, bands))
    left = np.arange(len(order))
    for shift in range(1, MAX_NEIGHBOURS + 1):
        left = left[left + shift < len(order)]
        left = left[bands[order[left]] == bands[order[left + shift]]]
        if not left.size:
            return
        one, two = order[left], order[left + shift]
        is_near = np.bitwise_count(hashes[one] ^ hashes[two]) <= MAX_BITS
        one, two = one[is_near], two[is_near]
        difference = np.abs(grey[one].astype(np.int16) - grey[two]).mean(axis=(1, 2))
        one, two = one[difference <= MAX_DIFFERENCE], two[difference <= MAX_DIFFERENCE]
        yield np.minimum(one, two), np.maximum(one, two)
