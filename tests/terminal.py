"""Commands in a real pseudo-terminal, where Ctrl-C reaches every process and a live bar is drawn."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time

FUSION_PL = [sys.executable, "-m", "fusion_pl"]
CTRL_C = b"\x03"


def _of_terminal(slave):
    os.login_tty(slave)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests themselves run in the background


class Terminal:
    """A command that runs in a terminal of its own.

    Args:
        command: with its arguments.
        columns: width of the terminal.
    """

    def __init__(self, command, columns=80, **options):
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.raw = b""
        environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": ""}
        self.process = subprocess.Popen(command, preexec_fn=lambda: _of_terminal(slave), env=environment, **options)
        os.close(slave)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.master)

    @property
    def text(self):
        return self.raw.decode(errors="replace").replace("\r\n", "\n")

    def press(self, keys):
        os.write(self.master, keys)

    def read(self, seconds):
        """Take in what the command writes; False once nobody holds the terminal any more."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self.master], [], [], left)[0]:
                return True
            try:
                new = os.read(self.master, 65536)
            except OSError:  # Linux: the last process that had the terminal is gone
                return False
            if not new:
                return False
            self.raw += new
        return True

    def until(self, done, seconds=120):
        """Read until ``done()``."""
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, f"nothing came: {self.text}"
            assert self.read(0.05), f"it ended: {self.text}"

    def ended(self, seconds=60):
        """Wait until the command and all that it started are gone, and return its exit code."""
        deadline = time.monotonic() + seconds
        while self.read(0.5):
            assert time.monotonic() < deadline, f"it goes on: {self.text}"
        return self.process.wait(timeout=10)
