"""``fusion-pl export --format onnx``: the folder predicts as the checkpoint does, without torch."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from fusion_pl.encoders import TinyText
from fusion_pl.export import onnx_model
from fusion_pl.export.graph import ExportedModel
from fusion_pl.export.quantize import quantize_int8
from fusion_pl.fusion import Weighted
from fusion_pl.module import FusionClassifier
from fusion_pl.predict import Predictor
from fusion_pl.tasks import MultiClass, MultiLabel, Ordinal
from fusion_pl.types import UserError

from ..checkpoint.conftest import write
from .conftest import INPUTS, error_of, export


@pytest.fixture(scope="module")
def runner(folder):
    spec = importlib.util.spec_from_file_location("exported_runner", folder / "out" / "runner.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(folder / "out"), *sys.path])
        spec.loader.exec_module(module)
    return module


def assert_same(found, expected):
    """Compare a prediction of the runner with one of ``Predictor``."""
    assert expected.error is None
    assert found["label"] == expected.label
    assert found["probability"] == pytest.approx(expected.probability, abs=1e-5)
    assert found["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)


def test_every_subset_of_the_inputs_is_predicted_as_by_the_checkpoint(folder, predictor, runner):
    values = {
        "my text": "naïve 日本語, cut off after twelve bytes",
        "photo": str(folder / "photo.png"),
        "voice": str(folder / "voice.wav"),
        "sensors": str(folder / "sensors.npy"),
    }
    subsets = [names for size in range(1, 5) for names in itertools.combinations(INPUTS, size)]
    samples = [{name: values[name] for name in names} for names in subsets]
    samples += [{"my text": "", "sensors": [1, None, 3]}, {"my text": 3, "photo": None}]
    samples += [{"my text": "", "sensors": [None, None, None], "photo": np.float32("nan")}]
    expected = predictor.predict(samples)
    for size in (len(samples), 1):  # in one batch of padded values, and each alone
        for found, one in zip(runner.Runner(folder / "out").predict(samples, batch_size=size), expected, strict=True):
            assert_same(found, one)
    assert len({round(one.probability, 3) for one in expected}) > 10, "the inputs matter"


def test_a_sample_that_cannot_be_used_has_an_error_and_the_others_do_not(folder, runner):
    (folder / "bad.png").write_bytes(b"no image")
    samples = [{}, {"my text": "a"}, {"photo": str(folder / "bad.png")}, {"photo": "none.png"}, {"other": 1}]
    found = runner.Runner(folder / "out").predict(samples)
    assert [list(one) == ["error"] for one in found] == [True, False, True, True, True]
    assert "none of the model's inputs: my text, photo" in found[0]["error"]
    assert "'photo' cannot be used" in found[2]["error"]
    assert "no input 'other'" in found[4]["error"]
    assert found[3]["error"] == "the input 'photo' cannot be used: there is no file 'none.png'"


def test_the_runner_is_a_command_that_needs_no_torch(folder, predictor):
    """In a process in which torch and fusion_pl cannot be imported."""
    code = (
        "import runpy, sys; sys.modules.update(torch=None, fusion_pl=None); runpy.run_path('runner.py', {}, '__main__')"
    )
    words = [
        sys.executable,
        "-E",
        "-s",
        "-c",
        code,
        "--input",
        "my text=a=b",
        "--input",
        f"photo={folder / 'photo.png'}",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=folder / "out")
    assert_same(json.loads(done.stdout), predictor.predict({"my text": "a=b", "photo": str(folder / "photo.png")}))


@pytest.mark.parametrize("words", [["my text"], ["my text=a", "my text=b"]])
def test_the_runner_refuses_an_input_without_value_or_given_twice(words, runner, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["runner.py", *(part for word in words for part in ("--input", word))])
    with pytest.raises(SystemExit, match="2"):
        runner.main()
    assert f"write every --input as NAME=VALUE, each name once: {', '.join(words)}" in capsys.readouterr().err


def test_an_existing_folder_is_kept(folder, capsys):
    line = error_of(capsys, "--ckpt_path", folder / "model.ckpt", "--output", folder / "out")
    assert f"--output {folder / 'out'} exists" in line
    assert (folder / "out" / "model.onnx").exists()


def test_the_current_folder_is_refused_also_if_it_is_empty(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "--output . is the folder in which you are" in error_of(
        capsys, "--ckpt_path", folder / "model.ckpt", "--output", "."
    )


def test_a_missing_package_is_one_sentence(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    line = error_of(capsys, "--ckpt_path", folder / "model.ckpt", "--output", folder / "other")
    assert "--format onnx needs onnxscript: pip install 'fusion-pl[export]'" in line


def test_an_input_without_preprocessing_in_the_runner_is_one_sentence(folder, capsys, monkeypatch):
    monkeypatch.delattr("fusion_pl.encoders.tiny_audio.WaveformProcessor.runner_settings")
    line = error_of(capsys, "--ckpt_path", folder / "model.ckpt", "--output", folder / "other")
    assert "the input 'voice' cannot be processed without torch" in line
    assert "WaveformProcessor: use --format torch, or an encoder of docs/export.md" in line
    assert not list(folder.glob("other*")), "nothing is left"


def test_int8_weights_make_the_file_smaller_and_the_probabilities_almost_the_same(folder, predictor, runner, tmp_path):
    shutil.copytree(folder / "out", tmp_path / "int8")
    quantize_int8(predictor.model, tmp_path / "int8" / "model.onnx")
    sizes = [(path / "model.onnx").stat().st_size for path in (tmp_path / "int8", folder / "out")]
    assert sizes[0] < sizes[1]
    nodes = {node.op_type for node in onnx.load(tmp_path / "int8" / "model.onnx").graph.node}
    assert {"MatMulInteger", "STFT", "MatMul"} <= nodes, "linear layers are integers, the filter bank is not"
    samples = [
        {"my text": f"text {row}", "voice": str(folder / "voice.wav"), "sensors": [row, 2, 3]} for row in range(9)
    ]
    found = runner.Runner(tmp_path / "int8").predict(samples)
    for one, expected in zip(found, predictor.predict(samples), strict=True):
        assert one["probabilities"] == pytest.approx(expected.probabilities, abs=0.05)


def test_the_file_is_checked_with_single_inputs(folder, predictor, monkeypatch):
    onnx_model.check_outputs(folder / "out" / "model.onnx", predictor.model)
    other = replace(predictor.model.calibration, temperatures=[(["my text"], 0.1), (["photo", "voice"], 0.4)])
    monkeypatch.setattr(predictor.model, "calibration", other)
    with pytest.raises(UserError, match="the probabilities of the exported model differ by 0"):
        onnx_model.check_outputs(folder / "out" / "model.onnx", predictor.model)


def test_the_file_has_no_paths_of_this_machine(folder):
    content = (folder / "out" / "model.onnx").read_bytes()
    assert b".py" not in content


def test_several_labels_and_weights(tmp_path, runner, capsys):
    torch.manual_seed(0)
    task = MultiLabel(threshold="validation")
    model = FusionClassifier({"text": TinyText(dim=8)}, Weighted, ["a", "b", "c"], task=task)
    task.thresholds.copy_(torch.tensor([0.0, 0.48, 1.0]))  # always, by the text, never
    write(model, tmp_path / "model.ckpt")
    assert export("--ckpt_path", tmp_path / "model.ckpt", "--output", tmp_path / "out") == 0
    assert re.search(
        r"fusion_pl_preprocess\.py \(1\d\.\d kB\), .*preprocess\.json \(\d+ bytes\), runner\.py \(\d\.\d kB\)",
        capsys.readouterr().err,
    )
    samples = [{"text": text} for text in ("", "a", "one", "two words", "a longer text of words")]
    expected = Predictor(model, device="cpu").predict(samples)
    for found, one in zip(runner.Runner(tmp_path / "out").predict(samples), expected, strict=True):
        assert found["labels"] == one.labels
        assert found["weights"] == {"text": 1.0}
    assert all(one.labels[0] == "a" and "c" not in one.labels for one in expected)


@pytest.mark.parametrize("task", [MultiClass(), Ordinal(), MultiLabel()])
def test_the_graph_decides_as_the_task(task):
    torch.manual_seed(0)
    model = FusionClassifier({"text": TinyText(dim=8)}, Weighted, ["a", "b", "c"], task=task).eval()
    texts = ["", "one", "two words", "a longer text of words"]
    outputs = ExportedModel(model)({"text": model.processors["text"](texts)}, {"text": torch.ones(4, dtype=torch.bool)})
    for row, one in enumerate(Predictor(model, device="cpu").predict([{"text": text} for text in texts])):
        decision = outputs["decision"][row]
        names = (
            [name for name, value in zip("abc", decision, strict=True) if value] if decision.ndim else "abc"[decision]
        )
        assert one.names == list(names)
