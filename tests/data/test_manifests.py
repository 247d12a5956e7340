"""Manifests of public data sets, from small folders of the same layout."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from fusion_pl.cli.run import run
from fusion_pl.data.class_folders import ENDINGS
from fusion_pl.data.manifests import CREMAD_EMOTIONS, CREMAD_SENTENCES, main, write_manifest
from fusion_pl.processors.image import FORMATS
from fusion_pl.types import UserError
from tests.commands import run_command

from ..parsing import ROOT

QUIET = ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false", "--data.num_workers", "0"]


def rows_of(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_cremad(folder, actors=20, sentences=("DFA", "IEO"), level="XX"):
    (folder / "AudioWAV").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for actor in range(1001, 1001 + actors):
        for sentence in sentences:
            for emotion in CREMAD_EMOTIONS:
                path = folder / f"AudioWAV/{actor}_{sentence}_{emotion}_{level}.wav"
                soundfile.write(path, rng.uniform(-0.1, 0.1, 1600), 16000)
    return folder


def write_memes(folder, **labels):
    """``labels`` has the labels of each file."""
    (folder / "img").mkdir(parents=True)
    number = 0
    for name, values in labels.items():
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for label in values:
                number += 1
                Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"img/{number:05d}.png")
                entry = {"id": number, "img": f"img/{number:05d}.png", "text": f'line one, "{number}"\nline two'}
                file.write(json.dumps(entry | ({} if label is None else {"label": label})) + "\n")
    return folder


def test_cremad(tmp_path):
    folder = write_cremad(tmp_path / "cremad")
    rows = rows_of(write_manifest("cremad", folder))
    assert len(rows) == 20 * 2 * 6
    splits = defaultdict(set)
    for row in rows:
        actor, sentence, emotion, _ = row["id"].split("_")
        assert row["audio"] == f"AudioWAV/{row['id']}.wav"
        assert (folder / row["audio"]).is_file()
        assert (row["actor"], row["text"], row["label"]) == (
            actor,
            CREMAD_SENTENCES[sentence],
            CREMAD_EMOTIONS[emotion],
        )
        splits[row["split"]].add(actor)
    assert {split: len(actors) for split, actors in splits.items()} == {"train": 14, "val": 3, "test": 3}
    assert sum(map(len, splits.values())) == 20  # no actor is in two splits
    assert splits["val"] != {"1001", "1002", "1003"}


def test_cremad_with_three_actors(tmp_path):
    rows = rows_of(write_manifest("cremad", write_cremad(tmp_path, actors=3, level="X")))
    assert sorted({(row["split"], row["actor"]) for row in rows}, key=lambda pair: pair[1]) != []
    assert len({(row["split"], row["actor"]) for row in rows}) == len({row["split"] for row in rows}) == 3


def test_the_codes_of_cremad():
    assert len(CREMAD_SENTENCES) == len(set(CREMAD_SENTENCES.values())) == 12
    assert sorted(CREMAD_EMOTIONS.values()) == ["anger", "disgust", "fear", "happiness", "neutral", "sadness"]


@pytest.mark.parametrize(
    ("layout", "name", "content", "message"),
    [
        ("cremad", "AudioWAV/song.wav", b"", r"song\.wav is not named like a recording of CREMA-D"),
        ("cremad", "AudioWAV/1001_DFA_XYZ_XX.wav", b"", r"1001_DFA_XYZ_XX\.wav is not named like"),
        (
            "cremad",
            "AudioWAV/1000_DFA_ANG_XX.wav",
            b"version https://git-lfs.github.com/spec/v1\n",
            r"1000_DFA_ANG_XX\.wav is a pointer .*: download the recordings with git lfs pull",
        ),
        ("cremad", "manifest.csv", b"mine", r"manifest\.csv exists and has another content: remove or rename it"),
        ("hateful_memes", "train.jsonl", b"{", r"train\.jsonl, line 1: expected an object with id.*, got '\{'"),
        ("hateful_memes", "dev.jsonl", b"\n[1]\n", r"dev\.jsonl, line 1: expected an object"),
        (
            "hateful_memes",
            "train.jsonl",
            b'{"id": 1, "img": "img/1.png", "text": "a", "label": 2}',
            r"train\.jsonl, line 1: expected an object with id, img, text and the label 0 or 1 in UTF-8, got '\{\"id",
        ),
        ("hateful_memes", "train.jsonl", b"", r"train\.jsonl has no row with a label"),
        ("hateful_memes", "train.jsonl", b'{"text": "caf\xe9"}', r"train\.jsonl, line 1: .* in UTF-8, got .*caf\ufffd"),
    ],
)
def test_another_layout_is_refused(layout, name, content, message, tmp_path):
    if layout == "cremad":
        write_cremad(tmp_path, actors=3)
    else:
        write_memes(tmp_path, train=[0, 1], dev=[0, 1])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        write_manifest(layout, tmp_path)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("cremad", r"AudioWAV has no \.wav file: give the folder of CREMA-D that contains AudioWAV"),
        ("hateful_memes", r"has no train\.jsonl: give the folder of Hateful Memes that contains img and train\.jsonl"),
    ],
)
def test_a_folder_without_the_data_set_is_refused(layout, message, tmp_path):
    with pytest.raises(UserError, match=message):
        write_manifest(layout, tmp_path / "nothing")


def write_pets(folder, *names):
    """Files of a folder per class; only texts have a content."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes("on a sofa,\r\nasleep ü\n".encode() if name.endswith(".txt") else b"")
    return folder


def test_a_folder_per_class(tmp_path, capsys):
    names = ["cat/1.JPG", "cat/1.wav", "cat/1.txt", "dog/1.ogg", "dog/2.flac", "dog/rex the 3rd.v2.tiff"]
    folder = write_pets(tmp_path, *names, "cat/.DS_Store", ".cache/1.jpg", "notes.md")
    assert main(["folder", str(folder)]) == 0
    path = folder / "manifest.csv"
    assert capsys.readouterr().out == f"{path}: 4 rows of 2 classes, with the columns text, image, audio, label\n"
    assert rows_of(path) == [
        {"text": "on a sofa,\nasleep ü", "image": "cat/1.JPG", "audio": "cat/1.wav", "label": "cat"},
        {"text": "", "image": "", "audio": "dog/1.ogg", "label": "dog"},
        {"text": "", "image": "", "audio": "dog/2.flac", "label": "dog"},
        {"text": "", "image": "dog/rex the 3rd.v2.tiff", "audio": "", "label": "dog"},
    ]


def test_a_folder_per_class_has_the_columns_that_occur(tmp_path):
    assert list(rows_of(write_manifest("folder", write_pets(tmp_path, "cat/1.wav", "dog/1.wav")))[0]) == [
        "audio",
        "label",
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"has no folder with files: expected a folder per class, such as .*/cat/rex\.jpg"),
        (["cat/1.heic"], r"cat/1\.heic has another format: .*\.jpeg.* \(image\); \.wav.*; convert it"),
        (["cat/1.m4a"], r"cat/1\.m4a has another format"),
        (["cat/old/1.jpg"], r"cat/old is a folder: .* move it elsewhere"),
        (["cat/caf\udce9.jpg"], r"the name of '.*cat/caf\\udce9\.jpg' is not in UTF-8, .*: rename the file"),
        (["cat/1.jpg", "cat/1.png"], r"cat/1\.jpg and .*cat/1\.png are both the image of one sample.*: rename one"),
    ],
)
def test_files_that_are_no_sample_of_a_class_are_refused(names, message, tmp_path):
    with pytest.raises(UserError, match=message):
        write_manifest("folder", write_pets(tmp_path, *names))


def test_a_text_file_in_another_encoding_is_refused(tmp_path):
    write_pets(tmp_path, "cat/1.txt")
    (tmp_path / "cat/1.txt").write_bytes("Café".encode("latin-1"))
    with pytest.raises(UserError, match=r"cat/1\.txt is not in UTF-8 .*: save it in UTF-8"):
        write_manifest("folder", tmp_path)


def test_the_endings_of_a_folder_per_class_are_those_of_the_processors():
    images = {ending for ending, name in Image.registered_extensions().items() if name in FORMATS}
    assert set(ENDINGS["image"]) <= images
    assert {f".{name.lower()}" for name in soundfile.available_formats()} >= {*ENDINGS["audio"]} - {".mp3"}


def test_two_actors_are_too_few(tmp_path):
    with pytest.raises(UserError, match="has 2 actors, expected at least 3"):
        write_manifest("cremad", write_cremad(tmp_path, actors=2))


@pytest.mark.parametrize(
    ("files", "counts"),
    [
        ({"train": [0, 1, 0], "dev_seen": [1, 0], "dev_unseen": [1], "test_seen": [1], "test_unseen": [0]}, (3, 2, 1)),
        ({"train": [0, 1, 0], "dev": [1, 0], "test": [None, None]}, (3, 2, 0)),
    ],
)
def test_hateful_memes(files, counts, tmp_path):
    rows = rows_of(write_manifest("hateful_memes", write_memes(tmp_path, **files)))
    assert tuple(sum(row["split"] == split for row in rows) for split in ("train", "val", "test")) == counts
    assert [row["label"] for row in rows[:3]] == ["not hateful", "hateful", "not hateful"]
    assert [row["id"] for row in rows[:3]] == ["1", "2", "3"]
    assert rows[1]["text"] == 'line one, "2"\nline two'
    assert all((tmp_path / row["image"]).is_file() for row in rows)


def test_the_command_writes_the_manifest_and_says_so(tmp_path):
    folder = write_memes(tmp_path / "memes", train=[0, 1], dev=[0, 1])
    code = "import runpy; runpy.run_module('fusion_pl.data.manifests', run_name='__main__')"
    done = run_command("hateful_memes", folder, code=code)
    assert done.returncode == 0
    assert done.stdout == f"{folder / 'manifest.csv'}: 2 train, 2 val, 0 test rows\n"
    assert not done.stderr
    assert main(["hateful_memes", str(folder)]) == 0  # the same content may be written again


def test_the_command_ends_with_one_sentence(tmp_path, capsys):
    assert main(["cremad", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'AudioWAV'} has no .wav file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", ["cremad", "hateful_memes"])
def test_the_configuration_reads_the_manifest(layout, tmp_path, monkeypatch):
    """With small encoders in the place of the pretrained ones."""
    monkeypatch.chdir(tmp_path)
    if layout == "cremad":
        folder, names = write_cremad(tmp_path / "data/cremad", actors=5, sentences=("DFA",)), ("Text", "Audio")
    else:
        memes = {"train": [0, 1] * 4, "dev_seen": [0, 1, 0], "test_seen": [1, 0]}
        folder, names = write_memes(tmp_path / "data/hateful_memes", **memes), ("Text", "Image")
    write_manifest(layout, folder)
    encoders = {name.lower(): {"class_path": f"fusion_pl.encoders.Tiny{name}"} for name in names}
    options = ["--config", str(ROOT / f"configs/{layout}.yaml"), "--model.encoders", json.dumps(encoders), *QUIET]
    assert run("fit", options) == 0
    assert run("test", [*options, "--ckpt_path", "best"]) == 0
