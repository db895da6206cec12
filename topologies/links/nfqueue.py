"""Delay and lose packets that the kernel queues for us: a delay line per direction.

A direction's packets leave in the order they came, also with jitter and when its delay is changed: a packet
is due at the later of (arrival + delay) and the due time of the one before it. Rate and queue are the
shaper's. Only IPv4 passes here (iptables sees nothing else); all else crosses the wire at once.
"""

from __future__ import annotations

import heapq
import random
import time
from collections import deque
from collections.abc import Iterable, Iterator
from math import inf
from pathlib import Path

from topologies.links.lateness import LatenessRecord
from topologies.links.netlink import PACKETS_AT_ONCE, QueueSocket, overflows
from topologies.links.wires import Direction
from topologies.specs import Impairment

MAX_WAITING_PACKETS = 60_000
_RELEASE_AT_ONCE = 256
_READS_AT_ONCE = 8
_LOOK_S = 0.001
_PAUSE_S = 0.0001
_QUEUES = Path("/proc/net/netfilter/nfnetlink_queue")


def needs_queue(does: Impairment) -> bool:
    """Tell whether a direction's packets must pass the delay line at all."""
    return does.delay_s > 0 or does.loss_ratio > 0


def rule(direction: Direction) -> str:
    """Return the iptables rule that queues a direction's packets; without a listener they are dropped."""
    return f"-A FORWARD -m physdev --physdev-in {direction.ingress} -j NFQUEUE --queue-num {direction.number}"


class DelayLine:
    """Packets of one direction under way."""

    __slots__ = ("delay_s", "dropped", "jitter_s", "last_due_s", "loss_ratio", "number", "packets", "waiting")

    def __init__(self, number: int, does: Impairment) -> None:
        self.number = number
        self.waiting: deque[tuple[float, int]] = deque()
        self.last_due_s = 0.0
        self.packets = 0
        self.dropped = 0
        self.change(does)

    def change(self, does: Impairment) -> None:
        """Treat packets that come from now on as `does` says."""
        self.delay_s, self.jitter_s, self.loss_ratio = does.delay_s, does.jitter_s, does.loss_ratio


class DelayLines:
    """All delay lines of the wires' namespace, on one kernel socket; `wait` says when to call `step`."""

    def __init__(self, directions: Iterable[Direction], *, seed: int) -> None:
        self.socket = QueueSocket()
        self.lateness = LatenessRecord()
        self._random = random.Random(seed)
        self._lines: dict[int, DelayLine] = {}
        self._heap: list[tuple[float, int]] = []
        self._received = 0
        self._shortest_s = inf
        for direction in directions:
            if needs_queue(direction.impairment):
                self.bind(direction.number, direction.impairment)
        self._overflow_at_start = self._overflow_now()

    def bind(self, number: int, does: Impairment) -> None:
        """Start a direction's line before its packets are queued."""
        self.socket.bind(number, max_packets=MAX_WAITING_PACKETS)
        self._lines[number] = DelayLine(number, does)
        self._find_shortest()

    def change(self, number: int, does: Impairment) -> None:
        """Change a direction's line, if it has one."""
        if number in self._lines:
            self._lines[number].change(does)
            self._find_shortest()

    def _find_shortest(self) -> None:
        self._shortest_s = min(line.delay_s - line.jitter_s for line in self._lines.values())

    def has_line(self, number: int) -> bool:
        """Tell whether a direction's packets are queued."""
        return number in self._lines

    def wait(self) -> tuple[bool, float | None]:
        """Return whether to wake up when packets come in, and how long to wait at most (None: forever).

        While packets are under way on lines that all delay long enough, what comes in can wait for the next
        look: the kernel has stamped it. That makes a few thousand wake-ups per second out of one per packet.
        """
        if not self._heap:
            return True, None
        until_due_s = max(self._heap[0][0] - time.monotonic(), 0.0)
        if self._shortest_s < 2 * _LOOK_S:
            return True, until_due_s
        return False, min(max(until_due_s, _PAUSE_S), _LOOK_S)

    def step(self) -> None:
        """Take in what has arrived, send on what is due."""
        self._take_in()
        self._send_on()
        self.socket.flush()

    def _take_in(self) -> None:
        now_s = time.monotonic()
        behind_s = time.time() - now_s
        lines, draw = self._lines, self._random.random
        for number, packet_id, arrived_unix_s in self._arrivals():
            line = lines[number]
            line.packets += 1
            if line.loss_ratio and draw() < line.loss_ratio:
                line.dropped += 1
                self.socket.drop(number, packet_id)
                continue
            arrived_s = now_s if arrived_unix_s is None else arrived_unix_s - behind_s
            due_s = arrived_s + line.delay_s
            if line.jitter_s:
                due_s += (2 * draw() - 1) * line.jitter_s
            if due_s < line.last_due_s:
                due_s = line.last_due_s
            line.last_due_s = due_s
            if not line.waiting:
                heapq.heappush(self._heap, (due_s, number))
            line.waiting.append((due_s, packet_id))

    def _arrivals(self) -> Iterator[tuple[int, int, float | None]]:
        for _ in range(_READS_AT_ONCE):
            before = self._received
            for packet in self.socket.receive():
                self._received += 1
                yield packet
            if self._received - before < PACKETS_AT_ONCE:
                return

    def _send_on(self) -> None:
        heap = self._heap
        now_s = time.monotonic()
        while heap and heap[0][0] <= now_s:
            oldest_due_s, number = heapq.heappop(heap)
            waiting = self._lines[number].waiting
            released = 0
            last_id = waiting[0][1]
            while waiting and waiting[0][0] <= now_s and released < _RELEASE_AT_ONCE:
                last_id = waiting.popleft()[1]
                released += 1
            self.socket.accept_up_to(number, last_id)
            self.lateness.add(now_s - oldest_due_s, released, now_s=now_s)
            if waiting:
                heapq.heappush(heap, (waiting[0][0], number))
            if released == _RELEASE_AT_ONCE:
                self.socket.flush()

    def packets(self) -> int:
        """Return how many packets have come in since the start."""
        return sum(line.packets for line in self._lines.values())

    def dropped(self) -> int:
        """Return how many packets were lost on purpose."""
        return sum(line.dropped for line in self._lines.values())

    def overflow_packets(self) -> int:
        """Return how many packets the kernel dropped because this process was too slow."""
        return self._overflow_now() - self._overflow_at_start

    def _overflow_now(self) -> int:
        return sum(overflows(_QUEUES.read_text(encoding="ascii")).values())

    def close(self) -> None:
        """Stop; packets under way are lost."""
        self.socket.close()
