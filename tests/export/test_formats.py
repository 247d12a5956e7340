"""The formats torch, safetensors and ckpt, and folders that are damaged or malicious."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import asdict
from math import sqrt

import pytest
import torch

from fusion_pl.encoders import TextEncoder, TinyText
from fusion_pl.export import formats
from fusion_pl.fusion import Weighted
from fusion_pl.module import FusionClassifier
from fusion_pl.predict import Predictor
from fusion_pl.tasks import MultiClass
from fusion_pl.types import UserError
from fusion_pl.uncertainty.calibration import Outputs
from fusion_pl.uncertainty.calibration_fit import fit_calibration

from ..checkpoint.conftest import write
from ..encoders.models import save_text
from .conftest import INPUTS, error_of, export

SAMPLES = [{"my text": "a", "sensors": [1, 2, None]}, {"sensors": [4, 5, 6]}]


@pytest.fixture(scope="module")
def hub(unexported):
    """The checkpoint in the layout of the hub."""
    run = unexported / "run" / "checkpoints"
    run.mkdir(parents=True)
    shutil.copy(unexported / "model.ckpt", run / "best.ckpt")
    metrics = {"command": "fit", "metrics": {"val/accuracy": 0.9, "val/loss": 0.3}, "samples": {"train": 80, "val": 50}}
    (unexported / "run" / "metrics.json").write_text(json.dumps(metrics | {"checkpoint": str(run / "best.ckpt")}))
    assert export("--ckpt_path", run / "best.ckpt", "--output", unexported / "hub", "--format", "safetensors") == 0
    return unexported / "hub"


def test_a_folder_predicts_as_its_checkpoint(hub, predictor):
    """Also what needs the statistics of the validation."""
    found = Predictor.from_pretrained(hub, device="cpu")
    rules = {"coverage": 0.9, "abstain": 0.5, "outliers": True}
    assert found.predict(SAMPLES, **rules) == predictor.predict(SAMPLES, **rules)
    assert (found.columns, found.label) == (predictor.columns, predictor.label)


def test_a_folder_has_the_files_of_a_pretrained_encoder(tmp_path):
    save_text("bert", tmp_path / "bert")
    model = FusionClassifier({"text": TextEncoder(str(tmp_path / "bert"))}, Weighted, ["a", "b"])
    write(model, tmp_path / "model.ckpt")
    arguments = ["--ckpt_path", tmp_path / "model.ckpt", "--output", tmp_path / "hub", "--format", "safetensors"]
    assert export(*arguments) == 0
    shutil.rmtree(tmp_path / "bert")
    assert (tmp_path / "hub" / "encoders" / "0" / "tokenizer.json").is_file()
    expected = Predictor.from_checkpoint(tmp_path / "model.ckpt", device="cpu").predict({"text": "the red cat"})
    assert Predictor.from_pretrained(tmp_path / "hub", device="cpu").predict({"text": "the red cat"}) == expected


def test_the_card_has_metrics_with_intervals(hub):
    card = (hub / "README.md").read_text()
    centre, margin = 0.9 + 1.96**2 / 100, 1.96 * sqrt(0.09 / 50 + 1.96**2 / 4 / 50**2)
    low, high = ((centre + sign * margin) / (1 + 1.96**2 / 50) for sign in (-1, 1))
    assert f"| val/accuracy | 0.9000 | {low:.4f} to {high:.4f} |" in card
    assert "| val/loss | 0.3000 |  |" in card
    assert "samples: 80 train, 50 val" in card
    assert "| my text | TinyText |  |" in card
    assert "3 classes: high, low, média" in card
    scores = "NLL 0.900 -\\> 0.800, calibration error 20.0 % -\\> 10.0 % (60 validation samples)"
    assert f"Calibration of the probabilities: temperature 2.00, 2 for subsets of the inputs; {scores}." in card


NO_CALIBRATION = {
    "too few samples": (45, [], "none, because only 45 validation samples, and a calibration needs at least 50."),
    "no gain": (60, [], "none, because .*; NLL .*, calibration error .* \\(60 validation samples\\)."),
    "subset": (
        60,
        [(["my text"], 3.0)],
        r"temperature only for rows that lack inputs \(1 subset\), the others need none;",
    ),
    "off": (0, [], "none."),
}


@pytest.mark.parametrize(("count", "subsets", "expected"), NO_CALIBRATION.values(), ids=NO_CALIBRATION)
def test_the_card_says_why_the_probabilities_are_not_calibrated(folder, tmp_path, count, subsets, expected):
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(count) % 3
    logits = torch.randn(count, 3, generator=generator) + torch.nn.functional.one_hot(target, 3)
    every = torch.ones(count, 4, dtype=torch.bool)
    calibration = None
    if count:
        fitted = fit_calibration(MultiClass(), Outputs(logits, target, every, every[:, 0]), INPUTS, "temperature")
        calibration = asdict(fitted) | {"temperatures": subsets}
    content = torch.load(folder / "model.ckpt", weights_only=True)
    content["fusion_pl"]["calibration"] = calibration
    torch.save(content, tmp_path / "model.ckpt")
    arguments = ["--ckpt_path", tmp_path / "model.ckpt", "--output", tmp_path / "hub", "--format", "safetensors"]
    assert export(*arguments) == 0
    card = (tmp_path / "hub" / "README.md").read_text()
    assert re.search(f"^Calibration of the probabilities: {expected}", card, re.MULTILINE), card
    assert "0.0000" not in card


def test_a_damaged_calibration_is_one_sentence(unexported, tmp_path, capsys):
    content = torch.load(unexported / "model.ckpt", weights_only=True)
    content["fusion_pl"]["calibration"] = {"method": "temperature", "unknown": 1}
    torch.save(content, tmp_path / "model.ckpt")
    arguments = ["--ckpt_path", tmp_path / "model.ckpt", "--output", tmp_path / "hub", "--format", "safetensors"]
    assert "the calibration in the checkpoint is damaged" in error_of(capsys, *arguments)


def test_the_card_has_the_intervals_of_an_evaluation(unexported, tmp_path, capsys):
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"metrics": {"auroc": {"value": 0.8, "interval": [0.7, 0.85]}}}))
    arguments = ["--ckpt_path", unexported / "model.ckpt", "--format", "safetensors", "--metrics", results, "--output"]
    assert export(*arguments, tmp_path / "hub") == 0
    assert "| auroc | 0.8000 | 0.7000 to 0.8500 |" in (tmp_path / "hub" / "README.md").read_text()
    results.write_text("[]")
    capsys.readouterr()
    assert f"--metrics {results} cannot be read" in error_of(capsys, *arguments, tmp_path / "other")


def damage_config(change):
    def damage(folder):
        path = folder / "config.json"
        content = json.loads(path.read_bytes())
        change(content["fusion_pl"])
        path.write_text(json.dumps(content))

    return damage


DAMAGES = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "no json": (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
    "deep": (lambda folder: (folder / "config.json").write_text("[" * 100_000), "cannot be read"),
    "list": (lambda folder: (folder / "config.json").write_text('{"fusion_pl": []}'), "describes no model"),
    "cut weights": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9]),
        "cannot be read",
    ),
    "pickle": (lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x02cos\nsystem\n."), "cannot be read"),
    "foreign class": (
        damage_config(lambda config: config["fusion"].update(class_path="os.system")),
        "os.system, which is not part of fusion-pl",
    ),
    "large number": (
        damage_config(lambda config: config["encoders"]["my text"]["init_args"].update(dim=10**9)),
        "number beyond",
    ),
    "missing tensor": (
        damage_config(lambda config: config["validation_scores"].update(conformity={"tensor": "nothing"})),
        "cannot be read",
    ),
    "unhashable name of a tensor": (
        damage_config(lambda config: config.update(outlier_detectors={"tensor": {}})),
        "cannot be read",
    ),
    "no encoders": (damage_config(lambda config: config.pop("encoders")), "cannot be read"),
    "link": (
        lambda folder: ((folder / "encoders" / "0").mkdir(parents=True), (folder / "encoders/0/x").mkdir()),
        "x is not a file of an encoder",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder_is_one_sentence(hub, tmp_path, damage, message):
    shutil.copytree(hub, tmp_path / "hub")
    damage(tmp_path / "hub")
    with pytest.raises(UserError, match=message) as raised:
        Predictor.from_pretrained(tmp_path / "hub", device="cpu")
    assert "\n" not in str(raised.value)


def test_a_name_without_folder_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"there is no folder .*/none: give a folder, or the name of a model"):
        Predictor.from_pretrained(tmp_path / "none")


def test_a_graph_of_torch_has_the_classes_and_the_same_probabilities(tmp_path):
    torch.manual_seed(0)
    model = FusionClassifier({"text": TinyText(dim=8), "title": TinyText(dim=8)}, Weighted, ["a", "b"])
    write(model, tmp_path / "model.ckpt")
    assert export("--ckpt_path", tmp_path / "model.ckpt", "--output", tmp_path / "out", "--format", "torch") == 0
    names = {"model.json": ""}
    graph = torch.export.load(tmp_path / "out" / "model.pt2", extra_files=names).module()
    assert json.loads(names["model.json"]) == {"classes": ["a", "b"], "inputs": ["text", "title"]}
    samples = [{"text": "one two", "title": "x"}, {"title": "three"}, {"text": "four"}]
    inputs = {name: model.processors[name]([sample.get(name, "") for sample in samples]) for name in ("text", "title")}
    outputs = graph(inputs, {name: torch.tensor([name in sample for sample in samples]) for name in inputs})
    expected = Predictor(model, device="cpu").predict(samples)
    for row, one in enumerate(expected):
        assert outputs["probabilities"][row].tolist() == pytest.approx(list(one.probabilities.values()), abs=1e-5)
        assert outputs["weights"][row].tolist() == pytest.approx(list(one.weights.values()), abs=1e-5)


def test_a_checkpoint_loses_the_state_of_the_optimizer_only(unexported, predictor, tmp_path):
    content = torch.load(unexported / "model.ckpt", weights_only=True)
    torch.save(
        content | {"optimizer_states": [{"state": torch.zeros(9)}], "callbacks": {"a": 1}}, tmp_path / "last.ckpt"
    )
    assert export("--ckpt_path", tmp_path / "last.ckpt", "--output", tmp_path / "out", "--format", "ckpt") == 0
    found = torch.load(tmp_path / "out" / "model.ckpt", weights_only=True)
    assert set(found) == set(content) - {"callbacks", "optimizer_states", "lr_schedulers"}
    assert Predictor.from_checkpoint(tmp_path / "out" / "model.ckpt", "cpu").predict(SAMPLES) == predictor.predict(
        SAMPLES
    )


@pytest.mark.parametrize("option", ["--quantize int8", "--metrics a.json", "--push me/model"])
def test_an_option_of_another_format_is_one_sentence(unexported, tmp_path, capsys, option):
    arguments = ["--ckpt_path", unexported / "model.ckpt", "--output", tmp_path / "out", "--format", "torch"]
    line = error_of(capsys, *arguments, *option.split())
    assert f"{option.split()[0]} belongs to --format" in line
    assert not (tmp_path / "out").exists()


def test_what_is_uploaded_and_what_is_said_without_a_token(hub, monkeypatch):
    """The hub itself is not reached."""
    calls = []

    class Api:
        def create_repo(self, name, private, exist_ok):
            calls.append((name, private))
            return "https://hub/me/model"

        def upload_folder(self, folder_path, repo_id):
            calls.append((folder_path, repo_id))
            if len(calls) > 2:
                raise OSError("401 Unauthorized")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert formats.push_folder(hub, "me/model") == "https://hub/me/model"
    assert calls == [("me/model", True), (hub, "me/model")]
    with pytest.raises(
        UserError, match=r"is written, but cannot be uploaded to me/model \(401 Unauthorized\): log in"
    ) as raised:
        formats.push_folder(folder := hub / "my pets", "me/model")
    command = str(raised.value).split("`")[-2]
    assert shlex.split(command) == ["hf", "upload", "--private", "me/model", str(folder)]
