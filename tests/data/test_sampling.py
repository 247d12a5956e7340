"""Weighted sampling and batches of similar length: in functions, in a real Trainer, and in the command."""

from __future__ import annotations

import csv
import json
import random
import signal
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lightning.pytorch import Trainer, seed_everything
from torch.utils.data import Dataset

from fusion_pl.data import ManifestData
from fusion_pl.data.order import EpochSampler
from fusion_pl.data.sampling import POOL_BATCHES, Sampling, class_balanced_weights
from fusion_pl.processors import AudioProcessor, ImageProcessor, TextProcessor
from fusion_pl.types import UserError
from tests import test_exact_resume
from tests.data.conftest import Length, Level
from tests.data.test_order import Watch
from tests.test_exact_resume import assert_same, in_process, outcome, resume

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:.*pickle-based checkpoint")

EPOCH = 5  # batches of the runs of test_exact_resume


class Numbers(Dataset):
    """Data set of a number of samples."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return index


def draw(sampling, size, batch_size, processes=1, seed=0, epoch=0):
    """Return the batches of each process in one epoch."""
    result = []
    for rank in range(processes):
        sampler = EpochSampler(Numbers(size), seed, processes, rank, sampling=sampling, batch_size=batch_size)
        sampler.set_epoch(epoch)
        indices = list(sampler)
        assert all(index // size == epoch for index in indices)
        rows = [index % size for index in indices]
        result.append([rows[start : start + batch_size] for start in range(0, len(rows), batch_size)])
    return result


def random_case(rng):
    return rng.randint(1, 400), rng.randint(1, 9), rng.randint(1, 3), rng.randrange(1000)


# ------------------------------------------------------------------------------------------------------------- lengths
def test_batches_of_similar_length_have_the_samples_of_an_epoch():
    """Random sizes, batch sizes and processes: every sample once, and at most one repeated per process."""
    rng = random.Random(0)
    for _ in range(300):
        size, batch_size, processes, seed = random_case(rng)
        sampling = Sampling(lengths=np.random.default_rng(seed).lognormal(3, 1, size))
        batches = draw(sampling, size, batch_size, processes, seed)
        counts = Counter(row for process in batches for batch in process for row in batch)
        assert set(counts) == set(range(size))
        assert len({sum(map(len, process)) for process in batches}) == 1
        assert sum(counts.values()) - size == -size % processes
        for process in batches:
            assert {len(batch) for batch in process[:-1]} <= {batch_size}
        assert batches == draw(sampling, size, batch_size, processes, seed)


def test_the_order_of_the_batches_is_random_and_depends_on_seed_and_epoch():
    lengths = np.arange(1, 401, dtype=float)
    runs = {
        (seed, epoch): draw(Sampling(lengths=lengths), 400, 4, seed=seed, epoch=epoch)[0]
        for seed in range(3)
        for epoch in range(3)
    }
    assert len({json.dumps(batches) for batches in runs.values()}) == 9
    assert len({json.dumps(sorted(map(sorted, batches))) for batches in runs.values()}) == 9  # not only their order
    for batches in runs.values():
        means = [np.mean(batch) for batch in batches]
        assert abs(np.corrcoef(means, range(100))[0, 1]) < 0.4
        assert max(max(batch) - min(batch) for batch in batches) < 40


def padding(lengths, batches):
    padded = sum(max(lengths[batch]) * len(batch) for batch in batches)
    return 1 - sum(lengths[batch].sum() for batch in batches) / padded


@pytest.mark.parametrize("processes", [1, 2])
def test_padding_of_a_long_tailed_set_is_under_ten_percent(processes):
    size, batch_size = 5 * POOL_BATCHES * 8 + 3, 8
    for seed in range(3):
        lengths = np.ceil(np.random.default_rng(seed).lognormal(3, 1, size))
        plain = [*chain(*draw(None, size, batch_size, processes, seed))]
        assert padding(lengths, plain) > 0.5
        bucketed = [*chain(*draw(Sampling(lengths=lengths), size, batch_size, processes, seed))]
        assert padding(lengths, bucketed) < 0.1


def test_the_smaller_last_batch_has_any_lengths():
    lengths = np.arange(1, 103, dtype=float)
    last = [draw(Sampling(lengths=lengths), 102, 4, seed=seed)[0][-1] for seed in range(40)]
    assert {len(batch) for batch in last} == {2}
    assert len({min(batch) // 10 for batch in last}) > 5


# ------------------------------------------------------------------------------------------------------------- weights
def test_every_class_is_equally_likely():
    targets = np.repeat([0, 1, 2], [900, 90, 10])
    sampling = Sampling(class_balanced_weights(targets))
    drawn = [row for epoch in range(10) for batch in draw(sampling, 1000, 7, epoch=epoch)[0] for row in batch]
    assert len(drawn) == 10_000
    counts = np.bincount(targets[drawn])
    assert (abs(counts - 10_000 / 3) < 4 * (10_000 * 2 / 9) ** 0.5).all()


def test_samples_are_drawn_in_proportion_to_their_weights_on_any_number_of_processes():
    weights = np.array([0.0, 1.0, 2.0, 5.0] * 25 + [0.0])
    for processes in (1, 2, 3):
        counts = np.zeros(101)
        for epoch in range(200):
            batches = draw(Sampling(weights), 101, 8, processes, epoch=epoch)
            assert {sum(map(len, process)) for process in batches} == {-(-101 // processes)}
            np.add.at(counts, [*chain(*chain(*batches))], 1)
        expected = weights / weights.sum() * counts.sum()
        assert (counts[weights == 0] == 0).all()
        assert (abs(counts - expected) <= 5 * expected**0.5).all()


def test_weights_and_lengths_together():
    lengths = np.random.default_rng(0).lognormal(3, 1, 2000)
    weights = np.arange(2000) % 2 * 1.0
    (batches,) = draw(Sampling(weights, lengths), 2000, 8)
    drawn = np.concatenate([np.array(batch) for batch in batches])
    assert len(drawn) == 2000
    assert (drawn % 2 == 1).all()
    assert padding(lengths, batches) < 0.1


# --------------------------------------------------------------------------------------------------------- data module
def test_lengths_of_cells(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(4000), 8000)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    content = (tmp_path / "a.wav").read_bytes()
    audio = Level()
    cells = [str(tmp_path / "a.wav"), content, str(tmp_path / "broken.wav"), b"x", str(tmp_path / "missing.wav")]
    assert [audio.estimate_length(cell) for cell in cells] == [0.5, 0.5, 0, 0, 0]
    assert TextProcessor.estimate_length(Length(), "übung") == 5
    assert ImageProcessor.estimate_length is AudioProcessor.__mro__[1].estimate_length  # all images have one length


def build(toy, processors, **options):
    data = ManifestData(toy.write(), num_workers=0, batch_size=2, **options)
    data.processors = processors
    data.setup("fit")
    return data


def test_a_sample_is_as_long_as_its_inputs_together(toy, processors):
    for row, record in enumerate(toy.records):
        soundfile.write(toy.folder / record["audio"], np.zeros(100 * (row + 1)), 8000)
    toy.records[3]["audio"] = toy.records[4]["text"] = ""
    lengths = build(toy, processors, bucket_by_length=True).train_sampling.lengths
    characters = np.array([1, 2, 3, 4, 0, 6, 7, 8])
    seconds = np.array([1, 2, 3, 0, 5, 6, 7, 8]) / 80
    expected = characters / characters[characters > 0].mean() + seconds / seconds[seconds > 0].mean()
    np.testing.assert_allclose(lengths, expected)
    assert build(toy, processors).train_sampling is None


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("", "row 4, column 'w': the weight is empty, expected a number of 0 or more"),
        ("-1", "row 4, column 'w': the weight is '-1', expected a number of 0 or more"),
        ("much", "row 4, column 'w': the weight is 'much'"),
        ("inf", "row 4, column 'w': the weight is 'inf'"),
        (None, "column 'w': no train row has a weight above 0"),
    ],
)
def test_invalid_weights_are_refused(toy, processors, weight, message):
    for row, record in enumerate(toy.records):
        record["w"] = 0 if weight is None else weight if row == 2 or record["split"] == "test" else 1.5
    with pytest.raises(UserError) as error:
        build(toy, processors, sample_weight="w")
    assert message in str(error.value)
    assert "1 problem:" in str(error.value)  # the weights of test rows are not used
    with pytest.raises(UserError, match="no column 'ww' for the sample weights"):
        build(toy, processors, sample_weight="ww")
    with pytest.raises(UserError, match=r"data.sampling and data.sample_weight exclude each other"):
        build(toy, processors, sampling="class_balanced", sample_weight="w")


def test_the_trainer_draws_by_weight_on_two_processes(toy, processors, tmp_path):
    for row, record in enumerate(toy.records):
        record["split"] = "val" if row < 3 else "train"
        record["w"] = row % 2 * row
    seed_everything(1, verbose=False)
    data = build(toy, {"text": processors["text"], "image": processors["image"]}, sample_weight="w")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=3, enable_checkpointing=False, **quiet
    )
    trainer.fit(Watch(tmp_path / "notes"), datamodule=data)
    seen = [
        [json.loads(line) for line in Path(f"{tmp_path}/notes-{rank}.jsonl").read_text().splitlines()]
        for rank in (0, 1)
    ]
    for epoch in range(3):
        ids = [[name for note in notes if note["epoch"] == epoch for name in note["ids"]] for notes in seen]
        assert [len(names) for names in ids] == [5, 5]  # of 9 samples
        assert {int(name[1:]) % 2 for names in ids for name in names} == {1}
    assert len({json.dumps([note["ids"] for note in notes]) for notes in seen}) == 2


# ------------------------------------------------------------------------------------------------------------- command
SAMPLINGS = [
    ["--data.sample_weight", "weight"],
    ["--data.bucket_by_length", "true"],
    ["--data.sampling", "class_balanced", "--data.bucket_by_length", "true"],
]


def test_rare_classes_are_not_corrected_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", sys.argv)
    folder = write(tmp_path / "run")
    balanced = ["--model.loss.class_weights", "balanced", "--data.sampling"]
    assert test_exact_resume.in_process(folder, *balanced, "class_balanced") == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "model.loss.class_weights balanced and data.sampling class_balanced exclude each other" in message
    assert test_exact_resume.in_process(folder, *balanced, "null", "--trainer.max_epochs", "1") == 0


def write(folder, stop=None):
    """Write the project of test_exact_resume, with long-tailed texts and a column of weights."""
    test_exact_resume.write(folder, stop)
    with (folder / "rows.csv").open(newline="") as file:
        records = list(csv.DictReader(file))
    for row, record in enumerate(records):
        record |= {"text": " ".join([record["text"]] * (row * row % 11 + 1)), "weight": row % 4}
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows(records)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("plain"))
    assert in_process(folder) == 0
    return outcome(folder)["weights"]


@pytest.mark.parametrize("options", SAMPLINGS, ids=" ".join)
def test_a_run_that_is_stopped_within_an_epoch_resumes_bit_for_bit(options, plain, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["fusion-pl"])
    whole = write(tmp_path / "whole")
    assert in_process(whole, *options) == 0
    expected = outcome(whole)
    assert expected["steps"] == 3 * EPOCH
    assert any((expected["weights"][name] != value).any() for name, value in plain.items())
    stopped = write(tmp_path / "stopped", {"batches": EPOCH + 2})
    assert_same(resume(stopped, in_process, 128 + signal.SIGTERM, *options), expected)


def test_another_batch_size_cannot_continue_an_epoch_of_batches_of_similar_length(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fusion-pl"])
    options = ["--data.bucket_by_length", "true"]
    folder = write(tmp_path / "stopped", {"batches": 2})
    assert in_process(folder, "--config", "stop.yaml", *options) == 128 + signal.SIGTERM
    assert in_process(folder, "--ckpt_path", "last", *options, "--data.batch_size", "2") == 2
    assert "resume with the same data.batch_size and number of processes" in " ".join(capsys.readouterr().err.split())
