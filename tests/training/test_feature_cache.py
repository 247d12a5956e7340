"""Frozen encoders run once per value; everything else is as without a cache."""

from __future__ import annotations

import builtins
import csv
import importlib
import json
import os
import re
import shutil
import sys
import textwrap
import time

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import Subset

from fusion_pl.cli.run import run
from fusion_pl.data import ManifestData, feature_shards
from fusion_pl.data.feature_shards import FeatureShards, folder_bytes
from fusion_pl.data.rows import InputColumn
from fusion_pl.encoders import AudioEncoder, Encoder, ImageEncoder, TextEncoder, TinyAudio, TinyText
from fusion_pl.encoders.base import is_frozen
from fusion_pl.fusion import Average, BiLSTM, Concat, CrossAttention
from fusion_pl.module import FusionClassifier
from fusion_pl.processors import TextProcessor
from fusion_pl.training import cache_keys, encoding
from fusion_pl.training.cache_keys import encoder_key
from fusion_pl.types import Encoded, UserError

from ..commands import run_command
from ..conftest import CLASSES
from ..disk import small_disk
from ..encoders.models import save_audio, save_image, save_text

# Lightning says so of frozen encoders; the command leaves it out.
pytestmark = pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode")
QUIET = dict.fromkeys(
    ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "num_sanity_val_steps"), False
)


class Embedding(Encoder):
    """A frozen encoder that counts the values that it encodes: the text as bytes, one token per byte."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.dim, self.processor = 8, TinyText(dim=8).processor
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = nn.Embedding(257, 8).requires_grad_(False)
        self.count = 0

    def forward(self, ids, mask):
        self.count += len(ids)
        tokens = self.embed(ids) * mask.unsqueeze(-1)
        return Encoded(tokens, mask, tokens.sum(1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model of each kind."""
    folder = tmp_path_factory.mktemp("models")
    save_text("bert", folder / "text")
    save_image("vit", folder / "image")
    save_audio("wav2vec2-layer", folder / "audio")
    return folder


@pytest.fixture
def table(manifest, tmp_path):
    """A copy of the table with its files, which the test may change."""
    shutil.copytree(manifest.parent, tmp_path / "table")
    long_ago = time.time() - 3600
    for path in (tmp_path / "table").iterdir():
        os.utime(path, (long_ago, long_ago))
    return tmp_path / "table" / "manifest.csv"


def pretrained(folders, freeze="all"):
    torch.manual_seed(0)
    kinds = {"text": TextEncoder, "image": ImageEncoder, "audio": AudioEncoder}
    return {name: kind(str(folders / name), freeze=freeze) for name, kind in kinds.items()}


def build(encoders, fusion=Concat):
    torch.manual_seed(1)
    return FusionClassifier(encoders, fusion, CLASSES)


def data_of(model, table, **options):
    data = ManifestData(str(table), **({"batch_size": 5, "num_workers": 0, "drop_empty": True} | options))
    data.processors = model.processors
    return data


def fit(model, table, cache=None, callbacks=(), trainer=None, **options):
    if cache is not None:
        model.enable_cache(cache)
    trainer = Trainer(**(QUIET | {"max_epochs": 2} | (trainer or {})), accelerator="cpu", callbacks=list(callbacks))
    torch.manual_seed(2)
    trainer.fit(model, datamodule=data_of(model, table, **options))
    return trainer


def metrics(trainer):
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


HEADS = {
    "vectors": Concat,
    "late": Average,
    # dropout depends on the padding
    "tokens": lambda dims, classes: CrossAttention(dims, classes, dim=16, num_heads=2, num_layers=1, dropout=0.0),
    "sequence": lambda dims, classes: BiLSTM(dims, classes, over="tokens", dim=8),
}


class Record(Callback):
    """Record the logits of the test."""

    def __init__(self) -> None:
        self.logits = []

    def on_test_batch_end(self, trainer, model, outputs, batch, *index):
        self.logits.append(outputs)


@pytest.mark.parametrize(
    ("head", "num_workers", "runs"),
    [("vectors", 0, 2), ("vectors", 2, 1), ("late", 0, 1), ("tokens", 0, 2), ("sequence", 0, 1)],
)
def test_metrics_weights_and_logits_are_the_same_with_and_without(folders, manifest, tmp_path, head, num_workers, runs):
    """With missing inputs and input dropout, in training, validation and test; a second run finds all values."""
    options = {"num_workers": num_workers, "input_dropout": {"image": 0.3}}
    results = []
    for cache in (None, *[tmp_path / "cache"] * runs):
        model = build(pretrained(folders), HEADS[head])
        trainer = fit(model, manifest, cache, **options)
        trained = metrics(trainer)
        record = Record()
        trainer.callbacks.append(record)
        trainer.test(model, datamodule=data_of(model, manifest), verbose=False)
        weights = {name: value for name, value in model.state_dict().items() if name.startswith("fusion.")}
        results.append((trained, metrics(trainer), torch.cat(record.logits), weights))
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-4, atol=1e-4)


class Drawing(Embedding):
    """Draws a number without effect, as Wav2Vec2 of transformers 5.20 does."""

    def forward(self, ids, mask):
        torch.rand([])
        return super().forward(ids, mask)


def test_a_frozen_encoder_changes_no_dropout(manifest, tmp_path):
    models = [build({"text": Drawing().requires_grad_(False)}) for _ in range(2)]
    expected, found = fit(models[0], manifest), fit(models[1], manifest, tmp_path / "cache")
    torch.testing.assert_close(metrics(found), metrics(expected))


def test_each_distinct_value_is_encoded_once_for_all_epochs_and_runs(table, tmp_path):
    class ReadStatistics(Callback):
        def on_validation_end(self, trainer, model):
            for batch in trainer.datamodule.statistics_loader(7):
                model.encode(batch)

    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["text"] = f"text {int(row['id'][1:]) % 5}"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    for expected in (5 + 5, 0):  # with those that are encoded to estimate the size
        model = build({"text": Embedding()})
        trainer = fit(model, table, tmp_path / "cache", [ReadStatistics()], trainer={"max_epochs": 3})
        assert model.encoders["text"].count == expected
        trainer.test(model, datamodule=data_of(model, table), verbose=False)
        assert model.encoders["text"].count == expected


@pytest.fixture(scope="module")
def plain_metrics(folders, manifest):
    """Metrics of a run on all inputs without a cache."""
    return metrics(fit(build(pretrained(folders)), manifest))


def test_no_file_is_opened_after_the_values_are_encoded(folders, table, plain_metrics, tmp_path):
    class DeleteFiles(Callback):
        def on_train_start(self, trainer, model):
            for path in [*table.parent.glob("*.png"), *table.parent.glob("*.wav")]:
                path.unlink()

    found = metrics(fit(build(pretrained(folders)), table, tmp_path / "cache", [DeleteFiles()]))
    torch.testing.assert_close(found, plain_metrics, rtol=1e-4, atol=1e-5)
    assert not list(table.parent.glob("*.png"))


@pytest.mark.parametrize(("num_workers", "runs"), [(0, 2), (2, 1)])
def test_bad_files_are_treated_as_without_a_cache(folders, table, tmp_path, caplog, num_workers, runs):
    for name in ("3.png", "14.png", "30.wav"):
        (table.parent / name).write_bytes(b"no media")
    listed, options = [], {"num_workers": num_workers, "trainer": {"max_epochs": 1}}
    for cache in (None, *[tmp_path / "cache"] * runs):
        caplog.clear()
        found = metrics(fit(build(pretrained(folders)), table, cache, on_bad_file="missing", **options))
        listed.append((found, next(text for text in caplog.messages if "counted as missing" in text)))
    assert "row 5, column 'image'" in listed[0][1]
    for other in listed[1:]:
        torch.testing.assert_close(other[0], listed[0][0], rtol=1e-4, atol=1e-5)
        assert sorted(other[1].splitlines()) == sorted(listed[0][1].splitlines())
    shutil.rmtree(tmp_path / "cache")
    expected = r"\.png cannot be read as an image.*; fusion-pl data check lists all such rows$"
    for cache, place in ((None, ""), (tmp_path / "cache", "row 5, column 'image': .*3")):  # without: in random order
        with pytest.raises(UserError, match=place + expected):
            fit(build(pretrained(folders)), table, cache, **options)


def test_a_file_that_fails_once_is_missing_with_its_copies(folders, table, tmp_path, monkeypatch, caplog):
    """Such as by a network disk: each file is opened once."""
    shutil.copy(table.parent / "3.png", table.parent / "14.png")
    opened, original = [], InputColumn.open

    def fail_once(column, cell):
        if str(cell).endswith(".png"):
            opened.append(os.path.basename(cell))
            if opened[-1] == "3.png" and opened.count("3.png") == 1:
                raise OSError(f"{cell}: the disk does not answer")
        return original(column, cell)

    monkeypatch.setattr(InputColumn, "open", fail_once)
    model = build({"text": Embedding(), "image": pretrained(folders)["image"]})
    fit(model, table, tmp_path / "cache", on_bad_file="missing", trainer={"max_epochs": 1})
    assert opened.count("3.png") == opened.count("14.png") == 1
    message = next(text for text in caplog.messages if "counted as missing" in text)
    assert message.startswith("2 files could not be read")
    assert message.count("the disk does not answer") == 2


def test_a_changed_file_or_weight_is_encoded_again(folders, table, tmp_path):
    def embeddings(encoders, cache):
        seen = {}

        class RecordEmbeddings(Callback):
            def on_validation_batch_end(self, trainer, model, outputs, batch, *index):
                seen.update(zip(batch.ids, model.encode(batch)["image"].embedding, strict=True))

        fit(build({"image": encoders["image"]}), table, cache, [RecordEmbeddings()], trainer={"max_epochs": 1})
        return torch.stack([seen[name] for name in sorted(seen)])

    first = embeddings(pretrained(folders), tmp_path / "cache")
    shutil.copy(table.parent / "0.png", table.parent / "25.png")
    changed = embeddings(pretrained(folders), tmp_path / "cache")
    assert (changed != first).any(1).sum() == 1
    torch.testing.assert_close(changed, embeddings(pretrained(folders), None), rtol=1e-4, atol=1e-5)
    other = pretrained(folders)
    for one in other.values():
        one.load_pretrained()
        one.has_weights = True
    with torch.no_grad():
        other["image"].model.embeddings.cls_token += 1
    found = embeddings(other, tmp_path / "cache")
    assert (found != changed).any(1).all()
    torch.testing.assert_close(found, embeddings(other, None), rtol=1e-4, atol=1e-5)


def test_a_file_that_changes_while_it_is_read_is_refused(table, tmp_path, monkeypatch):
    original = encoding.InputValueDataset.compute_keys

    def change(values, folder):
        original(values, folder)
        shutil.copy(table.parent / "0.wav", table.parent / "1.wav")

    monkeypatch.setattr(encoding.InputValueDataset, "compute_keys", change)
    model = build({"audio": TinyAudio(dim=8, num_layers=1).requires_grad_(False)})
    with pytest.raises(UserError, match=r"column 'audio': .*1\.wav changed while it was read: repeat the command"):
        fit(model, table, tmp_path / "cache")


@pytest.mark.parametrize("augmented", ["image", "image+audio"])
def test_only_inputs_of_frozen_encoders_are_stored(folders, manifest, tmp_path, caplog, augmented):
    model = build({**pretrained(folders), "audio": TinyAudio(dim=8, num_layers=1)})
    with caplog.at_level("INFO"):
        trainer = fit(model, manifest, tmp_path / "cache", augment={augmented: nn.Identity()})
    assert re.search(
        r"stand in for text \(36 values, \d+\.\d KiB\), image \(10 values, \d+\.\d KiB\); 46 are computed first\.",
        caplog.text,
    )
    assert f"Folder: {tmp_path / 'cache'} (--cache null to disable)" in caplog.text
    train, val = (next(iter(loader)) for loader in (trainer.train_dataloader, trainer.val_dataloaders))
    kinds = [{name: isinstance(value, Encoded) for name, value in batch.inputs.items()} for batch in (train, val)]
    assert kinds == [{"text": True, "image": False, "audio": False}, {"text": True, "image": True, "audio": False}]


def test_what_is_not_stored_is_logged(manifest, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    frozen, learning = Embedding(), TinyText(dim=8)
    cases = [
        (learning, "cache", {}, "no encoder is frozen (freeze: all)"),
        (frozen, "file", {}, "file cannot be written"),
    ]
    for encoder, folder, trainer, reason in cases:
        caplog.clear()
        with caplog.at_level("INFO"):
            fit(build({"text": encoder}), manifest, tmp_path / folder, trainer=trainer)
        assert f"Cache: features of frozen encoders are not stored, because {reason}" in caplog.text.replace(
            str(tmp_path) + "/", ""
        )
    assert frozen.count == 2 * (24 + 12)


@pytest.mark.parametrize("limit", [{"limit_train_batches": 1}, {"max_steps": 2}])
def test_a_run_that_reads_a_part_of_a_split_does_not_encode_all_of_it(manifest, tmp_path, limit):
    model = build({"text": Embedding()})
    fit(model, manifest, tmp_path / "cache", trainer=limit | {"max_epochs": 1})
    assert model.encoders["text"].count <= 8 + 12 + 2 * 5


class OwnData(ManifestData):
    """Samples that are not rows of a table."""

    def samples(self, split):
        rows = super().samples(split)
        return Subset(rows, range(len(rows)))


def test_data_without_a_table_is_read_as_before(manifest, tmp_path, caplog):
    model = build({"text": Embedding()})
    model.enable_cache(tmp_path / "cache")
    data = OwnData(str(manifest), batch_size=5, num_workers=0)
    data.processors = model.processors
    with caplog.at_level("INFO"):
        Trainer(**QUIET, max_epochs=2, accelerator="cpu").fit(model, datamodule=data)
    assert "are not stored, because OwnData has no table of values" in caplog.text
    assert model.encoders["text"].count == 2 * (24 + 12)


class Unfreeze(Callback):
    """Unfreezes an encoder in the second epoch, without being known for it."""

    def on_train_epoch_start(self, trainer, model):
        model.encoders["text"].requires_grad_(trainer.current_epoch > 0)


def test_features_of_an_encoder_that_learns_are_refused(manifest, tmp_path):
    with pytest.raises(UserError, match=r"the encoder of 'text' was unfrozen during the run.*give --cache null"):
        fit(build({"text": Embedding()}), manifest, tmp_path / "cache", [Unfreeze()])


def test_a_folder_does_not_exceed_its_limit(manifest, tmp_path, caplog):
    reference = metrics(fit(build({"text": Embedding()}), manifest))
    fit(build({"text": Embedding()}), manifest, tmp_path / "unlimited")
    size = folder_bytes(tmp_path / "unlimited")
    for limit, is_stored in ((size // 2, False), (size + 1000, True)):
        caplog.clear()
        model = build({"text": Embedding()})
        model.enable_cache(tmp_path / "cache", max_bytes=limit)
        with caplog.at_level("INFO"):
            found = metrics(fit(model, manifest))
        torch.testing.assert_close(found, reference)
        assert ("--cache_limit" in caplog.text) != is_stored
        assert (folder_bytes(tmp_path / "cache") == size) == is_stored
    caplog.clear()
    with caplog.at_level("INFO"):
        model = build({"text": Embedding(seed=1)})  # another encoder, for which there is no space
        model.enable_cache(tmp_path / "cache", max_bytes=size + 1000)
        fit(model, manifest)
    assert "the features of text are not stored, because they would need" in caplog.text
    assert folder_bytes(tmp_path / "cache") == size


@pytest.fixture
def small(tmp_path):
    with small_disk(tmp_path / "small", "64k") as folder:
        yield folder


def test_a_full_disk_does_not_stop_the_run(folders, manifest, small, caplog, monkeypatch):
    monkeypatch.setattr(encoding, "SHARD_BYTES", 2_000)
    reference = metrics(fit(build(pretrained(folders), HEADS["tokens"]), manifest))
    model = build(pretrained(folders), HEADS["tokens"])
    model.enable_cache(small, max_bytes=2**30)
    found = metrics(fit(model, manifest))
    torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-5)
    assert "No space left on device" in caplog.text
    for folder in small.iterdir():
        FeatureShards(folder)
        assert not list(folder.glob("*.partial"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_of_16_bits(folders, manifest, plain_metrics, tmp_path, dtype, caplog):
    model = build(pretrained(folders))
    model.enable_cache(tmp_path / "cache", dtype=dtype)
    found = metrics(fit(model, manifest))
    assert found != plain_metrics
    assert found["val/loss"] == pytest.approx(plain_metrics["val/loss"], rel=0.02)
    if dtype == torch.float16:
        large = Embedding()
        large.embed.weight.mul_(1e5)
        model = build({"text": large})
        model.enable_cache(tmp_path / "cache", dtype=dtype)
        fit(model, manifest)
        assert "exceeds the range of torch.float16 (--cache_dtype bfloat16)" in caplog.text


class Killed(BaseException):
    """The process ends here."""


def test_a_stopped_pass_goes_on_where_it_was(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "SHARD_SECONDS", 0.0)
    model, original = build({"text": Embedding()}), encoding.EncodingPass._run_encoder
    monkeypatch.setattr(encoding.EncodingPass, "_run_encoder", lambda *call: stop_after(original(*call)))

    def stop_after(encoded):
        if model.encoders["text"].count > 8 + 20:  # 8 to estimate the size
            raise Killed
        return encoded

    with pytest.raises(Killed):
        fit(model, manifest, tmp_path / "cache")
    monkeypatch.setattr(encoding.EncodingPass, "_run_encoder", original)
    model = build({"text": Embedding()})
    fit(model, manifest, tmp_path / "cache")
    assert model.encoders["text"].count == 36 - 20


def test_two_processes_share_the_values_and_have_the_results_of_one(folders, manifest, tmp_path, monkeypatch):
    """Through the real command, with odd counts; the second run, in this process, finds all values of the first."""
    kinds = {"text": "TextEncoder", "image": "ImageEncoder", "audio": "AudioEncoder"}
    encoders = {
        name: {
            "class_path": f"fusion_pl.encoders.{kind}",
            "init_args": {"pretrained": str(folders / name), "freeze": "all"},
        }
        for name, kind in kinds.items()
    }
    config = {
        "seed_everything": 1,
        "model": {
            "encoders": encoders,
            "fusion": {"class_path": "fusion_pl.fusion.Mean", "init_args": {"dim": 8, "dropout": 0.0}},
        },
        "data": {
            "class_path": "fusion_pl.data.ManifestData",
            "init_args": {"manifest": str(manifest), "batch_size": 3, "num_workers": 0},
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
        "cache": "cache",
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    devices = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    callback = "tests.training.test_feature_cache.RecordChecks"
    (tmp_path / "checks.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    command = ["fit", "--config", "config.yaml", "--config", "checks.yaml", *devices]
    done = run_command(*command, folder=tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    checks = (tmp_path / "checks").read_text().splitlines()
    assert len(checks) == len(set(checks)) == 6
    assert done.stderr.count("features of frozen encoders stand in for") == 1
    folders_of_features = [path for path in (tmp_path / "cache").iterdir() if path.name != "files"]
    assert [len(list(path.iterdir())) for path in folders_of_features] == [2, 2, 2]  # one shard per process
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fusion-pl"])
    monkeypatch.setattr(encoding.EncodingPass, "encode", None)
    for cache in ("cache", "null"):
        batch = ["--data.batch_size", "6", "--cache", cache]  # as many samples per step as both processes together
        assert run("fit", ["--config", "config.yaml", *batch]) == 0
    results = [
        json.loads((tmp_path / f"lightning_logs/version_{version}/metrics.json").read_text())["metrics"]
        for version in range(3)
    ]
    assert results[1] == pytest.approx(results[2], rel=1e-4)
    assert results[0] == pytest.approx(results[2], rel=1e-3)


class RecordChecks(Callback):
    """Write the name of each shard of features that a process checks to a file."""

    def __init__(self) -> None:
        original = feature_shards._has_right_checksum

        def check(folder, name):
            if folder.name != "files":  # of the hashes of files
                with open("checks", "a") as file:
                    file.write(f"{name}\n")
            return original(folder, name)

        feature_shards._has_right_checksum = check


class RefusingProcessor(TextProcessor):
    """A processor that refuses one text."""

    def __init__(self, error):
        self.process, self.error = TinyText(dim=8).processor, error

    def __call__(self, values, training=False):
        if "number 13" in values:
            raise self.error("this text is refused")
        return self.process(values, training)


class Refusing(Embedding):
    """An encoder whose processor refuses one text, with an error of a type of ``builtins`` or a ``UserError``."""

    def __init__(self, error="UserError"):
        super().__init__()
        self.processor = RefusingProcessor(getattr(builtins, error, UserError))


def test_a_refused_value_has_the_message_that_it_has_without_a_cache(manifest, tmp_path):
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(UserError, match=r"^input 'text' of the samples .*s13.*: this text is refused$"):
            fit(build({"text": Refusing()}), manifest, cache)


@pytest.mark.parametrize(("error", "code"), [("UserError", 2), ("RuntimeError", 1)])
def test_an_error_in_one_process_of_the_pass_ends_all_of_them(manifest, tmp_path, error, code):
    """One value is refused, which is in the share of the second process."""
    encoder = {"class_path": "tests.training.test_feature_cache.Refusing", "init_args": {"error": error}}
    options = {"manifest": str(manifest), "batch_size": 3, "num_workers": 0}
    config = {
        "model": {"encoders": {"text": encoder}, "fusion": "fusion_pl.fusion.Concat"},
        "data": {"class_path": "fusion_pl.data.ManifestData", "init_args": options},
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False, "devices": 2, "strategy": "ddp"},
        "cache": "cache",
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = run_command("fit", "--config", "config.yaml", folder=tmp_path, processes=2)
    assert done.returncode == code, done.stderr
    assert "Connection" not in done.stderr
    if error == "UserError":
        message = " ".join(done.stderr.split())
        assert re.search(r"error: input 'text' of the samples [^:]*\bs13\b[^:]*: this text is refused", message)
        assert "Traceback" not in done.stderr
    else:
        assert "RuntimeError: another process has failed: RuntimeError: this text is refused" in done.stderr


def test_other_weights_or_arguments_have_another_key(folders):
    encoder = pretrained(folders)["text"]
    keys = [encoder_key(encoder), encoder_key(pretrained(folders)["text"]), encoder_key(encoder, "bf16-mixed")]
    keys.append(encoder_key(encoder, "32-true", "tokens"))
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1e-3
    keys += [encoder_key(encoder), encoder_key(TextEncoder(str(folders / "text"), freeze="all", pooling="max"))]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 5


class WithExtraState(Embedding):
    """An encoder with a setting that is neither a tensor nor an argument."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def get_extra_state(self):
        return {"scale": self.scale, "shape": (1, "any"), "table": torch.eye(2)}

    def set_extra_state(self, state):
        self.scale = state["scale"]

    def forward(self, ids, mask):
        tokens, mask, embedding, _ = super().forward(ids, mask)
        return Encoded(tokens * self.scale, mask, embedding * self.scale)


def test_any_extra_state_is_part_of_the_key(manifest, tmp_path):
    for scale, count in ((1.0, 8 + 36), (1.0, 0), (2.0, 8 + 36)):
        model = build({"text": WithExtraState()})
        model.encoders["text"].scale = scale
        fit(model, manifest, tmp_path / "cache", trainer={"max_epochs": 1})
        assert model.encoders["text"].count == count


def test_other_settings_in_the_models_files_have_another_key(tmp_path):
    """Settings that are neither weights nor arguments, but change the output."""
    save_image("vit", tmp_path / "model")

    def key():
        torch.manual_seed(0)
        encoder = ImageEncoder(str(tmp_path / "model"), freeze="all")
        encoder.load_pretrained()
        return encoder_key(encoder)

    before = key()
    for name, setting, value in (
        ("preprocessor_config.json", "image_mean", [0.1, 0.2, 0.3]),
        ("config.json", "hidden_act", "relu"),
    ):
        path = tmp_path / "model" / name
        original = path.read_text()
        path.write_text(json.dumps(json.loads(original) | {setting: value}))
        assert key() != before, name
        path.write_text(original)
    assert key() == before


SOURCES = {
    "shop/base.py": """
        from fusion_pl.encoders import Encoder, TinyText
        from .parts.scale import scaled
        from shop import amounts

        class Base(Encoder):
            def __init__(self):
                super().__init__()
                self.dim, self.processor = 8, TinyText(dim=8).processor
                self.embed = __import__("torch").nn.Embedding(257, 8).requires_grad_(False)

            def rows(self, ids):
                return scaled(self.embed(ids)) + amounts.SHIFT
        """,
    "shop/parts/scale.py": """
        def scaled(value):
            return value * 2
        """,
    "shop/amounts.py": "SHIFT = 1.0",
    "shop/own.py": """
        from fusion_pl.types import Encoded
        from shop.base import Base

        class Own(Base):
            def forward(self, ids, mask):
                tokens = self.rows(ids) * mask.unsqueeze(-1)
                return Encoded(tokens, mask, tokens.sum(1))
        """,
    "shop/unused.py": "THIS = 1",
}


@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        ("shop/base.py", "amounts.SHIFT", "3 * amounts.SHIFT"),
        ("shop/parts/scale.py", "2", "5"),
        ("shop/amounts.py", "1.0", "7.0"),
        ("shop/unused.py", "1", "2"),
    ],
)
def test_edited_code_has_another_key(tmp_path, monkeypatch, place, old, new):
    """Code of the encoder's class, its base classes and their imports, in packages of any kind."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def key(**content):
        for path, code in (SOURCES | content).items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(textwrap.dedent(code))
        for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
            monkeypatch.delitem(sys.modules, name)  # as in another process
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        importlib.invalidate_caches()
        cache_keys._hash_module.cache_clear()
        torch.manual_seed(0)
        return encoder_key(importlib.import_module("shop.own").Own())

    first = key()
    assert key() == first
    assert (key(**{place: SOURCES[place].replace(old, new)}) == first) == (place == "shop/unused.py")


def test_is_frozen(folders):
    assert is_frozen(pretrained(folders)["image"])
    assert not is_frozen(TinyText())
    assert not is_frozen(ImageEncoder(str(folders / "image"), freeze=1))
    assert is_frozen(ImageEncoder(str(folders / "image"), freeze="all", hidden_layers=[0, 1], combine="sum"))
