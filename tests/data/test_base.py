from __future__ import annotations

import logging
import pickle

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader

from fusion_pl.data import ManifestData
from fusion_pl.data.collate import Collate
from fusion_pl.data.rows import LoadError
from fusion_pl.types import UserError


class Shout(nn.Module):
    def forward(self, text):
        return text * 100


class Fail(nn.Module):
    def forward(self, values):
        raise ValueError(values)


class Watch(LightningModule):
    """Record the ids of all batches."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen = {"train": [], "val": [], "test": []}

    def training_step(self, batch):
        self.seen["train"] += batch.ids
        return self.weight.sum()

    def validation_step(self, batch):
        self.seen["val"] += batch.ids

    def test_step(self, batch):
        self.seen["test"] += batch.ids

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def build(toy, processors):
    def _build(**kwargs):
        data = ManifestData(toy.write(), **({"num_workers": 0, "batch_size": 3} | kwargs))
        data.processors = processors
        return data

    return _build


def quiet_trainer(**kwargs):
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", devices=1, enable_model_summary=False, log_every_n_steps=1, **options, **kwargs)


def ids(loader):
    return [name for batch in loader for name in batch.ids]


def test_training_is_shuffled_and_evaluation_keeps_its_order(build):
    data = build()
    order = ids(data.train_dataloader())
    assert sorted(order) == [f"s{at}" for at in range(8)] != order
    assert order == ids(build().train_dataloader())
    assert ids(data.val_dataloader()) == ["s8", "s9"]
    assert ids(data.test_dataloader()) == ["s10", "s11"]


def test_the_last_batch_may_be_smaller(build):
    assert [len(batch.ids) for batch in build().train_dataloader()] == [3, 3, 2]


def test_random_crops_and_augmentation_only_in_training(build):
    data = build(augment={"text": Shout()})
    train, val = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    assert train.inputs["audio"]["training"].all()
    assert train.inputs["text"]["length"].min() >= 100
    assert not val.inputs["audio"]["training"].any()
    assert val.inputs["text"]["length"].max() < 100


def test_statistics_are_those_of_rows_as_in_validation(build, monkeypatch):
    def loader(*options, processes=(1, 0)):
        monkeypatch.setattr("fusion_pl.data.base.world_size_and_rank", lambda: processes)
        return data.statistics_loader(*options)

    data = build(augment={"text": Shout(), "image+audio": Fail()}, input_dropout={"image": 0.99})
    found = list(loader(100))
    assert ids(found) == [f"s{at}" for at in range(8)]
    assert torch.cat([one.inputs["text"]["length"] for one in found]).tolist() == list(range(1, 9))
    assert all(one.present["image"].all() and not one.inputs["audio"]["training"].any() for one in found)
    some = ids(loader(5))
    assert len(set(some)) == 5
    assert some == sorted(some) == ids(loader(5))
    shares = [ids(loader(5, processes=(2, rank))) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == some


def test_workers_do_not_mix_rows(build, toy):
    (toy.folder / "5 ü.wav").write_bytes(b"broken")
    data = build(on_bad_file="missing")
    loader = DataLoader(
        data.samples("train"),
        batch_size=3,
        num_workers=2,
        collate_fn=Collate(data.processors, training=True),
    )
    batches = list(loader)
    assert ids(batches) == [f"s{at}" for at in range(8)]
    assert torch.cat([batch.inputs["text"]["length"] for batch in batches]).tolist() == list(range(1, 9))
    assert torch.cat([batch.inputs["image"]["grey"] for batch in batches]).tolist() == [10 * at for at in range(8)]
    levels = [at / 16 for at in range(8) if at != 5]
    assert torch.cat([batch.inputs["audio"]["level"] for batch in batches]).tolist() == levels
    (sentence,) = [sentence for batch in batches for sentences in batch.bad_files for sentence in sentences]
    assert "row 7, column 'audio'" in sentence


def test_the_rows_of_a_batch_are_opened_one_input_after_the_other(build, processors, monkeypatch):
    """Alternating between decoders would be slower; the samples are those of single rows."""
    opened = []
    for name, processor in processors.items():
        original = processor.open
        monkeypatch.setattr(processor, "open", lambda *args, n=name, o=original: (opened.append(n), o(*args))[1])
    rows = build().samples("val")
    samples = rows.__getitems__([1, 0])
    assert opened == [name for name in rows.processors for _ in samples]
    for sample, single in zip(samples, (rows[1], rows[0]), strict=True):
        assert (sample.id, sample.target, sample.inputs["text"]) == (single.id, single.target, single.inputs["text"])
        assert torch.equal(sample.inputs["audio"].samples, single.inputs["audio"].samples)
        assert sample.inputs["image"].tobytes() == single.inputs["image"].tobytes()


def test_the_first_bad_row_of_a_batch_is_reported(build, toy):
    """Also if a later row has a bad file of an earlier input."""
    (toy.folder / "8 ü.wav").write_bytes(b"RIFF")
    (toy.folder / "9 ü.png").write_bytes(b"cut")
    with pytest.raises(LoadError, match=r"row 10, column 'audio': .*8 ü\.wav") as caught:
        build().samples("val").__getitems__([0, 1])
    assert isinstance(caught.value.__cause__, UserError)


def test_a_bad_file_in_a_worker_is_one_sentence(build, toy):
    (toy.folder / "8 ü.wav").write_bytes(b"broken")
    with pytest.raises(LoadError) as caught:
        list(build(num_workers=1).val_dataloader())
    assert str(caught.value).startswith(f"{toy.folder}/manifest.csv, row 10, column 'audio': ")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # lightning 2.6 beside torch 2.14
def test_a_trainer_gets_every_sample_and_bad_files_are_listed_once_at_the_end(build, toy, caplog):
    for at in range(4):
        (toy.folder / f"{at} ü.png").write_bytes(b"broken")
    data = build(on_bad_file="missing")
    model = Watch()
    with caplog.at_level(logging.WARNING):
        quiet_trainer(max_epochs=2, num_sanity_val_steps=0).fit(model, datamodule=data)
    assert sorted(model.seen["train"]) == sorted(2 * [f"s{at}" for at in range(8)])
    assert model.seen["val"] == ["s8", "s9"] * 2
    assert "4 files could not be read and counted as missing" in caplog.text
    assert caplog.text.count("column 'image'") == 3
    assert "\n  … and 1 more" in caplog.text
    caplog.clear()
    quiet_trainer().test(model, datamodule=data)
    assert model.seen["test"] == ["s10", "s11"]
    assert "could not be read" not in caplog.text


@pytest.mark.parametrize(("cores", "devices", "workers"), [(1, 1, 1), (2, 1, 1), (8, 1, 7), (8, 2, 3), (64, 1, 16)])
def test_the_number_of_workers_depends_on_the_cores(build, monkeypatch, cores, devices, workers):
    class Trainer:
        num_devices = devices
        current_epoch = 0

    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(cores), raising=False)
    data = build(num_workers=None)
    data.trainer = Trainer()
    loader = data.train_dataloader()
    assert loader.num_workers == workers
    assert loader.persistent_workers


def test_processes_share_the_samples_without_repeating_any(build, monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda *_: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr("torch.distributed.get_rank", lambda *_, rank=rank: rank)
        shares.append(ids(build().predict_dataloader()))
    assert shares == [[f"s{at}" for at in range(0, 12, 2)], [f"s{at}" for at in range(1, 12, 2)]]
    monkeypatch.setattr("torch.distributed.get_world_size", lambda *_: 4)
    with pytest.raises(UserError, match=r"val has 2 samples for 4 processes: use trainer\.devices=2 or fewer"):
        build().val_dataloader()


def test_data_can_be_pickled(build):
    data = build(augment={"text": Shout()})
    data.setup("fit")
    assert ids(pickle.loads(pickle.dumps(data)).val_dataloader()) == ["s8", "s9"]
    loader = data.train_dataloader()
    batches = pickle.loads(pickle.dumps(loader.dataset))
    assert batches.__getitems__([0]).inputs["text"]["length"].tolist() == [100]


def test_missing_processors_are_refused(toy):
    data = ManifestData(toy.write())
    with pytest.raises(UserError, match=r"assign data\.processors = model\.processors first"):
        data.setup("fit")


def test_a_data_module_that_gets_another_models_processors_is_as_a_fresh_one(toy, processors, tmp_path):
    """Two models, one after the other in one Trainer each: no row, count or length is that of the first one."""
    for record in toy.records[2:5]:
        record["image"] = ""
    first, second = processors, {"image": processors["image"]}
    options = {"drop_empty": True, "sampling": "class_balanced", "bucket_by_length": True}
    data = ManifestData(toy.write(), num_workers=0, batch_size=3, **options)
    data.processors = first
    quiet_trainer(max_epochs=1).fit(Watch(), datamodule=data)
    assert sum(data.class_counts) == 8
    data.processors = second
    fresh = ManifestData(toy.write(), num_workers=0, batch_size=3, **options)
    fresh.processors = second
    seen = []
    for one in (data, fresh):
        seed_everything(1, verbose=False)
        watcher = Watch()
        quiet_trainer(max_epochs=1).fit(watcher, datamodule=one)
        assert sum(one.class_counts) == 5
        assert one.input_table.columns == ["id", "image"]
        assert np.array_equal(one.train_sampling.weights, fresh.train_sampling.weights)
        assert not one.train_sampling.lengths.any()
        seen.append(watcher.seen)
    assert seen[0] == seen[1]
    data = ManifestData(toy.write(), num_workers=0)
    data.processors = first
    data.setup("fit")
    data.processors = second
    with pytest.raises(UserError, match=r"has 3 problems:\n  row 4: all inputs of the sample 's2' are empty \(image\)"):
        data.setup("fit")


@pytest.mark.parametrize("option", ["augment", "input_dropout"])
def test_an_unknown_input_is_refused(build, option):
    with pytest.raises(
        UserError, match=rf"data\.{option} has the input 'txt', but the model's inputs are text, image, audio"
    ):
        build(**{option: {"txt": Shout() if option == "augment" else 0.1}})


def test_inputs_are_dropped_in_training_only(build):
    data = build(input_dropout={"image": 0.9})
    data.setup("fit")
    kept = {
        split: torch.cat([batch.present["image"] for batch in loader]).float().mean()
        for split, loader in {"train": data.train_dataloader(), "val": data.val_dataloader()}.items()
    }
    assert kept["val"] == 1
    assert kept["train"] < 0.7


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"num_workers": -1}, "num_workers must be 0 or more"),
        ({"input_dropout": {"text": 1.0}}, r"data\.input_dropout of text is 1\.0, expected a probability below 1"),
    ],
)
def test_numbers_out_of_range_are_refused(kwargs, message):
    with pytest.raises(UserError, match=message):
        ManifestData("m.csv", **kwargs)
