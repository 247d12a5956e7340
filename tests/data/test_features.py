"""Stored features are the encoder's output, whatever the order, the batch and the shard."""

from __future__ import annotations

import os
import pickle
import random
import signal
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion_pl.data import ManifestData
from fusion_pl.data.collate import Collate
from fusion_pl.data.feature_rows import FeatureRows
from fusion_pl.data.feature_shards import KEYS, FeatureShards, folder_bytes, unique_keys, write_shard
from fusion_pl.data.features import FeatureStore, StoredCells, bytes_per_value, write_features
from fusion_pl.data.rows import ManifestRows
from fusion_pl.types import Encoded, UserError

DIM = 5


def keys_of(numbers):
    keys = np.zeros((len(numbers), 16), np.uint8)
    keys[:, :8] = np.asarray(numbers, np.int64).view(np.uint8).reshape(-1, 8)
    return keys


def encoded(numbers, weights=True):
    """Outputs that are a function of the number, padded to the longest: masks with holes, and one without any token."""
    rows = []
    for number in numbers:
        torch.manual_seed(int(number))
        mask = torch.rand(int(number) % 7) < 0.7
        rows.append((torch.randn(len(mask), DIM) * mask.unsqueeze(1), mask, torch.randn(DIM), torch.rand(2)))
    pad = torch.nn.utils.rnn.pad_sequence
    tokens, masks, embeddings, layers = zip(*rows, strict=True)
    return Encoded(
        pad(tokens, batch_first=True), pad(masks, batch_first=True), torch.stack(embeddings), torch.stack(layers)
    )._replace(**({} if weights else {"layer_weights": None}))


def write(folder, numbers, with_tokens=True, dtype=torch.float32, weights=True):
    batches = [encoded(numbers[i : i + 3], weights) for i in range(0, len(numbers), 3)]
    return write_features(folder, keys_of(numbers), batches, dtype, with_tokens)


@pytest.mark.parametrize("with_tokens", [True, False])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("joined_bytes", [0, 2**28])
def test_rows_are_gathered_in_any_order_from_any_shard(
    tmp_path, monkeypatch, with_tokens, weights, pickled, joined_bytes
):
    monkeypatch.setattr("fusion_pl.data.features.MAX_JOINED_BYTES", joined_bytes)
    for numbers in ([3, 1, 4, 15, 9], [2], [6, 5, 35, 8, 7, 0, 14]):
        write(tmp_path, numbers, with_tokens, weights=weights)
    shards = FeatureShards(tmp_path)
    store = FeatureStore(shards)
    if pickled:
        store(list(range(len(shards))))
        content = pickle.dumps(store)
        assert len(content) < 1000  # workers open the shards themselves
        store = pickle.loads(content)
    for wanted in ([2], [9, 3], [35, 1, 2, 35, 8, 0], [0], [14, 7], list(range(10))):
        rows = shards.find(keys_of(wanted))
        found, expected = store([store.open(row) for row in rows.tolist()]), encoded(wanted, weights)
        assert torch.equal(found.embedding, expected.embedding)
        assert (found.layer_weights is None) == (not weights)
        assert not weights or torch.equal(found.layer_weights, expected.layer_weights)
        for index in range(len(wanted)):
            real = expected.mask[index]
            if not with_tokens:
                assert found.mask[index].tolist() == [bool(real.any())]
                assert torch.equal(found.tokens[index], expected.embedding[index : index + 1])
                continue
            assert torch.equal(found.mask[index].nonzero(), real.nonzero())  # at the same positions
            assert torch.equal(found.tokens[index, found.mask[index]], expected.tokens[index, real])
            assert not found.tokens[index, ~found.mask[index]].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_round_the_numbers_and_need_half_the_space(tmp_path, dtype):
    numbers = list(range(40))
    assert write(tmp_path / "half", numbers, dtype=dtype) < 0.7 * write(tmp_path / "full", numbers)
    shards = FeatureShards(tmp_path / "half")
    found = FeatureStore(shards)(shards.find(keys_of(numbers)).tolist())
    assert found.tokens.dtype == found.embedding.dtype == torch.float32
    assert torch.equal(found.embedding, encoded(numbers).embedding.to(dtype).float())


def test_the_estimated_size_is_that_of_the_file(tmp_path):
    numbers = list(range(200))
    for with_tokens in (True, False):
        size = write(tmp_path / str(with_tokens), numbers, with_tokens)
        assert bytes_per_value(encoded(numbers), torch.float32, with_tokens) * 200 == pytest.approx(size, rel=0.05)
        assert folder_bytes(tmp_path / str(with_tokens)) == size


def test_a_missing_value_has_no_row(tmp_path):
    cells = StoredCells(np.array([2, -1, 0, 0]), {3: "a.png is damaged"})
    assert list(cells) == [2, None, 0, "a.png is damaged"]
    with pytest.raises(UserError, match=r"a\.png is damaged"):
        FeatureStore(FeatureShards(tmp_path)).open(cells[3])
    assert FeatureShards(tmp_path / "empty").find(keys_of([1, 2])).tolist() == [-1, -1]
    write(tmp_path, [1])
    assert FeatureShards(tmp_path).find(keys_of([2, 1])).tolist() == [-1, 0]


def test_a_gathered_batch_equals_the_collated_samples(manifest, tmp_path, processors):
    """With missing inputs, and an input that is missing in a whole batch."""
    data = ManifestData(str(manifest))
    data.processors = processors
    data.setup("fit")
    rows = data.samples("train")
    write(tmp_path, list(range(len(rows))))
    shards = FeatureShards(tmp_path)
    columns = []
    for seed, column in enumerate(rows.columns):
        stored = shards.find(keys_of(np.random.default_rng(seed).permutation(len(rows))))
        is_missing = [cell is None for cell in column.cells]
        columns.append(
            replace(column, processor=FeatureStore(shards), cells=StoredCells(np.where(is_missing, -1, stored)))
        )
    rows = replace(rows, columns=columns)
    gathered, collate = FeatureRows.wrap(rows), Collate(rows.processors)
    assert isinstance(gathered, FeatureRows)
    assert len(gathered) == len(rows)
    for indices in ([0], list(range(len(rows))), [5, 11, 5], [3]):
        found, expected = gathered.__getitems__(indices), collate([rows[index] for index in indices])
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0) if not isinstance(one, list) else None
        assert (found.ids, found.bad_files) == (expected.ids, expected.bad_files)
    assert gathered[3] == rows[3]
    bad = [replace(one, cells=StoredCells(one.cells.rows, {2: "a message"})) for one in columns]
    empty = [
        replace(one, cells=StoredCells(np.where(np.arange(len(rows)) == 7, -1, one.cells.rows))) for one in columns
    ]
    for columns in (bad, empty, data.samples("train").columns):
        assert isinstance(FeatureRows.wrap(replace(rows, columns=columns)), ManifestRows)


def test_distinct_keys_are_in_the_order_of_their_first_occurrence():
    numbers = np.random.default_rng(0).integers(0, 30, 200)
    first, inverse = unique_keys(keys_of(numbers))
    assert first.tolist() == [numbers.tolist().index(number) for number in dict.fromkeys(numbers.tolist())]
    assert (numbers[first][inverse] == numbers).all()


def test_a_flipped_byte_never_changes_a_value(tmp_path):
    """In the header, the keys or the numbers of a shard; and shards under another name or in another folder."""
    write(tmp_path, [1, 2, 3])
    (path,) = tmp_path.iterdir()
    write(tmp_path, [4, 5])
    content, generator = path.read_bytes(), np.random.default_rng(0)
    for place in generator.integers(0, len(content), 100).tolist():
        damaged = bytearray(content)
        damaged[place] ^= int(generator.integers(1, 256))
        path.write_bytes(damaged)
        shards = FeatureShards(tmp_path)
        assert (shards.find(keys_of([1, 2, 3, 4, 5])) < 0).tolist() == [True, True, True, False, False]
        assert torch.equal(FeatureStore(shards)([0, 1]).embedding, encoded([4, 5]).embedding)
    for damaged in (content[:-1], content[: len(content) // 2], b"", content + b"\0"):
        path.write_bytes(damaged)
        assert len(FeatureShards(tmp_path)) == 2
    path.write_bytes(content)
    assert len(FeatureShards(tmp_path)) == 5
    (tmp_path / "other").mkdir()
    path.rename(tmp_path / "other" / path.name)
    assert len(FeatureShards(tmp_path / "other")) == 0


ROWS = 20_000  # of a shard that is written while the process is killed


def write_until_killed(folder, start):
    """Write shards in another process, in which every number of a value is the value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside torch's threads, which do nothing here
        child = os.fork()
    if child:
        return child
    for number in range(start, start + 100 * ROWS, ROWS):
        numbers = torch.arange(number, number + ROWS)
        vectors = numbers.unsqueeze(1).float().expand(ROWS, DIM)
        output = Encoded(vectors.unsqueeze(1), torch.ones(ROWS, 1, dtype=torch.bool), vectors)
        write_features(folder, keys_of(numbers), [output], torch.float32, True)
    os._exit(0)


def stopped_while_it_writes(writer, folder, left):
    """Stop a process if it has an unfinished shard besides those that are left of others; return whether it has."""
    if not set(folder.glob("*.partial")) - left:
        return False
    os.kill(writer, signal.SIGSTOP)
    os.waitpid(writer, os.WUNTRACED)
    if set(folder.glob("*.partial")) - left:
        return True
    os.kill(writer, signal.SIGCONT)  # it has finished that shard
    return False


def test_killed_and_simultaneous_writers_leave_only_complete_shards(tmp_path):
    """Two processes that write to the same folder, killed at six moments; the next start removes what is left."""
    torch.set_num_threads(1)  # a forked process has none of OpenMP's threads, and would wait for them without end
    generator, counts = random.Random(0), []
    for turn in range(3):
        writers = [write_until_killed(tmp_path, (2 * turn + number) * 100 * ROWS) for number in range(2)]
        for number, writer in enumerate(writers):
            time.sleep(generator.uniform(0.02, 0.1))
            while turn == number == 0 and not list(tmp_path.glob("*.safetensors")):  # however slow the machine is
                time.sleep(0.001)
            left = set(tmp_path.glob("*.partial"))
            while number and not stopped_while_it_writes(writer, tmp_path, left):
                time.sleep(0.0005)
            os.kill(writer, signal.SIGKILL)
            os.waitpid(writer, 0)
        shards = FeatureShards(tmp_path)
        counts.append(len(shards))
        stored = torch.cat([tensors[KEYS] for tensors in shards.tensors]).numpy()[:, :8].copy().view(np.int64).ravel()
        some = np.random.default_rng(turn).permutation(stored)[:200]
        found = FeatureStore(shards).gather(shards.find(keys_of(some)))
        for vectors in (found.embedding, found.tokens[:, 0]):
            assert torch.equal(vectors, torch.from_numpy(some).unsqueeze(1).float().expand(-1, DIM))
    assert counts == sorted(counts)
    assert counts[-1] % ROWS == 0
    assert counts[-1] > 0
    assert list(tmp_path.glob("*.partial")), "no writer was killed while it wrote"
    FeatureShards(tmp_path)
    assert list(tmp_path.glob("*.partial"))  # the process may still write
    for partial in tmp_path.glob("*.partial"):
        os.utime(partial, (0, 0))
    FeatureShards(tmp_path)
    assert not list(tmp_path.glob("*.partial"))


def test_a_shard_that_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_shard(Path(tmp_path / "file" / "folder"), {KEYS: torch.zeros(1, 16, dtype=torch.uint8)})
