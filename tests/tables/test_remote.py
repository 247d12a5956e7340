"""Remote files: read through a bounded cache, with retries, and only from where the user said."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image

from fusion_pl.cli.run import run
from fusion_pl.data import ManifestData
from fusion_pl.tables import remote
from fusion_pl.tables.remote import RemoteFiles, is_inside, join_url
from fusion_pl.tables.table import resolve_path
from fusion_pl.types import MissingFileError, UserError
from tests.data.test_base import Watch
from tests.data_check.test_command import data_check
from tests.file_server import FileServer
from tests.texts import results

SPLITS = ("train", "val", "test")


@pytest.fixture
def server():
    with FileServer() as server:
        yield server


@pytest.fixture(autouse=True)
def short_waits(monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "WAIT", 0.001)
    monkeypatch.setenv("FUSION_PL_CACHE", str(tmp_path / "caches"))
    remote._filesystem.cache_clear()
    yield
    remote._filesystem.cache_clear()


@pytest.fixture
def files(tmp_path):
    return RemoteFiles(tmp_path / "cache", 2**20)


def asked_for(server, path):
    return sum(name == path for name, _ in server.requests)


def _picture():
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, "PNG")
    return file.getvalue()


def serve(server, folder):
    server.files |= {f"/data/{quote(path.name)}": path.read_bytes() for path in folder.iterdir()}


def build(processors, manifest, stage="fit", **options):
    data = ManifestData(manifest, **{"num_workers": 0} | options)
    data.processors = processors
    data.setup(stage)
    return data


def assert_same_samples(data, other):
    for split in SPLITS:
        for sample, expected in zip(data.samples(split), other.samples(split), strict=True):
            assert (sample.id, sample.target, sample.inputs["text"]) == (
                expected.id,
                expected.target,
                expected.inputs["text"],
            )
            assert np.array_equal(np.asarray(sample.inputs["image"]), np.asarray(expected.inputs["image"]))
            assert torch.equal(sample.inputs["audio"].samples, expected.inputs["audio"].samples)


# ------------------------------------------------------------------------------------------------------------ the cache
def test_a_file_is_downloaded_once(server, files):
    server.files["/a.bin"] = b"content"
    for _ in range(3):
        assert Path(files.fetch(f"{server.url}/a.bin")).read_bytes() == b"content"
    assert asked_for(server, "/a.bin") == 1
    server.files["/a.bin"] = b"other"
    assert Path(files.fetch(f"{server.url}/a.bin", refresh=True)).read_bytes() == b"other"
    assert files.fetch(f"{server.url}/a.bin").endswith(".bin")
    assert len(os.listdir(files.folder)) == 1


@pytest.mark.parametrize("fault", [500, 503, 429, 408, "breaks off", "stalls"])
def test_a_transient_failure_is_repeated(server, files, fault, monkeypatch):
    if fault == "stalls":
        monkeypatch.setattr(remote, "TIMEOUT", 1.0)
    content = bytes(range(256)) * 40
    server.files["/a.bin"] = content
    server.faults["/a.bin"] = [fault] * 2
    assert Path(files.fetch(f"{server.url}/a.bin")).read_bytes() == content
    assert asked_for(server, "/a.bin") == 3


@pytest.mark.parametrize(
    ("fault", "reason"), [(503, "the server answers 503"), ("breaks off", ""), ("stalls", "no data for 0.3 s")]
)
def test_a_lasting_failure_is_one_sentence(server, files, fault, reason, monkeypatch):
    monkeypatch.setattr(remote, "TIMEOUT", 0.3)
    server.files["/a.bin"] = bytes(10_000)
    server.faults["/a.bin"] = [fault] * 9
    with pytest.raises(UserError, match=rf"^http://.*/a.bin cannot be read \({reason}.*\): check .*connection$"):
        files.fetch(f"{server.url}/a.bin")
    assert asked_for(server, "/a.bin") == remote.ATTEMPTS
    assert os.listdir(files.folder) == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_not_repeated(server, files, status):
    server.files["/a.bin"] = b"content"
    server.faults["/a.bin"] = [status] * 9
    with pytest.raises(UserError, match=rf"/a.bin cannot be read \(the server answers {status} "):
        files.fetch(f"{server.url}/a.bin")
    assert asked_for(server, "/a.bin") == 1
    with pytest.raises(UserError, match=rf"/a.bin cannot be read \(the server answers {status} "):
        files.exists(f"{server.url}/a.bin")


def test_a_missing_file_and_a_server_that_does_not_exist(server, files):
    with pytest.raises(MissingFileError, match=r"/none.bin does not exist$"):
        files.fetch(f"{server.url}/none.bin")
    assert asked_for(server, "/none.bin") == 1
    assert not files.exists(f"{server.url}/none.bin")
    server.files["/a.bin"] = b"content"
    server.faults["/a.bin"] = [503]
    assert files.exists(f"{server.url}/a.bin")
    for action in (files.fetch, files.exists):
        with pytest.raises(UserError, match=r"http://127.0.0.1:9/a cannot be read \(Cannot connect .*\): check"):
            action("http://127.0.0.1:9/a")


def test_a_protocol_without_its_package_is_one_sentence(files, monkeypatch):
    import fsspec

    def missing(protocol, **_):
        raise ImportError(f"Install s3fs to access {protocol}")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(UserError, match=r"s3://bucket/a.png cannot be read \(Install s3fs to access s3\)"):
        files.fetch("s3://bucket/a.png")


@pytest.mark.parametrize("url", ["http://[x/1.png", "http:///1.png"])
def test_a_url_that_is_none_is_the_error_of_a_row(tmp_path, processors, server, url, monkeypatch):
    waits = []
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    server.files["/b.png"] = _picture()
    cells = [url, f"{server.url}/b.png"]
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps({"image": cell, "label": "a"}) for cell in cells))
    outside, inside = (
        build({"image": processors["image"]}, str(tmp_path / "m.jsonl"), "predict", allow_outside=allow).samples(
            "predict"
        )
        for allow in (False, True)
    )
    assert f"row 1: {url} lies outside the root" in outside[0].bad_files[0]
    assert f"row 1, column 'image': {url} cannot be read" in inside[0].bad_files[0]
    assert "image" in inside[1].inputs
    assert waits == []
    with pytest.raises(UserError, match=r"row 1, column 'image': .* lies outside the root"):
        build({"image": processors["image"]}, str(tmp_path / "m.jsonl"))


@pytest.mark.parametrize("error", [TypeError("of a programmer"), Exception("no credentials")])
def test_only_errors_of_the_connection_are_tried_again(files, monkeypatch, error):
    calls = []

    def fail(protocol, **_):
        calls.append(protocol)
        raise error

    monkeypatch.setattr("fsspec.filesystem", fail)
    with pytest.raises(UserError, match=rf"s3://bucket/a.png cannot be read \({error}\)"):
        files.fetch("s3://bucket/a.png")
    assert len(calls) == 1


def test_a_copy_that_two_processes_reject_is_the_error_of_both(server, files, monkeypatch):
    server.files["/a"] = b"content"
    unlink = os.unlink

    def unlink_after_another_process(path):
        unlink(path)
        return unlink(path)

    def reject(path):
        raise ValueError(f"{path} is damaged")

    monkeypatch.setattr(os, "unlink", unlink_after_another_process)
    with pytest.raises(UserError, match=rf"^{server.url}/a is damaged$"):
        files.open(f"{server.url}/a", reject)


def test_the_cache_is_bounded_and_keeps_what_was_used_last(server, tmp_path):
    files = RemoteFiles(tmp_path / "cache", 100_000)
    for at in range(40):
        server.files[f"/{at}"] = bytes(5000)
        path = files.fetch(f"{server.url}/{at}")
        assert os.path.exists(path)
        os.utime(path, (at + 1, at + 1))  # file systems may have coarse times
        sizes = [entry.stat().st_size for entry in os.scandir(files.folder)]
        assert sum(sizes) <= 100_000
    count = len(server.requests)
    files.fetch(f"{server.url}/38")
    assert len(server.requests) == count
    files.fetch(f"{server.url}/0")
    assert len(server.requests) == count + 1


def test_other_files_in_the_folder_of_the_cache_are_neither_counted_nor_removed(server, files, tmp_path):
    own = RemoteFiles(tmp_path / "own", 10_000)
    own.folder.mkdir()
    (own.folder / "thesis.tex").write_bytes(bytes(9000))
    (own.folder / "notes").mkdir()
    for path in own.folder.iterdir():
        os.utime(path, (1, 1))
    server.files["/a"] = bytes(2000)
    own.fetch(f"{server.url}/a")
    assert sorted(path.name for path in own.folder.iterdir())[1:] == ["notes", "thesis.tex"]


@pytest.mark.parametrize("fault", ["", "chunked"])
def test_a_file_larger_than_half_of_the_cache_is_refused(server, tmp_path, fault):
    files = RemoteFiles(tmp_path / "cache", 2**20)
    server.files["/a"] = bytes(2**19 + 1)
    server.faults["/a"] = [fault] * 3
    with pytest.raises(UserError, match=r"/a is larger than 0.000488 GiB, half of the cache: raise data.rem"):
        files.fetch(f"{server.url}/a")
    assert os.listdir(files.folder) == []
    assert asked_for(server, "/a") == 1


def test_threads_download_the_same_file_at_once(server, files):
    content = bytes(range(256)) * 40
    server.files["/a"], server.faults["/a"] = content, ["slow"] * 16
    with ThreadPoolExecutor(16) as threads:
        paths = list(threads.map(files.fetch, [f"{server.url}/a"] * 16))
    assert {Path(path).read_bytes() for path in paths} == {content}
    assert os.listdir(files.folder) == [Path(paths[0]).name]


def fetch_all(files, urls):
    return [Path(files.fetch(url)).read_bytes() for url in urls]


def test_several_processes_share_a_cache(server, files):
    for at in range(20):
        server.files[f"/{at}"] = bytes([at]) * 50_000
    urls = [f"{server.url}/{at}" for at in range(20)]
    files.fetch(urls[0])  # also in this process, before the fork
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.starmap(fetch_all, [(files, urls)] * 3)
    assert found == [[bytes([at]) * 50_000 for at in range(20)]] * 3
    assert sum(entry.stat().st_size for entry in os.scandir(files.folder)) <= 2**20


def test_a_copy_that_another_process_removes_at_once_is_downloaded_again(server, files, monkeypatch):
    """Between the end of the download and its first use."""
    server.files["/a"] = b"content"
    replace, removed = Path.replace, []

    def replace_and_remove_once(partial, path):
        replace(partial, path)
        if not removed:
            removed.append(path)
            os.unlink(path)

    monkeypatch.setattr(Path, "replace", replace_and_remove_once)
    assert files.open(f"{server.url}/a", lambda path: Path(path).read_bytes()) == b"content"
    assert asked_for(server, "/a") == 2


def test_a_copy_that_another_process_removes_is_downloaded_again(server, files):
    server.files["/a"] = b"content"
    calls = []

    def read(path):
        calls.append(path)
        if len(calls) == 1:
            os.unlink(path)
        return Path(path).read_bytes()

    assert files.open(f"{server.url}/a", read) == b"content"
    with pytest.raises(UserError, match=r"was removed from .* before it was read: raise data.remote_cache_limit"):
        files.open(f"{server.url}/a", lambda path: Path(path).unlink() or Path(path).read_bytes())


# ----------------------------------------------------------------------------------------------------- inside, outside
@pytest.mark.parametrize(
    ("cell", "root", "expected"),
    [
        ("a/b.png", "https://h/data", "https://h/data/a/b.png"),
        ("a/../b ü#?.png", "https://h/data/", "https://h/data/b%20%C3%BC%23%3F.png"),
        ("%2e%2e/b", "http://h/data", "http://h/data/%252e%252e/b"),
        ("b ü.png", "s3://bucket/data", "s3://bucket/data/b ü.png"),
        ("https://h/data/b.png?size=3", "https://h/data", "https://h/data/b.png?size=3"),
        ("https://h/data2/b.png", "https://h/data", None),
        ("https://h/data/../b.png", "https://h/data", None),
        ("https://h/data/%2E%2e/b.png", "https://h/data", None),
        ("https://h/data/x\\..\\..\\b.png", "https://h/data", None),
        ("https://h@evil/b.png", "https://h", None),
        ("https://h.evil/b.png", "https://h", None),
        ("http://h/data/b.png", "https://h/data", None),
        ("../b.png", "https://h/data", None),
        ("/etc/passwd", "https://h/data", None),
        ("http://169.254.169.254/latest/meta-data", "/data", None),
        ("S3://bucket/b.png", "/data", None),
        ("hf://datasets/a/b/c.png", "/data", None),
        ("https://h/data/b.png", "/", None),
        ("http://[x/1.png", "/data", None),
        ("https://h/data/.\t./b.png", "https://h/data", None),
    ],
)
def test_urls_lie_inside_a_root_that_is_their_beginning(tmp_path, processors, cell, root, expected):
    path = resolve_path(cell, root)
    assert is_inside(path, root) == (expected is not None)
    assert expected is None or path == expected
    (tmp_path / "m.jsonl").write_text(json.dumps({"x": cell}))
    data = ManifestData(str(tmp_path / "m.jsonl"), root=root)
    data.processors = {"x": processors["image"]}
    assert bool(data._inputs.find_outside_paths()) == (expected is None)


def test_urls_need_the_word_of_the_user(toy, processors, server):
    serve(server, toy.folder)
    paths = [record["image"] for record in toy.records]
    for record in toy.records:
        record["image"] = join_url(f"{server.url}/data", record["image"])
    with pytest.raises(UserError, match=r"row 2, column 'image': http://.*png lies outside the root .*: set data.root"):
        build(processors, toy.write())
    assert server.requests == []
    data = build(processors, toy.write(), allow_outside=True)
    for record, path in zip(toy.records, paths, strict=True):
        record["image"] = path
    assert_same_samples(data, build(processors, toy.write()))


# ------------------------------------------------------------------------------------------------------- tables of URLs
def test_a_remote_table_with_relative_paths_gives_the_same_samples(toy, processors, server):
    expected = build(processors, toy.write())
    serve(server, toy.folder)
    data = build(processors, f"{server.url}/data/manifest.csv")
    assert data.root == f"{server.url}/data"
    assert_same_samples(data, expected)
    count = len(server.requests)
    assert_same_samples(pickle.loads(pickle.dumps(data.samples("val"))) and data, expected)
    assert len(server.requests) == count  # everything is in the cache
    assert [path.read_bytes() for path in data.files] == [(toy.folder / "manifest.csv").read_bytes()]
    toy.records.pop()
    server.files["/data/manifest.csv"] = Path(toy.write()).read_bytes()
    assert len(build(processors, f"{server.url}/data/manifest.csv").table) == 11


def test_the_root_of_a_table_whose_url_has_a_query_is_its_folder(toy, processors, server):
    """A signature is that of one file; cells of such a table are complete URLs unless the other files need none."""
    serve(server, toy.folder)
    url = f"{server.url}/data/manifest.csv?signature=ab/cd"
    server.files["/data/manifest.csv?signature=ab/cd"] = Path(toy.write()).read_bytes()
    data = build(processors, url)
    assert data.root == f"{server.url}/data"
    assert_same_samples(data, build(processors, toy.write()))


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_large_remote_table_has_one_temporary_copy(toy, processors, server, monkeypatch, tmp_path, suffix):
    """A copy of the cache may be removed at any time, the temporary one of a Parquet table is kept."""
    monkeypatch.setattr("fusion_pl.tables.table.MAX_PIPED_BYTES", 0)
    monkeypatch.setattr("fusion_pl.tables.read_table.MAX_MEMORY_BYTES", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    serve(server, toy.folder)
    content, columns = io.BytesIO(), pa.table({name: [row[name] for row in toy.records] for name in toy.records[0]})
    if suffix == "parquet":
        pq.write_table(columns, content)
    else:
        with pa.ipc.new_file(content, columns.schema) as writer:
            writer.write_table(columns)
    server.files[f"/data/m.{suffix}"] = content.getvalue()
    data = build(processors, f"{server.url}/data/m.{suffix}")
    samples = pickle.loads(pickle.dumps(data.samples("val")))
    shutil.rmtree(data.remote.folder)
    assert [sample.id for sample in samples] == [sample.id for sample in pickle.loads(pickle.dumps(samples))]
    assert len(list(tmp_path.glob("fusion-pl-*.arrow"))) == 1


def test_problems_of_a_remote_table_have_its_url(toy, processors, server):
    serve(server, toy.folder)
    toy.records[0]["image"] = "none.png"
    server.files["/data/manifest.csv"] = Path(toy.write()).read_bytes()
    url = f"{server.url}/data/manifest.csv"
    with pytest.raises(UserError) as caught:
        build(processors, url)
    assert str(caught.value) == (
        f"{url} has 1 problem:\n  row 2, column 'image': the file 'none.png' does not exist (looked for "
        f"{server.url}/data/none.png)"
    )
    server.files["/data/manifest.csv"] = b'text,label\n"a'
    with pytest.raises(UserError, match=rf"^{url}.*"):
        build(processors, url)
    with pytest.raises(UserError, match=rf"^{server.url}/data/none.csv does not exist$"):
        build(processors, f"{server.url}/data/none.csv")


def test_a_damaged_remote_file_is_named_by_its_url_and_downloaded_again(toy, processors, server):
    serve(server, toy.folder)
    server.files["/data/manifest.csv"] = Path(toy.write()).read_bytes()
    good, url = server.files["/data/0%20%C3%BC.png"], f"{server.url}/data/0%20%C3%BC.png"
    server.files["/data/0%20%C3%BC.png"] = good[:40]
    data = build(processors, f"{server.url}/data/manifest.csv")
    with pytest.raises(UserError, match=rf"manifest.csv, row 2, column 'image': {url} "):
        data.samples("train")[0]
    data = build(processors, f"{server.url}/data/manifest.csv", on_bad_file="missing")
    sample = data.samples("train")[0]
    assert "image" not in sample.inputs
    assert url in sample.bad_files[0]
    server.files["/data/0%20%C3%BC.png"] = good
    assert "image" in data.samples("train")[0].inputs


def test_a_server_that_fails_while_a_row_is_read(toy, processors, server):
    serve(server, toy.folder)
    server.files["/data/manifest.csv"] = Path(toy.write()).read_bytes()
    data = build(processors, f"{server.url}/data/manifest.csv", check_files=False)
    server.faults["/data/0%20%C3%BC.wav"] = [503] * 9
    with pytest.raises(
        UserError, match=r"row 2, column 'audio': .*0%20%C3%BC.wav cannot be read \(the server answers 503"
    ):
        data.samples("train")[0]


def test_lengths_of_recordings_that_several_rows_share(toy, processors, server):
    serve(server, toy.folder)
    for record in toy.records:
        record["audio"] = toy.records[5]["audio"]
    server.files["/data/manifest.csv"] = Path(toy.write()).read_bytes()
    server.faults["/data/5%20%C3%BC.wav"] = ["slow"] * 12
    data = build(processors, f"{server.url}/data/manifest.csv", bucket_by_length=True, check_files=False)
    characters = np.arange(1, 9)
    assert data.train_sampling.lengths == pytest.approx(1 + characters / characters.mean())


def test_lengths_need_neither_images_nor_files_that_do_not_exist(toy, processors, server):
    serve(server, toy.folder)
    toy.records[3]["audio"] = "none.wav"
    server.files["/data/manifest.csv"] = Path(toy.write()).read_bytes()
    options = {"bucket_by_length": True, "check_files": False, "on_bad_file": "missing"}
    data = build(processors, f"{server.url}/data/manifest.csv", **options)
    characters, seconds = np.arange(1, 9), np.array([1, 1, 1, 0, 1, 1, 1, 1])
    assert data.train_sampling.lengths == pytest.approx(seconds + characters / characters.mean())
    assert not [path for path, _ in server.requests if path.endswith(".png")]
    assert "does not exist" in data.samples("train")[3].bad_files[0]


def test_a_limit_must_be_positive():
    with pytest.raises(UserError, match=r"remote_cache_limit must be a number above 0, got 0.0"):
        ManifestData("a.csv", remote_cache_limit=0.0)


# ----------------------------------------------------------------------------------------------------------- a real run
def test_metrics_are_those_of_the_local_files(manifest, server, tmp_path, monkeypatch):
    serve(server, manifest.parent)
    encoders = {name: {"class_path": f"fusion_pl.encoders.Tiny{name.title()}"} for name in ("text", "image", "audio")}
    found = []
    for number, path in enumerate((str(manifest), f"{server.url}/data/manifest.csv")):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        config = {
            "seed_everything": 0,
            "model": {"encoders": encoders, "fusion": {"class_path": "fusion_pl.fusion.Mean"}},
            "data": {"class_path": "fusion_pl.data.ManifestData", "init_args": {"manifest": path, "num_workers": 1}},
            "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        run("fit", ["--config", "config.yaml"])
        found.append(results(Path("lightning_logs/version_0"))["metrics"])
    assert found[0] == found[1]
    with manifest.open() as file:
        used = [row for row in csv.DictReader(file) if row["split"] != "test"]
    names = {row[kind] for row in used for kind in ("image", "audio")} - {""}
    assert len(os.listdir(tmp_path / "caches/remote")) == len(names) + 1  # and the manifest


class Versions(dict):
    """Files of a server that delivers another version of one of them to each request."""

    def __init__(self, files, path, versions):
        super().__init__(files)
        self.path, self.versions = path, versions

    def get(self, path):
        return self.versions.pop(0) if path == self.path else super().get(path)


class OwnCopies(ManifestData):
    """Every process has a cache folder, as on several nodes; in one folder, both may read the second download."""

    def setup(self, stage):
        self.remote.folder /= str(self.trainer.global_rank)
        super().setup(stage)


@pytest.mark.parametrize("is_changed", [False, True])
def test_processes_that_read_different_versions_of_a_table_are_refused(toy, processors, server, is_changed):
    serve(server, toy.folder)
    version = Path(toy.write()).read_bytes()
    changed = version.replace(b"xxx,", b"xyz,") if is_changed else version
    server.files = Versions(server.files, "/data/manifest.csv", [version, changed])
    data = OwnCopies(f"{server.url}/data/manifest.csv", num_workers=0, check_files=False)
    data.processors = {"text": processors["text"]}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp_fork", fast_dev_run=True, enable_checkpointing=False, **quiet
    )
    if not is_changed:
        trainer.fit(Watch(), datamodule=data)
        return
    with pytest.raises(Exception, match=r"the processes have read different versions of http://.*manifest.csv: start"):
        trainer.fit(Watch(), datamodule=data)


def test_the_command_checks_remote_files(toy, server, tmp_path):
    """A damaged file is found, and one that the server removed after the table was checked."""
    server.files["/data/manifest.csv"] = Path(toy.write()).read_bytes()
    serve(server, toy.folder)
    server.files["/data/1%20%C3%BC.png"] = b""
    server.faults["/data/2%20%C3%BC.png"] = ["", 404, 404]  # after ``check_files``
    config = {
        "model": {
            "encoders": {"image": {"class_path": "fusion_pl.encoders.TinyImage", "init_args": {"dim": 8}}},
            "fusion": {"class_path": "fusion_pl.fusion.Mean"},
        },
        "data": {
            "class_path": "fusion_pl.data.ManifestData",
            "init_args": {"manifest": f"{server.url}/data/manifest.csv", "num_workers": 0},
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert data_check(tmp_path) == 1
    report = json.loads((tmp_path / "report/report.json").read_text())
    found = {line["row"]: line for line in report["findings"] if line["severity"] == "error"}
    assert found.keys() == {3, 4}
    assert {line["column"] for line in found.values()} == {"image"}
    assert f"{server.url}/" in found[3]["text"]
    assert "has 0 bytes" in found[3]["text"]
    assert f"{server.url}/data/2%20%C3%BC.png does not exist" in found[4]["text"]
