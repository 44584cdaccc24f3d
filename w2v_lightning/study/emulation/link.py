"""Switch between emulated hosts, as a process: it reads each packet from one link and writes it to another one later.

    python -m w2v_lightning.study.emulation.link BYTES_PER_S DELAY_S ADDRESS=DESCRIPTOR ...

A packet first goes through its sender's link, then through its receiver's; each carries a number of bytes a second, one
packet after the other. Then it waits for the delay. The process ends when its standard input does.
"""

import heapq
import os
import select
import socket
import sys
import time

PACKET_BYTES = 65535
# Limit of what a sender has in flight on its own link; further packets stay in its queue, where TCP notices.
BACKLOG_S = 0.02


class Switch:
    """Links and the packets in flight.

    Args:
        bytes_per_s: of each link, in either direction.
        delay_s: one way, from host to host.
        links: descriptor of each host's link, by its address (4 bytes).
    """

    def __init__(self, bytes_per_s: float, delay_s: float, links: dict[bytes, int]) -> None:
        self._bytes_per_s = bytes_per_s
        self._delay_s = delay_s
        self._links = links
        self._sent_s = dict.fromkeys(links.values(), 0.0)  # time at which a link is free again, upwards
        self._received_s = dict.fromkeys(links.values(), 0.0)  # and downwards
        self._under_way: list[tuple[float, int, int, bytes]] = []  # due, number, link, packet
        self._number = 0

    def run(self, end: int) -> None:
        """Forward packets until the descriptor `end` is closed."""
        while True:
            now_s = time.monotonic()
            self._deliver(now_s)
            ready, _, _ = select.select([end, *self._open(now_s)], [], [], self._pause_s(now_s))
            if end in ready:
                return
            for link in ready:
                self._take(link)

    def _open(self, now_s: float) -> list[int]:
        return [link for link, sent_s in self._sent_s.items() if sent_s - now_s < BACKLOG_S]

    def _pause_s(self, now_s: float) -> float:
        """Return how long to wait for the next packet, at most until a full link must be looked at again."""
        due_s = self._under_way[0][0] if self._under_way else now_s + 1.0
        return min(max(0.0, due_s - now_s), BACKLOG_S if len(self._open(now_s)) < len(self._links) else 1.0)

    def _take(self, sender: int) -> None:
        packet = os.read(sender, PACKET_BYTES)
        receiver = self._links.get(packet[16:20]) if packet[0] >> 4 == 4 else None  # destination address of IPv4
        if receiver is None:  # multicast or IPv6: no receiver
            return
        takes_s = len(packet) / self._bytes_per_s
        self._sent_s[sender] = max(time.monotonic(), self._sent_s[sender]) + takes_s
        self._received_s[receiver] = max(self._sent_s[sender], self._received_s[receiver] + takes_s)
        self._number += 1  # packets due at the same time keep their order
        due_s = self._received_s[receiver] + self._delay_s
        heapq.heappush(self._under_way, (due_s, self._number, receiver, packet))

    def _deliver(self, now_s: float) -> None:
        while self._under_way and self._under_way[0][0] <= now_s:
            *_, receiver, packet = heapq.heappop(self._under_way)
            try:
                os.write(receiver, packet)
            except OSError:  # the host has ended or its queue is full: the packet is lost, as on a real network
                continue


def main(arguments: list[str]) -> None:
    bytes_per_s, delay_s, *links = arguments
    pairs = (link.split("=") for link in links)
    by_address = {socket.inet_aton(address): int(descriptor) for address, descriptor in pairs}
    Switch(float(bytes_per_s), float(delay_s), by_address).run(sys.stdin.fileno())


if __name__ == "__main__":
    main(sys.argv[1:])
