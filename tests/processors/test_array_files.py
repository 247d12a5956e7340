"""Arrays in files: what numpy, torch and safetensors write is read, and nothing else is executed or believed."""

from __future__ import annotations

import io
import json
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fusion_pl.processors import array_files
from fusion_pl.processors.array_files import read_array
from fusion_pl.types import UserError

ARRAY = np.random.default_rng(0).normal(size=(5, 3))
TYPES = ["float16", "float32", "float64", ">f4", ">f8", "longdouble", "int8", "uint8", ">i4", "uint64", "int64", "bool"]


def write(path, array, key="values"):
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez_compressed(path, **{key: array})
    elif path.suffix == ".pt":
        torch.save(torch.from_numpy(array), path)
    else:
        save_file({key: torch.from_numpy(array)}, path)
    return str(path)


@pytest.mark.parametrize("suffix", ["npy", "npz", "pt", "safetensors"])
def test_each_format_is_recognised_by_its_content(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", ARRAY)
    np.testing.assert_array_equal(read_array(path), ARRAY)
    (tmp_path / "a.bin").write_bytes((tmp_path / f"a.{suffix}").read_bytes())
    np.testing.assert_array_equal(read_array(tmp_path / "a.bin"), ARRAY)
    np.testing.assert_array_equal(read_array((tmp_path / "a.bin").read_bytes()), ARRAY)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_types_and_orders_of_numpy(tmp_path, dtype, suffix):
    for array in (ARRAY.astype(dtype), np.asfortranarray(ARRAY.astype(dtype)), ARRAY[:0].astype(dtype)):
        np.testing.assert_array_equal(read_array(write(tmp_path / f"a.{suffix}", array)), array.astype("float64"))


@pytest.mark.parametrize("suffix", ["npz", "pt", "safetensors"])
def test_one_of_several_arrays_is_selected_by_its_key(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    arrays = {"face": ARRAY, "hand": ARRAY + 1}
    tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
    {"npz": lambda: np.savez(path, **arrays), "pt": lambda: torch.save(tensors, path)}.get(
        suffix, lambda: save_file(tensors, path)
    )()
    for source in (path, path.read_bytes()):
        np.testing.assert_array_equal(read_array(source, "hand"), ARRAY + 1)
        with pytest.raises(UserError, match="holds the arrays face, hand: select one with the argument key"):
            read_array(source)
        with pytest.raises(UserError, match=r"holds the arrays face, hand, but no 'hands'; did you mean hand\?"):
            read_array(source, "hands")


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_is_unpickled(tmp_path):
    mark = tmp_path / "executed"
    objects = np.array([Payload(mark)], dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "a.npz", a=objects)
    torch.save({"a": Payload(mark)}, tmp_path / "a.pt")
    for name, message in [
        ("a.npy", r"a\.npy holds object, expected an array of numbers"),
        ("a.npz", r"a\.npz, array 'a', holds object, expected an array of numbers"),
        ("a.pt", r"a\.pt cannot be read as an array \(it asks to run \w+\.open"),
    ]:
        with pytest.raises(UserError, match=message):
            read_array(tmp_path / name)
    assert not mark.exists()


def npy(shape, dtype="<f8", content=b""):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": dtype})
    return file.getvalue() + content


@pytest.mark.parametrize("shape", [(2**40,), (2**31, 2**31, 2**31), (3, 2**20), (-1, 4)])
def test_the_size_in_a_header_is_checked_before_memory_is_allocated(tmp_path, shape):
    (tmp_path / "a.npy").write_bytes(npy(shape, content=bytes(100)))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", npy(shape, content=bytes(100)))
    for name in ("a.npy", "a.npz"):
        for source in (tmp_path / name, (tmp_path / name).read_bytes()):
            with pytest.raises(UserError, match="it is truncated: its header promises shape"):
                read_array(source)


def test_large_arrays_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(array_files, "MAX_BYTES", 2**20)
    for suffix in ("npy", "npz", "pt", "safetensors"):
        path = write(tmp_path / f"a.{suffix}", np.zeros(2**18))
        with pytest.raises(UserError, match=r"has 2 MiB, expected at most 1: split it"):
            read_array(path)
    torch.save(torch.zeros(1).expand(2**30), tmp_path / "expanded.pt")  # 4 GiB that lie in four bytes
    with pytest.raises(UserError, match=r"has 4096 MiB"):
        read_array(tmp_path / "expanded.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"\(it is empty\): expected .npy, .npz, .pt or .safetensors; replace it or leave this input out"),
        (b"1.0,2.0\n", r"\(it is another kind of file\)"),
        (b"\x93NUMPY", r"cannot be read as an array"),
        (npy((3,), "|O"), "holds object"),
        (npy((3,), "<c16", bytes(48)), "holds complex128"),
        (npy((3,), "<U4", bytes(48)), "holds <U4"),
        (npy((3,), "<M8[s]", bytes(48)), "holds datetime64"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 200) + b"(" * 200, "cannot be read as an array"),
        (b"\x93NUMPY\x03\x00" + npy((3,))[8:], "it is an array of records"),
        (b"PK\x05\x06" + bytes(18), "holds no array"),
        (b"PK\x03\x04" + bytes(90), r"not a zip file"),
        (struct.pack("<Q", 2**60) + b"{", "cannot be read as an array"),
        (struct.pack("<Q", 2) + b"{}", "holds no array"),
    ],
)
def test_damaged_files_are_one_sentence(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    for source in (tmp_path / "a", content):
        with pytest.raises(UserError, match=message) as caught:
            read_array(source)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["npy", "npz", "pt", "safetensors"])
def test_no_damage_of_a_file_ends_in_another_error(tmp_path, suffix):
    """Every byte changed, and every truncation: the array, other numbers, or one sentence."""
    whole = bytearray((tmp_path / write(tmp_path / f"a.{suffix}", ARRAY)).read_bytes())
    header = range(min(len(whole), 400))
    damaged = [bytes(whole[:end]) for end in header]
    damaged += [
        bytes(whole[:at]) + bytes([whole[at] ^ flip]) + bytes(whole[at + 1 :]) for at in header for flip in (1, 128)
    ]
    refused = 0
    for content in damaged:
        try:
            read_array(content)
        except UserError:
            refused += 1
    assert refused > len(damaged) / 3


def test_other_torch_files_are_refused(tmp_path):
    for value, message in [
        ({"a": 1}, "holds a int, expected a dense tensor, or a dictionary of tensors"),
        ([torch.zeros(3)], "holds a list"),
        (torch.eye(3).to_sparse(), "cannot be read as an array|holds a Tensor"),
        (torch.zeros(3, dtype=torch.complex64), "holds torch.complex64"),
        (torch.zeros(3, device="meta"), "cannot be read as an array|holds a Tensor"),
    ]:
        torch.save(value, tmp_path / "a.pt")
        with pytest.raises(UserError, match=message):
            read_array(tmp_path / "a.pt")


def test_safetensors_metadata_is_no_array(tmp_path):
    header = json.dumps({"__metadata__": {"a": "b"}}).encode()
    with pytest.raises(UserError, match="holds no array"):
        read_array(struct.pack("<Q", len(header)) + header)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_array(tmp_path / "a.npy")
    with pytest.raises(UserError, match="is a folder"):
        read_array(tmp_path)
