"""Streamed data sets of the ``datasets`` library: the rows, the order, and the errors."""

from __future__ import annotations

import csv
import gc
import itertools
import shutil
import threading
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from fusion_pl.cli.run import run
from fusion_pl.data import HubData, HubStream
from fusion_pl.data.row_stream import StreamSampler, read_ahead
from fusion_pl.data.rows import LoadError
from fusion_pl.data_check.command import check_command
from fusion_pl.encoders import FeatureEncoder, TinyText
from fusion_pl.tasks import MultiLabel
from fusion_pl.types import UserError
from tests.file_server import FileServer
from tests.texts import results

from .test_hub_data import SPLIT_NAMES, _no_bars, save, to_dataset  # noqa: F401 - a fixture

ROWS = 50


def write_parquet(folder, files):
    """Write a folder of Parquet files, whose names begin with the split; lists of texts and class indices."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["ham", "spam"])})
    folder.mkdir()
    for name, rows in files.items():
        columns = {"text": [f"{name} {row}" for row in rows], "label": [row % 2 for row in rows]}
        Dataset.from_dict(columns, features).to_parquet(folder / f"{name}.parquet")
    return str(folder)


@pytest.fixture
def texts(tmp_path):
    files = {"train-0": range(7), "train-1": range(7, ROWS), "validation-0": range(8)}
    return write_parquet(tmp_path / "texts", files)


class FrozenText(TinyText):
    def __init__(self) -> None:
        super().__init__(dim=8)
        self.requires_grad_(False)


def build(processors, dataset, stage="fit", **options):
    data = HubStream(dataset, num_workers=options.pop("num_workers", 0), **options)
    data.processors = processors
    data.setup(stage)
    return data


def ids(loader, epoch=0):
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(epoch)
    return [name for batch in loader for name in batch.ids]


# ---------------------------------------------------------------------------------------------------------- the samples
@pytest.mark.parametrize("kind", ["saved", "saved with paths", "parquet"])
def test_samples_are_those_that_are_stored(toy, processors, kind):
    path = save(toy.folder, toy.records, as_bytes=kind != "saved with paths")
    if kind == "parquet":
        parts = datasets.load_from_disk(path)
        path = str(toy.folder / "parquet")
        for name, part in parts.items():
            part.to_parquet(Path(path, f"{name}-0.parquet"))
    stored = HubData(path, num_workers=0, root=str(toy.folder))
    stored.processors = processors
    data = build(processors, path, root=str(toy.folder))
    assert data.classes == stored.classes == ["cat", "dog"]
    for split in SPLIT_NAMES:
        samples = list(data.samples(split))
        assert len(samples) == len(stored.samples(split)) > 0
        for sample, expected in zip(samples, stored.samples(split), strict=True):
            assert (sample.id, sample.target) == (expected.id, expected.target)
            assert sample.inputs["text"] == expected.inputs["text"]
            assert np.array_equal(np.asarray(sample.inputs["image"]), np.asarray(expected.inputs["image"]))
            assert torch.equal(sample.inputs["audio"].samples, expected.inputs["audio"].samples)


def test_batches_are_the_same_for_any_number_of_workers(texts, processors):
    found = []
    for workers in (0, 2):
        data = build({"text": processors["text"]}, texts, num_workers=workers, batch_size=4, shuffle_buffer=8)
        found.append(
            [
                (batch.ids, batch.target.tolist(), batch.inputs["text"]["length"].tolist())
                for batch in itertools.chain(data.train_dataloader(), data.val_dataloader())
            ]
        )
    assert found[0] == found[1]


def test_an_epoch_has_every_row_once_in_an_order_of_seed_and_epoch(texts, processors, monkeypatch):
    def order(epoch, seed, buffer=10):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        data = build({"text": processors["text"]}, texts, shuffle_buffer=buffer)
        return ids(data.train_dataloader(), epoch)

    first = order(0, seed=1)
    assert sorted(first) == sorted([f"1-{row + 1}" for row in range(7)] + [f"2-{row + 1}" for row in range(43)])
    assert first == order(0, seed=1)
    orders = [first, order(1, seed=1), order(0, seed=2), order(0, seed=1, buffer=11), order(0, seed=1, buffer=1000)]
    assert len(set(map(tuple, orders))) == len(orders)
    assert {order(epoch, seed=1, buffer=1)[0] for epoch in range(8)} == {"1-1", "2-1"}  # the shards in random order


def test_statistics_are_those_of_the_first_rows_of_a_shuffled_order(texts, processors):
    data = build({"text": processors["text"]}, texts, shuffle_buffer=10, batch_size=4)
    some, every = (ids(data.statistics_loader(count)) for count in (15, 1000))
    assert len(set(some)) == 15
    assert some == every[:15] != sorted(some)
    assert sorted(every) == sorted(ids(data.train_dataloader()))
    (texts_of_one,) = [batch.inputs["text"]["length"] for batch in data.statistics_loader(1)]
    assert len(texts_of_one) == 1


def test_a_row_is_drawn_from_the_rows_that_the_buffer_can_hold(tmp_path, processors):
    path = write_parquet(tmp_path / "one", {"train-0": range(ROWS), "validation-0": range(2)})
    data = build({"text": processors["text"]}, path, shuffle_buffer=5)
    order = [int(name) for name in ids(data.train_dataloader())]
    assert sorted(order) == list(range(1, ROWS + 1))
    assert all(number <= position + 5 for position, number in enumerate(order, 1))


@pytest.mark.parametrize(("size", "world"), [(10, 1), (10, 3), (9, 3), (11, 3), (2, 3), (1, 4)])
def test_processes_share_an_order(size, world):
    """As ``torch.utils.data.DistributedSampler``: every world-th row, filled up with the first rows of the epoch."""

    class Reference(torch.utils.data.DistributedSampler):
        def order(self):
            return list(self)

    def rows(repeats):
        return [
            list(StreamSampler(lambda epoch: iter(range(size)), "rows", world, rank, repeats=repeats))
            for rank in range(world)
        ]

    expected = [Reference(range(size), world, rank, shuffle=False).order() for rank in range(world)]
    assert rows(repeats=True) == expected
    if size >= world:
        assert rows(repeats=False) == [list(range(size))[rank::world] for rank in range(world)]
    else:
        with pytest.raises(
            UserError, match=rf"rows has {size} rows for {world} process\(es\): use trainer.devices={size}"
        ):
            rows(repeats=False)
    trained = StreamSampler(lambda epoch: iter(range(size)), "rows", world, 0, count_trained=lambda: 2)
    assert list(trained) == expected[0][2:]


def test_a_split_without_rows():
    with pytest.raises(UserError, match=r"rows has 0 rows for 1 process\(es\): a split needs rows"):
        list(StreamSampler(lambda epoch: iter([]), "rows"))


# ---------------------------------------------------------------------------------------------------------- the reading
def test_rows_are_read_ahead_within_bounds_and_not_after_the_loader_ends():
    taken = []
    before = set(threading.enumerate())
    rows = read_ahead(taken.append(row) or row for row in range(10_000))
    assert [next(rows) for _ in range(3)] == [0, 1, 2]
    (thread,) = set(threading.enumerate()) - before
    rows.close()
    thread.join(10)
    assert not thread.is_alive()
    assert 3 <= len(taken) <= 1000


def test_an_error_of_the_background_thread_is_raised():
    def read():
        yield from range(50)
        raise UserError("broken")

    rows = read_ahead(read())
    assert [next(rows) for _ in range(32)] == list(range(32))
    with pytest.raises(UserError, match="broken"):
        list(rows)


def test_a_row_of_a_stream_holds_no_other_row(tmp_path, processors):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["ham", "spam"])})
    Dataset.from_dict({"text": ["x" * 5000] * 40, "label": [0, 1] * 20}, features).save_to_disk(str(tmp_path / "long"))
    data = HubStream(str(tmp_path / "long"))
    data.processors = {"text": processors["text"]}
    assert all(5000 < len(row.content) < 6000 for row in data._stream("train").read())


def test_rows_without_an_input_are_left_out_or_an_error(tmp_path, processors):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["ham", "spam"])})
    part = Dataset.from_dict({"text": ["a", None, "b"], "label": [0, 1, 0]}, features)
    DatasetDict(train=part, validation=part).save_to_disk(str(tmp_path / "holes"))
    processors = {"text": processors["text"]}
    data = build(processors, str(tmp_path / "holes"), drop_empty=True)
    assert ids(data.val_dataloader()) == ["1", "3"]
    with pytest.raises(LoadError, match=r"holes, split val, row 2: all inputs are empty: .* remove the row"):
        ids(build(processors, str(tmp_path / "holes")).val_dataloader())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # datasets closes no CSV file
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_format_without_types(tmp_path, processors, kind):
    """The types are those of the first row; the classes are configured."""
    (tmp_path / "rows").mkdir()
    lines = ['{"text": "a", "label": "ham"}\n{"text": "bb", "label": "spam"}\n', "text,label\na,ham\nbb,spam\n"]
    for split in ("train", "validation"):
        (tmp_path / "rows" / f"{split}.{kind}").write_text(lines[kind == "csv"])
    with pytest.raises(UserError, match=r"column 'label': the classes are unknown .* no ClassLabel: give data.classes"):
        _ = HubStream(str(tmp_path / "rows")).classes
    data = build({"text": processors["text"]}, str(tmp_path / "rows"), classes=["ham", "spam"])
    assert [(one.inputs["text"], one.target) for one in data.samples("val")] == [("a", 0), ("bb", 1)]
    gc.collect()


def test_files_on_a_server(texts, processors):
    with FileServer() as server:
        for file in Path(texts).glob("*.parquet"):
            server.files[f"/{file.name}"] = file.read_bytes()
        files = {"train": f"{server.url}/train-1.parquet", "validation": f"{server.url}/validation-0.parquet"}
        data = build({"text": processors["text"]}, "parquet", data_files=files)
        assert [sample.inputs["text"] for sample in data.samples("val")] == [f"validation-0 {row}" for row in range(8)]
        assert len(ids(data.train_dataloader())) == ROWS - 7


def test_a_server_that_fails_stops_with_a_sentence(texts, processors, monkeypatch):
    monkeypatch.setattr(datasets.config, "STREAMING_READ_MAX_RETRIES", 2)
    monkeypatch.setattr(datasets.config, "STREAMING_READ_RETRY_INTERVAL", 0.01)
    with FileServer() as server:
        for name in ("train-0", "validation-0"):
            server.files[f"/{name}"] = Path(texts, f"{name}.parquet").read_bytes()
        files = {"train": f"{server.url}/train-0", "validation": f"{server.url}/validation-0"}
        data = build({"text": processors["text"]}, "parquet", data_files=files)
        del server.files["/train-0"]
        loader = data.train_dataloader()
        with pytest.raises(
            UserError, match=r"^parquet, split train cannot be read after row 0 of shard 1 of 1 \(.*\): "
        ):
            next(iter(loader))


# ----------------------------------------------------------------------------------------------------------- the errors
def test_a_damaged_file_is_one_sentence_with_its_place(texts, processors):
    file = Path(texts, "train-1.parquet")
    content = bytearray(file.read_bytes())
    content[4:400] = bytes(396)
    file.write_bytes(content)
    data = build({"text": processors["text"]}, texts)
    with pytest.raises(UserError, match=r"texts, split train cannot be read after row 0 of shard 2 of 2 \(.*\): check"):
        ids(data.train_dataloader())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wrong_label_has_split_shard_row_and_column(texts, processors, workers):
    data = build({"text": processors["text"]}, texts, classes=["ham", "Spam"], num_workers=workers)
    message = r"texts, split train, shard [12], row \d+, column 'label': 'spam' is not one of the classes ham, Spam"
    with pytest.raises(LoadError, match=rf"{message}; did you mean Spam\?$"):
        next(iter(data.train_dataloader()))
    with pytest.raises(LoadError, match=r"texts, split val, row 2, column 'label': 'spam' is not one of"):
        next(iter(data.val_dataloader()))


def test_a_text_in_a_column_of_numbers_has_its_place(tmp_path):
    features = Features({"a": Value("string"), "b": Value("float64"), "label": ClassLabel(names=["ham", "spam"])})
    columns = {"a": ["1", "2", "x"], "b": [0.5, 1.5, 2.5], "label": [0, 1, 0]}
    part = Dataset.from_dict(columns, features)
    DatasetDict(train=part.select(range(2)), validation=part).save_to_disk(str(tmp_path / "numbers"))
    data = HubStream(str(tmp_path / "numbers"), inputs={"numbers": ["a", "b"]}, num_workers=0)
    data.processors = {"numbers": FeatureEncoder(2).processor}
    data.setup("fit")
    assert np.allclose([np.asarray(one) for one in data.training_values("numbers")], [[1, 0.5], [2, 1.5]])
    with pytest.raises(LoadError, match=r"split val, row 3, column 'a': 'x' is not a finite number"):
        next(iter(data.val_dataloader()))


def test_paths_outside_the_folder_are_refused(toy, processors):
    path = save(toy.folder, toy.records, as_bytes=False)
    with pytest.raises(LoadError, match=r"hub, split val, row 1: .*8 ü.wav lies outside the root .*hub"):
        next(iter(build(processors, path, on_bad_file="missing").val_dataloader()))
    next(iter(build(processors, path, allow_outside=True).val_dataloader()))


def test_mistakes_that_are_found_before_rows_are_read(texts, tmp_path, processors):
    text = {"text": processors["text"]}
    with pytest.raises(
        UserError, match=r"texts, split train has 1 problem:\n  there is no column 'image' for the input"
    ):
        build({"image": processors["image"]}, texts)
    with pytest.raises(UserError, match=r"data.inputs has the input 'title', but the model's inputs are text"):
        build(text, texts, inputs={"title": "text"})
    with pytest.raises(UserError, match=r"there is no column 'species' for the label; the columns are 'text', 'label'"):
        build(text, texts, label="species", classes=["a", "b"])
    with pytest.raises(
        UserError, match=r"texts has no test split, and rows of a stream are not drawn: select one with"
    ):
        build(text, texts, stage="test")
    with pytest.raises(UserError, match=r"shuffle_buffer must be 1 or more rows, got 0"):
        HubStream(texts, shuffle_buffer=0)
    with pytest.raises(UserError, match=r"classes contains 'a' more than once"):
        HubStream(texts, classes=["a", "a"])
    with pytest.raises(UserError, match=r"data.label is \['a', 'b'\], but MultiClass reads one column"):
        HubStream(texts, label=["a", "b"], classes=["a", "b"])


# ----------------------------------------------------------------------------------------------------------- a real run
@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on the rows of a folder of Parquet files, streamed."""
    folder = tmp_path_factory.mktemp("run")
    write_parquet(folder / "texts", {"train-0": range(20), "train-1": range(20), "validation-0": range(11)})
    Path(folder / "texts/test-0.parquet").write_bytes(Path(folder / "texts/validation-0.parquet").read_bytes())
    encoder = {"class_path": "fusion_pl.encoders.TinyText", "init_args": {"dim": 8}}
    config = {
        "seed_everything": 0,
        "model": {
            "encoders": {"text": encoder},
            "fusion": {"class_path": "fusion_pl.fusion.Concat", "init_args": {"dim": 8}},
        },
        "data": {
            "class_path": "fusion_pl.data.HubStream",
            "init_args": {"dataset": "texts", "batch_size": 4, "num_workers": 1},
        },
        "trainer": {"accelerator": "cpu"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["fusion-pl"])
        assert run("fit", ["--config", "config.yaml", "--trainer.max_steps", "13"]) == 0
    return folder


@pytest.fixture
def in_run(trained, monkeypatch):
    monkeypatch.chdir(trained)
    monkeypatch.setattr("sys.argv", ["fusion-pl"])
    return trained


def test_a_run_ends_with_its_last_step_and_a_validation(in_run):
    result = results()
    assert result["samples"] == {"val": 11}
    checkpoint = torch.load("lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert (checkpoint["global_step"], checkpoint["epoch"]) == (13, 1)  # 10 steps per epoch
    assert checkpoint["callbacks"]["WriteResults"]["validated"] == 13


def test_metrics_are_those_of_the_rows_when_they_are_stored(in_run):
    for name in ("HubStream", "HubData"):
        assert run("test", ["--config", "config.yaml", "--data", name, "--data.dataset", "texts"]) == 0
    streamed, stored = (
        results(path.parent) for path in sorted(Path("lightning_logs").rglob("version_[12]/metrics.json"))
    )
    assert streamed["metrics"] == stored["metrics"]
    assert streamed["samples"] == stored["samples"] == {"test": 11}


def test_predictions_need_the_checkpoint_alone(in_run):
    arguments = ["--ckpt_path", "best", "--output", "out.csv", "--data.manifest", "texts/validation-0.parquet"]
    assert run("predict", arguments) == 0
    with open("out.csv") as file:
        assert len(list(csv.DictReader(file))) == 11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "the data is a stream), but the learning rate schedule depends on it: give trainer.max_steps"),
        (["--model.loss.class_weights", "balanced"], "class_weights: balanced counts the training samples"),
        (["--trainer.max_steps", "9", "--trainer.overfit_batches", "1"], "trainer.overfit_batches needs samples that"),
        (["--trainer.max_steps", "9", "--trainer.limit_train_batches", "0.5"], "limit_train_batches"),
        (["--trainer.max_steps", "9", "--trainer.val_check_interval", "0.5"], "val_check_interval"),
        (["--data.group", "text"], "group"),
        (["--data.sampling", "class_balanced"], "sampling"),
    ],
)
def test_options_that_need_the_number_of_rows_are_refused(options, message, in_run, capsys):
    assert run("fit", ["--config", "config.yaml", *options]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert message in error
    assert "Traceback" not in error


def test_the_data_check_and_the_dry_run(in_run, capsys):
    with pytest.raises(UserError, match="HubStream has no table: this command needs one"):
        check_command(["--config", "config.yaml", "--output", "checked"])
    assert run("fit", ["--config", "config.yaml", "--trainer.max_steps", "9", "--dry_run"]) == 0
    assert "one batch are valid" in capsys.readouterr().out


def test_features_of_frozen_encoders_are_not_stored(in_run, capsys):
    options = [
        "--model.encoders.text",
        "tests.data.test_hub_stream.FrozenText",
        "--trainer.max_steps",
        "2",
        "--cache",
        "cache",
    ]
    assert run("fit", ["--config", "config.yaml", *options, "--trainer.logger", "false"]) == 0
    assert (
        "features of frozen encoders are not stored, because the samples of HubStream are not"
        in capsys.readouterr().err
    )


def test_several_labels_per_row(tmp_path, processors):
    columns = {"text": ["a", "b", "c"], "sad": [0, 1, 1], "funny": [1, 0, 1]}
    DatasetDict(train=Dataset.from_dict(columns)).save_to_disk(str(tmp_path / "films"))
    data = HubStream(str(tmp_path / "films"), label=["sad", "funny"], task=MultiLabel(), num_workers=0)
    data.processors = {"text": processors["text"]}
    assert data.classes == ["sad", "funny"]
    assert [sample.target for sample in data.samples("train")] == [[0, 1], [1, 0], [1, 1]]


def test_a_folder_of_images_per_class(toy, processors):
    for record in toy.records:
        folder = toy.folder / "pets" / record["split"] / record["label"]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(toy.folder / record["image"], folder)
    data = build({"image": processors["image"]}, str(toy.folder / "pets"))
    stored = HubData(str(toy.folder / "pets"), num_workers=0)
    stored.processors = data.processors
    assert data.classes == ["cat", "dog"]
    for split in SPLIT_NAMES:
        grey = [
            [(np.asarray(one.inputs["image"]).mean(), one.target) for one in source.samples(split)]
            for source in (data, stored)
        ]
        assert grey[0] == grey[1] != []
