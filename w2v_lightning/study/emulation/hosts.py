"""Hosts as network namespaces, each with a link of its own to a switch that is a process (link.py).

The kernel's own means for a slow link are not everywhere: netem, which delays, is a module that many kernels lack. What
goes through the link is computed on the same cores as everything else: a packet costs some 20 us.
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
MTU = 9000  # as between instances of a cluster (AWS: 9001)
QUEUE = 10_000  # packets that wait for the switch; beyond, they are lost, and TCP waits 200 ms before it tries again
LIMIT_S = 30.0


class Hosts:
    """`with Hosts(2, mbit_per_s=100, delay_ms=2) as hosts:` and then what `hosts.prefix(0)` begins runs on the first.

    They see each other, their own loopback and nothing else. At the end they are gone; what runs on them must be ended
    before.

    Args:
        count: how many, at most 200.
        mbit_per_s: of each host's link, in either direction.
        delay_ms: from one host to another, one way.

    Raises:
        InputError: this machine, or this user, has no namespaces.
    """

    def __init__(self, count: int, mbit_per_s: float, delay_ms: float) -> None:
        self._count = count
        self._link = [str(mbit_per_s * 1e6 / 8), str(delay_ms / 1000)]
        self._names = [f"{PREFIX}{os.getpid()}-{i}" for i in range(count)]
        self._switch: subprocess.Popen | None = None

    def __len__(self) -> int:
        return self._count

    def prefix(self, host: int) -> list[str]:
        """What a command has to begin with."""
        return ["ip", "netns", "exec", self._names[host]]

    def address(self, host: int) -> str:
        return f"10.213.7.{host + 1}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables for what runs there: which interface to take."""
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
            # It ends when its input does, that is with this process at the latest.
            self._switch = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=ends)  # noqa: S603 (ourselves)
        except BaseException:
            self.__exit__()
            raise
        finally:
            for end in ends:
                os.close(end)
        return self

    def __exit__(self, *_: object) -> None:
        if self._switch:
            self._switch.stdin.close()
            self._switch.wait(LIMIT_S)
        for name in self._names:
            if (NAMESPACES / name).exists():
                _ip("netns", "del", name)

    def _make(self, host: int) -> int:
        """A namespace with its end of a link; the descriptor of the other end."""
        name = self._names[host]
        _ip("netns", "add", name)
        outside = f"w2v{os.getpid() % 10**6}-{host}"  # until it has moved; a name has 15 characters at most
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
    """Namespaces of processes that were killed before they could."""
    for path in NAMESPACES.glob(f"{PREFIX}*"):
        pid = path.name.removeprefix(PREFIX).partition("-")[0]
        if not Path("/proc", pid).exists():
            with suppress(InputError):  # another one is at it
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
