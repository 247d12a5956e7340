from __future__ import annotations

import csv
import errno
import hashlib
import logging
import wave
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusion_pl.cli.run import run
from fusion_pl.data import Keypad, keypad
from fusion_pl.data.keypad import KEYPAD, generate_sample
from fusion_pl.types import UserError

SMALL = replace(KEYPAD, sizes={"train": 20, "val": 10, "test": 10})
WORDS = {0: "zero", 1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine"}
PAD = ("123", "456", "789", "*0#")  # as on every telephone
ROWS, COLUMNS = (697, 770, 852, 941), (1209, 1336, 1477)


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".keypad.lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows_of(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def samples():
    return [(index % 10, generate_sample(index % 10, np.random.default_rng([7, index]))) for index in range(1000)]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "keypad"
    data = Keypad(str(folder))
    assert data.classes == list("0123456789")
    assert not folder.exists()
    data.prepare_data()
    return folder, data


def test_the_bytes_are_reproducible(tmp_path):
    assert hashes(SMALL.write(tmp_path / "a").parent) == hashes(SMALL.write(tmp_path / "b").parent)


def test_a_sample_does_not_depend_on_the_size_of_the_data_set(tmp_path):
    few = hashes(replace(KEYPAD, sizes={"train": 10}).write(tmp_path / "few").parent)
    many = hashes(replace(KEYPAD, sizes={"train": 30}).write(tmp_path / "many").parent)
    media = {name for name in few if name.startswith(("images", "audio"))}
    assert media
    assert all(few[name] == many[name] for name in media)
    assert rows_of(tmp_path / "few/manifest.csv") == rows_of(tmp_path / "many/manifest.csv")[:10]


def test_cells_and_files_match_one_to_one(tmp_path):
    manifest = SMALL.write(tmp_path / "keypad")
    rows = rows_of(manifest)
    assert list(rows[0]) == ["id", "text", "image", "audio", "label", "split"]
    assert Counter(row["split"] for row in rows) == SMALL.sizes
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(row["text"] or row["image"] or row["audio"] for row in rows)
    named = {row[key] for row in rows for key in ("image", "audio")} - {""}
    written = {str(path.relative_to(manifest.parent)) for path in manifest.parent.glob("*/*")}
    assert named == written
    for name in named:
        if name.endswith(".png"):
            with Image.open(manifest.parent / name) as image:
                assert (image.size, image.mode, image.format) == ((32, 32), "L", "PNG")
        else:
            with wave.open(str(manifest.parent / name)) as sound:
                assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, 8000)
                assert 0.25 <= sound.getnframes() / 8000 <= 0.5


def test_ten_to_fifteen_percent_of_each_input_are_missing_and_classes_are_balanced(full):
    folder, data = full
    rows = rows_of(folder / "manifest.csv")
    assert Counter(row["split"] for row in rows) == {"train": 2000, "val": 500, "test": 500}
    for split in ("train", "val", "test"):
        mine = [row for row in rows if row["split"] == split]
        assert set(Counter(row["label"] for row in mine).values()) == {len(mine) // 10}
    for key in ("text", "image", "audio"):
        assert 0.10 < np.mean([not row[key] for row in rows]) < 0.15
    assert data.classes == list("0123456789")
    assert data.class_counts == [200] * 10


def test_most_texts_contain_their_word_exactly(samples):
    exact = np.mean([WORDS[digit] in sample.text for digit, sample in samples if sample.text])
    assert 0.4 < exact < 0.8


def test_images_of_a_digit_are_similar(samples):
    def centred_means(samples):
        means = [
            np.mean([sample.image for key, sample in samples if key == digit and sample.image], axis=0)
            for digit in WORDS
        ]
        return np.stack(means).reshape(10, -1) - np.mean(means, axis=0).ravel()

    likeness = np.corrcoef(centred_means(samples[:500]), centred_means(samples[500:]))[:10, 10:]
    assert likeness.argmax(axis=1).tolist() == list(range(10))


def test_sounds_contain_the_tone_pair_of_the_key_and_some_are_masked(samples):
    right = []
    for digit, sample in samples:
        if sample.audio is None:
            continue
        spectrum = np.abs(np.fft.rfft(sample.audio / 32768, n=8000))  # 1 Hz a bin
        low, high = (
            int(np.argmax([spectrum[hertz - 8 : hertz + 9].sum() for hertz in band])) for band in (ROWS, COLUMNS)
        )
        right.append(PAD[low][high] == str(digit))
    assert 0.85 < np.mean(right) < 0.95


def test_a_complete_data_set_is_not_rewritten(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        manifest = SMALL.write(tmp_path / "keypad")
    assert f"Writing the demo data (40 samples) to {tmp_path}/keypad" in caplog.text
    caplog.clear()
    before = {path: path.stat().st_mtime_ns for path in manifest.parent.rglob("*")}
    assert SMALL.write(tmp_path / "keypad") == manifest
    assert {path: path.stat().st_mtime_ns for path in manifest.parent.rglob("*")} == before
    assert not caplog.text


@pytest.mark.parametrize("lost", ["manifest.csv", "images/00002.png", "audio", ".keypad.json"])
def test_deleted_files_are_written_again_or_refused(tmp_path, lost):
    folder = SMALL.write(tmp_path / "keypad").parent
    complete = hashes(folder)
    for path in sorted((folder / lost).rglob("*")) or [folder / lost]:
        path.unlink()
    if lost == ".keypad.json":
        with pytest.raises(UserError, match="contains files that are not the demo data"):
            SMALL.write(folder)
        assert complete.keys() - hashes(folder).keys() == {lost}
    else:
        SMALL.write(folder)
        assert hashes(folder) == complete


def test_an_interrupted_run_leaves_no_manifest_and_the_next_one_completes(tmp_path):
    complete = hashes(SMALL.write(tmp_path / "complete").parent)
    generated = iter(range(7))

    def killed(digit, rng):
        if next(generated, None) is None:
            raise KeyboardInterrupt
        return generate_sample(digit, rng)

    with pytest.raises(KeyboardInterrupt):
        replace(SMALL, generate=killed).write(tmp_path / "keypad")
    assert any((tmp_path / "keypad/images").iterdir())
    assert not (tmp_path / "keypad/manifest.csv").exists()
    SMALL.write(tmp_path / "keypad")
    found = hashes(tmp_path / "keypad")
    assert found == complete


def test_an_older_version_is_rewritten_without_touching_files_of_the_user(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(keypad, "MISSING_PROBABILITY", 0.0)
        folder = replace(SMALL, version=0).write(tmp_path / "keypad").parent
    (folder / "images/mine.png").write_bytes(b"mine")
    SMALL.write(folder)
    assert (folder / "images/mine.png").read_bytes() == b"mine"
    (folder / "images/mine.png").unlink()
    assert hashes(folder) == hashes(SMALL.write(tmp_path / "new").parent)


def test_one_of_several_processes_writes(tmp_path):
    generated: list[int] = []

    def counting(digit, rng):
        generated.append(digit)
        return generate_sample(digit, rng)

    dataset = replace(SMALL, generate=counting)
    with ThreadPoolExecutor(3) as pool:
        manifests = set(pool.map(lambda _: dataset.write(tmp_path / "keypad"), range(3)))
    assert manifests == {tmp_path / "keypad/manifest.csv"}
    assert len(generated) == sum(SMALL.sizes.values())


def test_a_folder_with_other_files_is_refused_and_untouched(tmp_path):
    (tmp_path / "manifest.csv").write_text("mine")
    with pytest.raises(
        UserError, match=r"contains files that are not the demo data, such as manifest\.csv: give another"
    ):
        SMALL.write(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("manifest.csv", "mine")]


def test_another_size_is_refused_in_the_same_folder(tmp_path):
    before = hashes(SMALL.write(tmp_path / "keypad").parent)
    with pytest.raises(UserError, match=r"with sizes .*20.*, expected .*2000.*: give another folder, or"):
        KEYPAD.write(tmp_path / "keypad")
    assert hashes(tmp_path / "keypad") == before


def test_a_path_that_cannot_be_a_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"cannot be written to .*file.keypad \(.+\): make room for about 100 MB there, or"
    ):
        SMALL.write(tmp_path / "file" / "keypad")


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(UserError, match=r"cannot be written to .* \(No space left on device\)"):
        SMALL.write(tmp_path / "keypad")


def test_fit_writes_the_data_before_it_reads_it(tmp_path, monkeypatch):
    monkeypatch.setattr(Keypad, "dataset", SMALL)
    config = Path(__file__).parents[2] / "configs/keypad.yaml"
    monkeypatch.chdir(tmp_path)
    options = ["--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu", "--data.num_workers", "0"]
    assert run("fit", ["--config", str(config), *options]) == 0
    assert len(rows_of(tmp_path / "data/keypad/manifest.csv")) == 40
