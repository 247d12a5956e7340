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

from tests.commands import Command

FUSION_PL = [sys.executable, "-m", "fusion_pl"]
CTRL_C = b"\x03"


def _attach(slave):
    os.login_tty(slave)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored if the tests run in the background


class Terminal:
    """``fusion-pl`` in a new pseudo-terminal.

    Args:
        arguments: words after ``fusion-pl``.
        columns: width of the terminal.
        folder: current folder of the command.
        new_interpreter: whether the command imports the libraries.
    """

    def __init__(self, arguments, columns=80, folder=".", new_interpreter=False):
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.raw = b""
        terminal = {"TERM": "xterm-256color", "COLORTERM": ""}
        if new_interpreter:
            self.process = subprocess.Popen(
                [*FUSION_PL, *arguments], preexec_fn=lambda: _attach(slave), env=os.environ | terminal, cwd=folder
            )
        else:
            self.process = Command(arguments, os.ttyname(slave), folder, terminal)
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
        """Read the command's output; return False after every process has closed the terminal."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self.master], [], [], left)[0]:
                return True
            try:
                new = os.read(self.master, 65536)
            except OSError:  # Linux: the last process has closed the terminal
                return False
            if not new:
                return False
            self.raw += new
        return True

    def until(self, done, seconds=180):
        """Read until ``done()``."""
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, f"timeout: {self.text}"
            assert self.read(0.05), f"the command ended: {self.text}"

    def ended(self, seconds=180):
        """Wait for the command and its child processes, and return its exit code."""
        deadline = time.monotonic() + seconds
        while self.read(0.5):
            assert time.monotonic() < deadline, f"timeout: {self.text}"
        return self.process.wait(timeout=60)
