"""A key depends only on the content of a value."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from fusion_pl.training import value_keys as module
from fusion_pl.training.value_keys import file_signature, value_keys


def key(cell, folder, reads_files=True):
    return value_keys([cell], reads_files, folder).keys.tobytes()


@pytest.fixture
def hashed(monkeypatch):
    """Record the files that are read."""
    paths, original = [], module._hash_file
    monkeypatch.setattr(module, "_hash_file", lambda path: paths.append(os.path.basename(path)) or original(path))
    return paths


def write(path, content, age=3600):
    path.write_bytes(content)
    time = path.stat().st_mtime - age
    os.utime(path, (time, time))
    return str(path)


def test_values_of_any_type_have_distinct_keys(tmp_path):
    cells = ["a", "b", "", b"a", b"", 1, 1.0, True, ("a", "b"), ("ab",), ["a"], {"a": 1}, "\ud800"]
    keys = value_keys([*cells, *cells], False, tmp_path).keys
    assert len(np.unique(keys, axis=0)) == len(cells)
    assert (keys[: len(cells)] == keys[len(cells) :]).all()
    assert not list(tmp_path.iterdir())  # nothing is remembered of texts


def copied(value):
    """Return an equal value that shares no object with the original one."""
    return type(value)(map(copied, value)) if isinstance(value, tuple | list) else "".join(value)


def test_equal_values_have_the_same_key(tmp_path):
    """Whether their parts are the same object, and in whatever order an array lies in memory."""
    word = "".join(["wo", "rd"])
    array = np.arange(6.0).reshape(2, 3)
    read_only = array.copy()
    read_only.setflags(write=False)
    for one, *others in (
        [(word, word), copied((word, word))],
        [[word, (word,)], copied([word, (word,)])],
        [array, np.asfortranarray(array), array.repeat(2, axis=1)[:, ::2], read_only],
        [torch.from_numpy(array), torch.from_numpy(array.T.copy()).T, torch.from_numpy(array).requires_grad_()],
        [np.array([word, None], object), np.array([copied(word), None], object)],
    ):
        for other in others:
            assert key(one, tmp_path, False) == key(other, tmp_path, False)
    others = [array.T.reshape(2, 3), array.reshape(3, 2), array.astype(np.float32), array.ravel(), array.tolist()]
    assert len({key(value, tmp_path, False) for value in [array, torch.from_numpy(array), *others]}) == 7


def test_a_file_is_known_by_its_content(tmp_path):
    one, same = write(tmp_path / "1.png", b"one"), write(tmp_path / "2.PNG", b"one")
    other, sound = write(tmp_path / "3.png", b"other"), write(tmp_path / "1.wav", b"one")
    cache = tmp_path / "cache"
    assert len({key(one, cache), key(other, cache), key(sound, cache), key("one", cache), key(b"one", cache)}) == 5
    assert key((one, "0"), cache) != key((one, "1"), cache)
    assert key(one, cache) == key(one, tmp_path / "another")
    assert key(str(tmp_path / "none"), cache) != key(str(tmp_path / "none"), cache)  # opened, and refused, every time
    assert key(str(tmp_path), cache) != key(str(tmp_path), cache)
    assert key(same, cache) != key(other, cache)


def test_an_unchanged_file_is_read_once(tmp_path, hashed):
    paths = [write(tmp_path / f"{number}.png", bytes([number])) for number in range(5)]
    cache = tmp_path / "cache"
    first = value_keys(paths, True, cache)
    again = value_keys(paths[::-1], True, cache)
    assert hashed == [f"{number}.png" for number in range(5)]
    assert (again.keys == first.keys[::-1]).all()
    assert [tuple(signature) for signature in first.signatures.tolist()] == [file_signature(path) for path in paths]
    write(tmp_path / "3.png", b"changed")
    assert (value_keys(paths, True, cache).keys != first.keys).any(1).tolist() == [False, False, False, True, False]
    assert hashed[5:] == ["3.png"]


def test_a_file_that_may_still_be_written_is_read_again(tmp_path, hashed):
    """Within the resolution of the clock, a file may change without another modification time."""
    path, cache = write(tmp_path / "new.png", b"one", age=0), tmp_path / "cache"
    first, status = key(path, cache), os.stat(path)
    (tmp_path / "new.png").write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert key(path, cache) != first
    assert hashed == ["new.png"] * 2


def test_a_full_disk_only_costs_time(tmp_path, hashed):
    path = write(tmp_path / "1.png", b"one")
    (tmp_path / "cache").write_text("a file, so that nothing can be written")
    assert key(path, tmp_path / "cache") == key(path, tmp_path / "cache")
    assert hashed == ["1.png"] * 2
