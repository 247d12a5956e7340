from __future__ import annotations

import errno
import multiprocessing
import socket
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fusion_pl.data.download import DownloadError, download
from fusion_pl.types import UserError

from ..file_server import FileServer

CONTENT = np.random.default_rng(0).bytes(300_000)  # several chunks


@pytest.fixture
def server():
    with FileServer() as server:
        server.files["/data.bin"] = CONTENT
        yield server


def check(path):
    if path.read_bytes() != CONTENT:
        raise UserError(f"{path} is wrong")


def fetch(server, folder, **kwargs):
    path = folder / "new" / "data.bin"
    download(f"{server.url}/data.bin", path, check, **{"timeout": 30.0, "wait": 0.0} | kwargs)
    assert path.read_bytes() == CONTENT
    assert {file.name for file in path.parent.iterdir()} <= {"data.bin", ".data.bin.lock"}


def test_a_file_is_downloaded_once(server, tmp_path):
    fetch(server, tmp_path)
    fetch(server, tmp_path)
    assert server.requests == [("/data.bin", None)]


@pytest.mark.parametrize("fault", ["slow", "chunked"])
def test_a_slow_server_and_one_that_announces_no_length(server, tmp_path, fault):
    server.faults["/data.bin"] = [fault]
    fetch(server, tmp_path, timeout=30.0)


@pytest.mark.parametrize(("fault", "timeout"), [("breaks off", 60.0), ("stalls", 1.0)])
def test_the_next_attempt_continues(server, tmp_path, fault, timeout):
    server.faults["/data.bin"] = [fault, fault]
    fetch(server, tmp_path, timeout=timeout)
    half, rest = len(CONTENT) // 2, len(CONTENT) - len(CONTENT) // 2
    assert [asked for _, asked in server.requests] == [None, f"bytes={half}-", f"bytes={half + rest // 2}-"]


def test_the_next_command_continues(server, tmp_path):
    server.faults["/data.bin"] = ["breaks off"]
    with pytest.raises(DownloadError, match=r"data\.bin cannot be downloaded \(.* 150,000 of 300,000 bytes"):
        fetch(server, tmp_path, attempts=1)
    assert not (tmp_path / "new/data.bin").exists()
    fetch(server, tmp_path)
    assert server.requests[1:] == [("/data.bin", "bytes=150000-")]


def test_a_process_that_is_killed_loses_nothing(server, tmp_path):
    server.faults["/data.bin"] = ["stalls"]
    path = tmp_path / "new" / "data.bin"
    process = multiprocessing.get_context("fork").Process(target=download, args=(f"{server.url}/data.bin", path, print))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside the threads of the server
        process.start()
    partial = path.with_name("data.bin.partial")
    while not (partial.exists() and partial.stat().st_size > 100_000):
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    received = partial.stat().st_size
    fetch(server, tmp_path)
    assert [asked for _, asked in server.requests] == [None, f"bytes={received}-"]


def test_a_server_that_does_not_resume_sends_all_of_it(server, tmp_path):
    server.faults["/data.bin"] = ["breaks off", "without range"]
    fetch(server, tmp_path)


@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 7, 1000])
def test_a_partial_file_with_another_content_is_replaced(server, tmp_path, length):
    """It may be that of an older file, and have any length."""
    (tmp_path / "new").mkdir()
    (tmp_path / "new/data.bin.partial").write_bytes(bytes(length))
    fetch(server, tmp_path)


def test_a_complete_partial_file_is_checked_and_used(server, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new/data.bin.partial").write_bytes(CONTENT)
    fetch(server, tmp_path)
    assert len(server.requests) == 1


def test_a_server_error_is_tried_again(server, tmp_path):
    server.faults["/data.bin"] = [503, 500]
    fetch(server, tmp_path)


@pytest.mark.parametrize("code", [403, 404])
def test_a_refusal_is_not_tried_again(server, tmp_path, code):
    server.faults["/data.bin"] = [code]
    with pytest.raises(DownloadError, match=f"cannot be downloaded .the server answers {code} "):
        fetch(server, tmp_path)
    assert len(server.requests) == 1


@pytest.mark.parametrize(("fault", "reason"), [("stalls", "no data for 0.2 s"), (502, "502 Bad Gateway")])
def test_attempts_end(server, tmp_path, fault, reason):
    server.faults["/data.bin"] = [fault] * 9
    with pytest.raises(DownloadError, match=reason):
        fetch(server, tmp_path, timeout=0.2, attempts=3)
    assert len(server.requests) == 3


def test_wrong_content_is_removed(server, tmp_path):
    server.files["/data.bin"] = CONTENT[::-1]
    with pytest.raises(DownloadError, match=r"data\.bin is not the expected file \(.* is wrong\)"):
        fetch(server, tmp_path)
    assert [file.name for file in (tmp_path / "new").iterdir()] == [".data.bin.lock"]


def test_no_connection(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(DownloadError, match=r"no connection: .*refused"):
        download(f"http://127.0.0.1:{port}/data.bin", tmp_path / "data.bin", check)


def test_a_full_disk_is_not_tried_again(server, tmp_path, monkeypatch):
    def write(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fusion_pl.data.download._receive", write)
    with pytest.raises(DownloadError, match="No space left on device"):
        fetch(server, tmp_path, wait=60.0)


def test_one_of_several_processes_downloads(server, tmp_path):
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: fetch(server, tmp_path), range(3)))
    assert len(server.requests) == 1
