"""Transforms that draw once for several inputs of a sample."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageOps
from torch import nn
from torchvision.transforms.v2 import Compose, RandomCrop, RandomHorizontalFlip

from fusion_pl.cli.run import run
from fusion_pl.data import ManifestData
from fusion_pl.data.augment import FlipSides
from fusion_pl.encoders import TinyImage, TinyText
from fusion_pl.training.dry_run import FileCheck
from fusion_pl.types import UserError, Waveform


class Record(nn.Module):
    """Return the dictionary as it is, and remember its keys."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, inputs):
        self.seen.append(tuple(inputs))
        return inputs


class Forget(nn.Module):
    def forward(self, inputs):
        return {name: value for name, value in inputs.items() if name != "back"}


class Pair(nn.Module):
    def forward(self, inputs):
        return tuple(inputs.values())


class Fail(nn.Module):
    def forward(self, inputs):
        raise ValueError("no luck")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Ten samples with the same picture as front and back, and a text; the fourth has no back."""
    folder = tmp_path_factory.mktemp("joint")
    rng = np.random.default_rng(0)
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "front", "back", "text", "label", "split"])
        for row in range(10):
            Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(folder / f"{row}.png")
            back = "" if row == 3 else f"{row}.png"
            writer.writerow([f"s{row}", f"{row}.png", back, f"Left {row}", row % 2, "train" if row < 7 else "val"])
    return folder / "rows.csv"


@pytest.fixture
def build(table):
    def build(**options):
        data = ManifestData(str(table), batch_size=4, num_workers=0, **options)
        images = {name: TinyImage(dim=16, image_size=16, channels=1).processor for name in ("front", "back")}
        data.processors = images | {"text": TinyText(dim=8).processor}
        data.setup("fit")
        return data

    return build


def images_of(data, epochs=3):
    """Return the tensors of front and back, of the samples that have both, in several epochs."""
    fronts, backs = [], []
    for epoch in range(epochs):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            both = batch.present["back"]
            fronts.append(*(value[both] for value in batch.inputs["front"].values()))
            backs.append(*batch.inputs["back"].values())
    return torch.cat(fronts), torch.cat(backs)


def changed(images):
    """Return which images are not those of the first epoch."""
    first, *others = images.chunk(3)
    return [not torch.equal(first.sum(), other.sum()) for other in others]


def test_a_transform_of_torchvision_draws_once_for_both_images(build):
    transform = Compose([RandomCrop(8), RandomHorizontalFlip()])
    front, back = images_of(build(augment={"front+back": transform}))
    assert torch.equal(front, back)
    assert all(changed(front)), "it draws anew in every epoch"
    front, back = images_of(build(augment={"front": transform, "back": transform}))
    assert not torch.equal(front, back)


def test_missing_inputs_are_left_out_and_evaluation_has_no_augmentation(build):
    record = Record()
    data = build(augment={"front+back": record})
    samples = data.samples("train")
    assert [len(samples[row].inputs) for row in range(7)] == [3, 3, 3, 2, 3, 3, 3]
    assert record.seen == [("front", "back")] * 3 + [("front",)] + [("front", "back")] * 3
    assert len(data.samples("val")[0].inputs) == 3
    assert len(record.seen) == 7


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            Forget(),
            r"Forget returned the keys front for the inputs front, back of .*rows\.csv, row 2: a tr",
        ),
        (Pair(), r"Pair returned tuple for the inputs front, back of .*: a transform of several inputs gets a dict"),
        (Fail(), r"Fail failed on the inputs front, back of .*rows\.csv, row 2 \(no luck\): check its arguments"),
    ],
)
def test_faults_of_a_transform_are_one_sentence(build, transform, message):
    with pytest.raises(UserError, match=message):
        build(augment={"front+back": transform}).samples("train")[0]


def test_an_unknown_input_of_several_is_refused(build):
    with pytest.raises(UserError, match=r"data\.augment has the input 'bak', but the model's inputs are front, back"):
        build(augment={"front+bak": Record()})


def test_the_check_of_files_augments_nothing(build):
    assert FileCheck(build(augment={"front+back": Fail()}), ["train"]).run(0) == []


def test_flip_sides_mirrors_images_and_swaps_words_together():
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    sound = Waveform(torch.arange(4.0), 8000)
    inputs = {"photo": image, "text": "Left of the RIGHT door, right there: leftovers, upright", "sound": sound}
    flipped = FlipSides(1.0)(inputs)
    assert flipped["photo"].tobytes() == ImageOps.mirror(image).tobytes()
    assert flipped["text"] == "Right of the LEFT door, left there: leftovers, upright"
    assert torch.equal(flipped["sound"].samples, sound.samples)
    assert FlipSides(0.0)(inputs) == inputs
    torch.manual_seed(0)
    results = [FlipSides(0.5)(inputs) for _ in range(40)]
    pairs = {(one["photo"].tobytes() == image.tobytes(), one["text"].startswith("Left")) for one in results}
    assert pairs == {(True, True), (False, False)}, "both or none"
    with pytest.raises(UserError, match=r"FlipSides\(probability=2.0\): expected a number that is between 0 and 1"):
        FlipSides(2.0)


def test_the_command_trains_with_transforms_of_one_and_of_several_inputs(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = {"class_path": "fusion_pl.encoders.TinyImage", "init_args": {"dim": 16, "image_size": 16, "channels": 1}}
    text = {"class_path": "fusion_pl.encoders.TinyText", "init_args": {"dim": 8}}
    flip = {"class_path": "fusion_pl.data.augment.FlipSides"}
    content = {
        "model": {
            "encoders": {"front": image, "back": image, "text": text},
            "fusion": {"class_path": "fusion_pl.fusion.Concat"},
            "loss": {"mixup": 0.2},
        },
        "data": {
            "class_path": "fusion_pl.data.ManifestData",
            "init_args": {
                "manifest": str(table),
                "batch_size": 4,
                "num_workers": 0,
                "augment": {"front+back+text": flip, "front": {"class_path": "torchvision.transforms.v2.ColorJitter"}},
            },
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    assert run("fit", ["--config", "config.yaml"]) == 0
