"""A local HTTP server that serves files from memory, with the faults of real servers."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """Serve ``files``; ``faults`` has the faults of the next requests of a path, one for each request.

    A fault is a status code or "stalls", "breaks off" (both after half of what was asked for), "slow",
    "without range" (the whole file is sent) or "chunked" (likewise, without its length).
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[int | str]] = {}
        self.requests: list[tuple[str, str | None]] = []  # path, range
        self.stopped = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> FileServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.close_connection = True
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        faults = self.server.faults.get(self.path) or [""]
        fault = faults.pop(0)
        content = self.server.files.get(self.path)
        if content is None or isinstance(fault, int):
            self.send_error(404 if content is None else int(fault))
            return
        first, _, last = asked.removeprefix("bytes=").partition("-") if asked else ("0", "", "")
        start, stop = int(first), min(int(last or len(content)) + 1, len(content))
        if fault in {"without range", "chunked"}:
            start, stop = 0, len(content)
        if start and start >= len(content):
            self.send_error(416)
            return
        is_part = start > 0 or stop < len(content)
        self.send_response(206 if is_part else 200)
        if is_part:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        if fault == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            content = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
            stop = len(content)
        else:
            self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        rest = content[start:stop]
        if fault in {"stalls", "breaks off"}:
            rest = rest[: len(rest) // 2]
        for i in range(0, len(rest), size := len(rest) // 4 + 1 if fault == "slow" else len(rest) + 1):
            self.wfile.write(rest[i : i + size])
            self.wfile.flush()
            self.server.stopped.wait(0.05 if fault == "slow" else 0)
        if fault == "stalls":
            self.server.stopped.wait(60)
