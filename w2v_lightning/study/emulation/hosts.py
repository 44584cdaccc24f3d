"""Emulated hosts: network namespaces, each with its own link to a switch, which is a process (link.py).

The kernel's netem, which delays packets, is a module that many kernels lack. The switch shares the cores with
everything else: a packet costs about 20 us.
"""

import fcntl
import os
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from w2v_lightning.errors import InputError

TUN = Path("/dev/net/tun")
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
NAMESPACES = Path("/run/netns")
PREFIX = "w2v-study-"
DEVICE = "cable"
MTU = 9000  # like between instances of a cluster (AWS: 9001)
QUEUE = 10_000  # packets waiting for the switch; further ones are lost, and TCP waits 200 ms to send them again
LIMIT_S = 30.0


class Hosts:
    """Emulated hosts, as a context manager: a command that begins with `hosts.prefix(0)` runs on the first host.

    The hosts reach each other and their own loopback, and nothing else. They are removed at the end of the context;
    processes on them must have ended before.

    Args:
        count: number of hosts, at most 200.
        mbit_per_s: rate of each host's link, in either direction.
        delay_ms: one-way delay between two hosts.

    Raises:
        InputError: this machine or user cannot create network namespaces.
    """

    def __init__(self, count: int, mbit_per_s: float, delay_ms: float) -> None:
        self._count = count
        self._link = [str(mbit_per_s * 1e6 / 8), str(delay_ms / 1000)]
        self._names = [f"{PREFIX}{os.getpid()}-{i}" for i in range(count)]
        self._switch: subprocess.Popen | None = None

    def __len__(self) -> int:
        return self._count

    def prefix(self, host: int) -> list[str]:
        """Return the words that a command on this host begins with."""
        return ["ip", "netns", "exec", self._names[host]]

    def address(self, host: int) -> str:
        return f"10.213.7.{host + 1}"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of processes on the hosts: the network interface to use."""
        return {"GLOO_SOCKET_IFNAME": DEVICE, "NCCL_SOCKET_IFNAME": DEVICE, "TP_SOCKET_IFNAME": DEVICE}

    def __enter__(self) -> "Hosts":
        _check()
        remove_abandoned()
        ends: list[int] = []
        try:
            for host in range(self._count):
                ends.append(self._make(host))
            command = [sys.executable, "-m", "w2v_lightning.study.emulation.link", *self._link]
            command += [f"{self.address(host)}={end}" for host, end in enumerate(ends)]
            # The switch ends when its input is closed, so at the latest with this process.
            self._switch = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=ends)  # noqa: S603  (our own command)
        except BaseException:
            self.__exit__()
            raise
        finally:
            for end in ends:
                os.close(end)
        return self

    def __exit__(self, *_: object) -> None:
        if self._switch:
            assert self._switch.stdin is not None  # opened with PIPE
            self._switch.stdin.close()
            self._switch.wait(LIMIT_S)
        for name in self._names:
            if (NAMESPACES / name).exists():
                _ip("netns", "del", name)

    def _make(self, host: int) -> int:
        """Create a namespace with its end of a link; return the descriptor of the other end."""
        name = self._names[host]
        _ip("netns", "add", name)
        outside = f"w2v{os.getpid() % 10**6}-{host}"  # name until it moves into the namespace; at most 15 characters
        end = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
        try:
            fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH14x", outside.encode(), IFF_TUN | IFF_NO_PI))
            _ip("link", "set", outside, "netns", name)
            for step in (
                ("link", "set", outside, "name", DEVICE, "mtu", str(MTU), "txqueuelen", str(QUEUE)),
                ("addr", "add", f"{self.address(host)}/24", "dev", DEVICE),
                ("link", "set", DEVICE, "up"),
                ("link", "set", "lo", "up"),
            ):
                _ip("-n", name, *step)
        except BaseException:
            os.close(end)
            raise
        return end


def remove_abandoned() -> None:
    """Remove namespaces of processes that were killed before they could remove them."""
    for path in NAMESPACES.glob(f"{PREFIX}*"):
        pid = path.name.removeprefix(PREFIX).partition("-")[0]
        if not Path("/proc", pid).exists():
            with suppress(InputError):  # another process is removing it
                _ip("netns", "del", path.name)


def _check() -> None:
    if sys.platform != "linux" or os.geteuid() != 0 or not TUN.exists():
        raise InputError(
            f"Emulated hosts are network namespaces: they need Linux, root and {TUN}. Leave out the cells that have"
            " hosts, or run the study where these are."
        )


def _ip(*arguments: str) -> None:
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False, timeout=LIMIT_S)  # noqa: S603, S607
    except FileNotFoundError:
        raise InputError("Emulated hosts need the command `ip` (package iproute2).") from None
    if done.returncode:
        raise InputError(f"Emulated hosts: ip {' '.join(arguments)}: {done.stderr.strip()}")
