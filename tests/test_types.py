"""Pickling of batches in the loader's workers."""

from __future__ import annotations

import pickle
from multiprocessing.reduction import ForkingPickler

import torch
from torch.utils.data import DataLoader

from fusion_pl.types import MAX_PIPED_BYTES, Batch


def batch_of(size: int) -> Batch:
    inputs = {"voice": {"samples": torch.rand(2, size), "mask": torch.ones(2, 3, dtype=torch.bool)}}
    present = {"voice": torch.tensor([True, True])}
    return Batch(inputs, present, torch.tensor([1, 0]), ["a", "b"], [(), ("broken",)])


def assert_same(found: Batch, wanted: Batch) -> None:
    assert isinstance(found, Batch)
    assert (found.ids, found.bad_files) == (wanted.ids, wanted.bad_files)
    assert found.inputs.keys() == wanted.inputs.keys()
    for key, value in wanted.inputs["voice"].items():
        assert torch.equal(found.inputs["voice"][key], value)
    assert torch.equal(found.present["voice"], wanted.present["voice"])
    assert found.target is not None
    assert wanted.target is not None
    assert torch.equal(found.target, wanted.target)


def test_a_pickled_batch_is_equal() -> None:
    for size in (4, MAX_PIPED_BYTES):
        wanted = batch_of(size)
        (found,) = DataLoader(dataset=[wanted], batch_size=None, num_workers=1, collate_fn=lambda batch: batch)
        assert_same(found, wanted)
        assert found.inputs["voice"]["samples"].is_shared() == (size == MAX_PIPED_BYTES)
        found.inputs["voice"]["samples"].zero_()  # is the receiver's own


def test_a_batch_without_targets_and_in_half_precision_can_be_pickled() -> None:
    batch = batch_of(4)._replace(target=None, inputs={"voice": {"samples": torch.rand(2, 4).bfloat16()}})
    loaded = pickle.loads(pickle.dumps(batch))
    assert loaded.target is None
    assert torch.equal(loaded.inputs["voice"]["samples"], batch.inputs["voice"]["samples"])


def test_small_tensors_are_not_in_shared_memory() -> None:
    sent = bytes(ForkingPickler.dumps(batch_of(4)))
    assert b"rebuild_storage" not in sent
    assert b"rebuild_storage" in bytes(ForkingPickler.dumps(batch_of(MAX_PIPED_BYTES)))
