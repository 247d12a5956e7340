from __future__ import annotations

import csv
import gzip
import hashlib
import io
import re
import socket
import struct
import tarfile
import wave
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusion_pl.cli.run import run
from fusion_pl.data import Digits, digits, digits_sources
from fusion_pl.data.digits_sources import Release
from fusion_pl.types import UserError

from ..file_server import FileServer
from ..parsing import ROOT

SPEAKERS = {"train": {"george", "jackson", "lucas", "nicolas"}, "val": {"theo"}, "test": {"yweweler"}}
NUMBER = 2  # recordings per speaker and digit
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def recording(rng):
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(rng.integers(-3000, 3000, rng.integers(1500, 2500)).astype("<i2").tobytes())
    return content.getvalue()


def archive_of(recordings):
    """A tar archive as GitHub makes it, with files that are not recordings."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, data in {"README.md": b"FSDD", "recordings/notes.txt": b"more", **recordings}.items():
            info = tarfile.TarInfo(f"free-spoken-digit-dataset-1.0.10/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return content.getvalue()


@pytest.fixture(scope="module")
def sources():
    """The layout of both sources, with random content: recordings, idx files, and the release that describes them."""
    rng = np.random.default_rng(0)
    names = [
        f"recordings/{digit}_{who}_{i}.wav"
        for digit in range(10)
        for who in set().union(*SPEAKERS.values())
        for i in range(NUMBER)
    ]
    recordings = {name: recording(rng) for name in names}
    digest = hashlib.sha256()
    for name in sorted(recordings):
        data = recordings[name]
        digest.update(f"{name.removeprefix('recordings/')} {len(data)}\n".encode())
        digest.update(data)
    idx = {}
    for split, count in (("train", 130), ("t10k", 30)):
        labels = rng.permutation(np.arange(count) % 10).astype(np.uint8)
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        idx[f"{split}-images-idx3-ubyte"] = struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes()
        idx[f"{split}-labels-idx1-ubyte"] = struct.pack(">II", 2049, count) + labels.tobytes()
    release = Release(
        recordings=NUMBER,
        recordings_sha256=digest.hexdigest(),
        pictures_sha256={name: hashlib.sha256(data).hexdigest() for name, data in idx.items()},
    )
    return recordings, idx, release


@pytest.fixture
def server(sources, monkeypatch):
    """A server of both sources, to which ``Digits`` goes."""
    recordings, idx, release = sources
    with FileServer() as server:
        release = replace(release, archive_url=f"{server.url}/v1.0.10.tar.gz", pictures_url=f"{server.url}/mnist")
        monkeypatch.setattr(digits_sources, "RELEASE", release)
        server.files["/v1.0.10.tar.gz"] = archive_of(recordings)
        server.files |= {f"/mnist/{name}.gz": gzip.compress(data) for name, data in idx.items()}
        yield server


@pytest.fixture
def offline(sources, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    release = replace(sources[2], archive_url=f"{url}/v1.0.10.tar.gz", pictures_url=f"{url}/mnist")
    monkeypatch.setattr(digits_sources, "RELEASE", release)


def rows_of(folder):
    with (folder / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def hashes(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".digits.lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def build(folder, sources):
    Digits(str(folder), str(sources)).prepare_data()
    return folder


def samples_of(path):
    with wave.open(str(path) if not isinstance(path, bytes) else io.BytesIO(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 8000)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(int)


def test_the_command_downloads_builds_and_trains(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false", "--data.num_workers", "0"]
    assert run("fit", ["--config", str(ROOT / "configs/digits.yaml"), *options]) == 0
    assert sorted(path for path, _ in server.requests) == sorted(server.files)
    assert run("test", ["--config", str(ROOT / "configs/digits.yaml"), *options, "--ckpt_path", "best"]) == 0
    assert len(server.requests) == len(server.files)
    readme = (tmp_path / "data/digits/README.md").read_text()
    assert all(word in readme for word in ("CC BY-SA 4.0", "CC BY-SA 3.0", "Zohar Jackson", "LeCun"))


def test_without_noise_the_files_are_the_sources_and_nothing_is_in_two_samples(server, sources, tmp_path, monkeypatch):
    for name, value in {
        "MISSING_PROBABILITIES": (0.0,) * 3, "WRONG_CHARACTERS": 0.0, "PIXEL_NOISE": 0.0, "OCCLUSION": 0.0,
        "DECIBELS": (200.0, 200.0),
    }.items():  # fmt: skip
        monkeypatch.setattr(digits, name, value)
    folder = build(tmp_path / "digits", tmp_path / "sources")
    recordings, idx, _ = sources
    originals = {name.removeprefix("recordings/"): samples_of(data) for name, data in recordings.items()}
    pictures = {
        idx[f"{split}-images-idx3-ubyte"][16 + 784 * i :][:784]: (split, str(label))
        for split in ("train", "t10k")
        for i, label in enumerate(idx[f"{split}-labels-idx1-ubyte"][8:])
    }
    rows, used = rows_of(folder), []
    for row in rows:
        with Image.open(folder / row["image"]) as image:
            split, digit = pictures.pop(image.tobytes())  # fails if it was used before
        assert (digit, split) == (row["label"], "t10k" if row["split"] == "test" else "train")
        assert len(row["text"]) == 12
        assert WORDS[int(digit)] in row["text"]
        sound = samples_of(folder / row["audio"])
        name, *others = [n for n, o in originals.items() if len(o) == len(sound) and abs(o - sound).max() <= 1]
        assert not others
        assert name[0] == digit
        assert name.split("_")[1] in SPEAKERS[row["split"]]
        used.append(name)
    assert sorted(used) == sorted(originals)
    assert Counter((row["split"], row["label"]) for row in rows) == {
        (split, str(digit)): len(names) * NUMBER for split, names in SPEAKERS.items() for digit in range(10)
    }
    assert [row["label"] for row in rows[:10]] != sorted(row["label"] for row in rows[:10])


def test_the_real_release_has_the_documented_sizes():
    assert digits.digits_dataset("sources").sizes == {"train": 2000, "val": 500, "test": 500}


def test_two_machines_write_the_same_files(server, tmp_path):
    first = hashes(build(tmp_path / "a", tmp_path / "sources"))
    assert hashes(build(tmp_path / "b", tmp_path / "others")) == first


def write_layout(layout, sources, folder):
    recordings, idx, _ = sources
    repository = folder / "free-spoken-digit-dataset-1.0.10"
    if layout == "unpacked":
        for name, data in recordings.items():
            (repository / name).parent.mkdir(parents=True, exist_ok=True)
            (repository / name).write_bytes(data)
        (repository / "recordings/.DS_Store").touch()
        (folder / "MNIST/raw").mkdir(parents=True)
        for name, data in idx.items():
            (folder / "MNIST/raw" / name).write_bytes(data)
    else:
        folder.mkdir()
        with zipfile.ZipFile(f"{repository}.zip", "w") as archive:
            for name, data in recordings.items():
                archive.writestr(f"{repository.name}/{name}", data)
        for name, data in idx.items():
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))


def test_a_downloaded_source_is_unpacked_once(server, tmp_path, monkeypatch):
    read, original = [], digits_sources._check_sha256
    monkeypatch.setattr(digits_sources, "_check_sha256", lambda path, *sums: read.append(path) or original(path, *sums))
    build(tmp_path / "a", tmp_path / "sources")
    assert len(read) == len(server.requests) == 5
    build(tmp_path / "b", tmp_path / "sources")
    assert len(read) == 10


@pytest.mark.parametrize("layout", ["unpacked", "packed"])
def test_local_copies_are_used(layout, server, sources, tmp_path):
    write_layout(layout, sources, tmp_path / "copies")
    before = hashes(tmp_path / "copies")
    found = hashes(build(tmp_path / "a", tmp_path / "copies"))
    assert not server.requests
    assert hashes(tmp_path / "copies") == before
    assert hashes(build(tmp_path / "b", tmp_path / "downloads")) == found


def test_without_connection_one_sentence_lists_what_is_missing(offline, sources, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_layout("packed", sources, tmp_path / "copies")
    (tmp_path / "copies/train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"\(no connection: .*save 5 files in data/digits-sources .*: \S+(, \S+){4}$"):
        Digits().prepare_data()
    with pytest.raises(UserError, match=r"save 1 file in copies \(data\.sources\) .*: \S*/mnist/train-labels\S*gz$"):
        Digits(sources="copies").prepare_data()
    with pytest.raises(UserError) as error:
        Digits(sources="none").prepare_data()
    Path("saved").mkdir()
    contents = {"v1.0.10.tar.gz": archive_of(sources[0])} | {
        f"{name}.gz": gzip.compress(data) for name, data in sources[1].items()
    }
    for url in str(error.value).partition(" download: ")[2].split(", "):
        name = url.rpartition("/")[2]  # under which wget saves it
        Path("saved", name).write_bytes(contents[name])
    Digits(folder="from-saved", sources="saved").prepare_data()
    write_layout("unpacked", sources, tmp_path / "more")
    Digits(sources="more").prepare_data()
    Digits(sources="nowhere").prepare_data()  # the data set is complete


def test_without_connection_the_command_ends_with_one_sentence(offline, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("fit", ["--config", str(ROOT / "configs/digits.yaml")]) == 2
    printed = capsys.readouterr().err
    assert "cannot be downloaded (no connection" in printed
    assert "Traceback" not in printed


def change_recordings(archive, change):
    """Pack the recordings again, as ``change`` returns them."""
    with zipfile.ZipFile(io.BytesIO(archive)) as old:
        contents = {name: old.read(name) for name in old.namelist()}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as new:
        for name, content in change(contents).items():
            new.writestr(name, content)
    return packed.getvalue()


def drop_first(contents):
    return dict(list(contents.items())[1:])


def shorten_first(contents):
    first = next(iter(contents))
    return contents | {first: contents[first][:-2]}


DAMAGES = {
    "truncated archive": ("archive", lambda data: data[:9000], "cannot be read"),
    "page instead of an archive": ("archive", lambda _: b"<html>Not found</html>", "cannot be read"),
    "lost recording": (
        "archive",
        lambda data: change_recordings(data, drop_first),
        r"lacks 1 of the 120 recordings of version 1\.0\.10, such as \d_\w+_\d\.wav",
    ),
    "shorter recording": (
        "archive",
        lambda data: change_recordings(data, shorten_first),
        r"has another content than expected \(SHA-256 \w{64}, expected \w{64}\)",
    ),
    "truncated pictures": ("pictures", lambda data: data[:-20], "cannot be read"),
    "other pictures": ("pictures", lambda data: gzip.compress(gzip.decompress(data)[:-1] + b"\0\0"), "another content"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_copy_is_refused(kind, server, sources, tmp_path):
    write_layout("packed", sources, tmp_path / "copies")
    which, change, message = DAMAGES[kind]
    name = {"archive": "free-spoken-digit-dataset-1.0.10.zip", "pictures": "train-images-idx3-ubyte.gz"}[which]
    path = tmp_path / "copies" / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=f"{re.escape(name)}.* {message}.*: replace it by http://"):
        build(tmp_path / "digits", tmp_path / "copies")
    assert not (tmp_path / "digits/manifest.csv").exists()


def test_a_copy_that_is_a_folder_is_refused(server, sources, tmp_path):
    write_layout("packed", sources, tmp_path / "copies")
    path = tmp_path / "copies/t10k-labels-idx1-ubyte.gz"
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"t10k-labels\S+ cannot be read \(.*Is a directory.*: replace it by"):
        build(tmp_path / "digits", tmp_path / "copies")


def test_a_damaged_download_is_refused_and_the_next_run_succeeds(server, tmp_path):
    good = server.files["/v1.0.10.tar.gz"]
    server.files["/v1.0.10.tar.gz"] = good[:5000]
    with pytest.raises(
        UserError, match=r"v1\.0\.10\.tar\.gz is not the expected file \(.* cannot be read .*save 5 files"
    ):
        build(tmp_path / "digits", tmp_path / "sources")
    server.files["/v1.0.10.tar.gz"] = good
    build(tmp_path / "digits", tmp_path / "sources")


def test_a_folder_for_downloads_that_cannot_be_made_is_one_sentence(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"sources cannot be saved in .*file/sources \(.*\): name another folder as data"
    ):
        build(tmp_path / "digits", tmp_path / "file/sources")


@pytest.fixture(scope="module")
def generated(sources, tmp_path_factory):
    """1,200 samples of ten draws of each sample, and the same samples without noise."""
    folder = tmp_path_factory.mktemp("sources") / "copies"
    write_layout("unpacked", sources, folder)
    generator = digits.DigitsGenerator(folder, sources[2])
    generator.prepare()
    noisy = [generator(i, np.random.default_rng([i, draw])) for i in range(120) for draw in range(10)]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"MISSING_PROBABILITIES": (0.0,) * 3, "PIXEL_NOISE": 0.0, "OCCLUSION": 0.0}.items():
            patch.setattr(digits, name, value)
        patch.setattr(digits, "DECIBELS", (200.0, 200.0))
        clean = [generator(i, np.random.default_rng(0)) for i in range(120) for _ in range(10)]
    return noisy, clean


def test_inputs_are_missing_as_often_as_documented(generated):
    noisy, _ = generated
    missing = np.array([[value is None for value in (s.text, s.image, s.audio)] for s in noisy])
    assert not missing.all(1).any()
    assert missing.mean(0) == pytest.approx([0.15, 0.15, 0.1], abs=0.035)  # more than three standard deviations


def test_text_is_a_word_with_wrong_characters_between_letters(generated):
    for length in (3, 5):
        right = []
        for sample in generated[0]:
            word = WORDS[int(sample.label)]
            if sample.text is not None and len(word) == length:
                assert len(sample.text) == 12
                assert sample.text.isalpha()
                right.append(
                    max(sum(a == b for a, b in zip(word, sample.text[i:], strict=False)) for i in range(13 - length))
                )
        # A wrong character is right in one case of 26; where none is right at the place of the word, others may be.
        assert np.mean(np.array(right) == length) == pytest.approx((1 - 0.2 * 25 / 26) ** length, abs=0.08)


def test_pictures_have_noise_and_a_grey_square(generated):
    deviations, covered = [], []
    for noisy, clean in zip(*generated, strict=True):
        if noisy.image is not None:
            before, after = np.asarray(clean.image) / 255, np.asarray(noisy.image) / 255
            middle = abs(before - 0.5) < 0.05  # where neither black nor white cuts the noise off, or the square is grey
            deviations.append((after - before)[middle])
            covered.append(abs(before - after))
    assert np.concatenate(deviations).std() == pytest.approx(0.3, rel=0.1)
    assert np.mean(covered) > 0.1


def test_recordings_have_pink_noise_at_the_documented_ratio(generated):
    ratios, powers = [], []
    for noisy, clean in zip(*generated, strict=True):
        if noisy.audio is not None and abs(noisy.audio.astype(int)).max() < 32767:  # not scaled down
            noise = noisy.audio.astype(float) - clean.audio
            ratios.append(20 * np.log10(clean.audio.std() / noise.std()))
            spectrum = abs(np.fft.rfft(noise, 4096)) ** 2
            powers.append(spectrum[16:2048] / spectrum[16:2048].sum())
    assert min(ratios) > 4.9
    assert max(ratios) < 20.1
    assert np.mean(ratios) == pytest.approx(12.5, abs=0.6)
    slope = np.polyfit(np.log(np.arange(16, 2048)), np.log(np.mean(powers, 0)), 1)[0]
    assert slope == pytest.approx(-1, abs=0.1)  # power proportional to 1/f
