"""A node during a simulated job: what it is sent and sends, how long it computes, and when it dies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.core.model import ORCHESTRATOR
from orchestrator.simulation.clock import Action, Clock
from orchestrator.simulation.transport import Transfer, Transport
from orchestrator.simulation.world import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeUse:
    """What a job made of one node: seconds of computing, bytes and seconds of transfers, by direction."""

    compute_s: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0
    sending_s: float = 0.0
    receiving_s: float = 0.0


class NodeRun:
    """A node during the job; what was begun in an earlier life of it never ends.

    `holds` is the version that it holds, `spoils_next` whether its next update is garbage. A node that is
    gone or hangs does nothing of what it is asked.
    """

    def __init__(self, node: Node, train_s: float, *, clock: Clock, transport: Transport) -> None:
        """`train_s`: how long it computes in an epoch."""
        self.node = node
        self.train_s = train_s
        self.holds = -1
        self.gone = False
        self.spoils_next = False
        self._clock = clock
        self._transport = transport
        self._hung = False
        self._life = 0
        self._under_way: dict[int, Transfer] = {}
        self._compute_s = 0.0
        self._sent_bytes = self._received_bytes = 0
        self._sending_s = self._receiving_s = 0.0

    @property
    def use(self) -> NodeUse:
        """What the job made of it so far."""
        return NodeUse(
            compute_s=self._compute_s,
            sent_bytes=self._sent_bytes,
            received_bytes=self._received_bytes,
            sending_s=self._sending_s,
            receiving_s=self._receiving_s,
        )

    def down(self, payload_bytes: int, then: Action) -> None:
        """Send it something, and go on when it is there."""

        def received(seconds: float) -> None:
            self._received_bytes += payload_bytes
            self._receiving_s += seconds

        self._transfer(ORCHESTRATOR, self.node.name, payload_bytes, received, then)

    def up(self, payload_bytes: int, then: Action) -> None:
        """Have it send something, and go on when that is there."""

        def sent(seconds: float) -> None:
            self._sent_bytes += payload_bytes
            self._sending_s += seconds

        self._transfer(self.node.name, ORCHESTRATOR, payload_bytes, sent, then)

    def ask(self, then: Action) -> None:
        """Ask it for something: a message of no size."""
        self._later(self._transport.delays_s[ORCHESTRATOR, self.node.name], then)

    def confirm(self, then: Action) -> None:
        """Have it answer with a message of no size."""
        self._later(self._transport.delays_s[self.node.name, ORCHESTRATOR], then)

    def train(self, then: Action) -> None:
        """Have it compute an epoch."""

        def trained() -> None:
            self._compute_s += self.train_s
            then()

        self._later(self.train_s, trained)

    def hang(self) -> None:
        """Stop doing anything, without a word."""
        self._hung = True
        self._drop_work()

    def lose(self) -> None:
        """End; what it held is lost."""
        self.gone, self.holds = True, -1
        self._drop_work()

    def come_back(self) -> None:
        """Begin another life."""
        self.gone = self._hung = False

    def _transfer(
        self, src: str, dst: str, payload_bytes: int, account: Callable[[float], None], then: Action
    ) -> None:
        if self.gone or self._hung:
            return
        began_s = self._clock.now_s

        def done() -> None:
            del self._under_way[id(transfer)]
            account(self._clock.now_s - began_s)
            then()

        transfer = self._transport.send(src, dst, payload_bytes, done)
        self._under_way[id(transfer)] = transfer

    def _later(self, delay_s: float, then: Action) -> None:
        """Go on in `delay_s` if the node is still the same then, and answers."""
        if self.gone or self._hung:
            return
        life = self._life

        def go_on() -> None:
            if self._life == life and not self._hung:
                then()

        self._clock.after(delay_s, go_on)

    def _drop_work(self) -> None:
        self._life += 1
        for transfer in self._under_way.values():
            self._transport.cancel(transfer)
        self._under_way.clear()
