"""A terminal that runs a command and remembers what it has shown."""

import os
import pty
import struct
import subprocess
from fcntl import ioctl
from termios import TIOCSWINSZ

import pyte


class Terminal:
    """An emulated terminal. `shown` has what was on it after each piece of output, as lines without spaces at the end.

    Lines that have scrolled out stay at the top, so that nothing is lost.
    """

    def __init__(self, columns, rows=24):
        self.columns, self.rows = columns, rows
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.5)
        self._stream = pyte.ByteStream(self._screen)
        self.shown = []

    def feed(self, output):
        self._stream.feed(output)
        above = ["".join(row[i].data for i in range(self.columns)) for row in self._screen.history.top]
        self.shown.append([line.rstrip() for line in [*above, *self._screen.display]])

    def run(self, command, **environment):
        """Run a command with all its output to this terminal; returns its exit status."""
        master, slave = pty.openpty()
        ioctl(slave, TIOCSWINSZ, struct.pack("HHHH", self.rows, self.columns, 0, 0))
        unset = {"COLUMNS", "LINES", "NO_COLOR", "PYTEST_CURRENT_TEST"}
        base = {key: value for key, value in os.environ.items() if key not in unset}
        with subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=base | {"TERM": "xterm-256color"} | environment
        ) as process:
            os.close(slave)
            self.raw = b""
            while piece := _read(master):
                self.raw += piece
                self.feed(piece)
        os.close(master)
        return process.returncode


def _read(descriptor):
    try:
        return os.read(descriptor, 65_536)
    except OSError:  # the other side was closed
        return b""
