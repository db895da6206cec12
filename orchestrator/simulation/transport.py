"""Messages and transfers between the orchestrator and nodes: TCP connections over the flow network.

Connections last for the whole job, as those of live workers do: there is no handshake per transfer. BBR keeps
its estimate of the path over idle times, so that only a direction's first transfers begin slowly; with cubic
an idle connection starts from the initial window again (RFC 5681, section 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod

from orchestrator.core.model import ORCHESTRATOR
from orchestrator.core.transfer import FRAME_BYTES, SEGMENT_BYTES, PathShape, sustained_bps
from orchestrator.simulation.clock import Action, Clock
from orchestrator.simulation.flows import FlowNetwork
from orchestrator.simulation.tcp import beginning, initial_window_bits, recovery_s, wire_bits
from orchestrator.simulation.world import Link, World

Pair = tuple[str, str]


@dataclass(slots=True, eq=False)
class Transfer:
    """A transfer under way; `flow` is its number while it flows."""

    then: Action
    flow: int | None = None
    cancelled: bool = False


class Transport:
    """Carries bytes over the world's links; what arrives calls back at that time."""

    def __init__(self, world: World, clock: Clock, *, coalesce_s: float = 0.0) -> None:
        self._clock = clock
        self._congestion_control = world.congestion_control
        number = {link.name: i for i, link in enumerate(world.links)}
        links = {link.name: link for link in world.links}
        self._links: dict[Pair, tuple[int, ...]] = {}
        self.shapes: dict[Pair, PathShape] = {}
        self.delays_s: dict[Pair, float] = {}
        for node in world.nodes:
            down, up = [links[name] for name in node.down], [links[name] for name in node.up]
            rtt_s = _delay_s(down) + _delay_s(up)
            for pair, names, path in (
                ((ORCHESTRATOR, node.name), node.down, down),
                ((node.name, ORCHESTRATOR), node.up, up),
            ):
                self._links[pair] = tuple(number[name] for name in names)
                self.shapes[pair] = _shape(path, rtt_s)
                self.delays_s[pair] = _delay_s(path)
        self._bound_bps = {
            pair: sustained_bps(shape, world.congestion_control) * FRAME_BYTES / SEGMENT_BYTES
            for pair, shape in self.shapes.items()
        }
        self._window_bits: dict[Pair, float] = {}
        self._first_window_bits = (
            inf if world.used_before and world.congestion_control == "bbr" else initial_window_bits()
        )
        self._flows = FlowNetwork([link.rate_bps for link in world.links], coalesce_s=coalesce_s)
        self._under_way: dict[int, Transfer] = {}

    @property
    def next_s(self) -> float:
        """Return when `advance` is to be called next."""
        return self._flows.next_s

    def advance(self) -> None:
        """Bring the clock to `next_s` and tell those whose transfer is complete."""
        self._clock.now_s = self._flows.next_s
        for flow in self._flows.advance(self._clock.now_s):
            self._under_way.pop(flow).then()

    def message(self, src: str, dst: str, then: Action) -> None:
        """Carry a message that fits one packet."""
        self._clock.after(self.delays_s[src, dst], then)

    def send(self, src: str, dst: str, payload_bytes: float, then: Action) -> Transfer:
        """Carry `payload_bytes`; `then` is called when the last has arrived."""
        pair, bits = (src, dst), wire_bits(payload_bytes)
        shape, rate_bps = self.shapes[pair], self._bound_bps[pair]
        begun = beginning(
            bits=bits,
            rate_bps=rate_bps,
            rtt_s=shape.rtt_s,
            window_bits=self._window_bits.get(pair, self._first_window_bits),
            loss_ratio=shape.loss_ratio,
        )
        late_s = recovery_s(bits=bits, rate_bps=rate_bps, rtt_s=shape.rtt_s, loss_ratio=shape.loss_ratio)
        if self._congestion_control == "bbr":
            self._window_bits[pair] = begun.window_bits
        transfer = Transfer(then)

        def flow() -> None:
            if not transfer.cancelled:
                transfer.flow = self._flows.start(
                    self._links[pair], bits=bits, bound_bps=rate_bps, now_s=self._clock.now_s
                )
                self._under_way[transfer.flow] = transfer

        self._clock.after(self.delays_s[pair] + begun.lost_s + late_s, flow)
        return transfer

    def cancel(self, transfer: Transfer) -> None:
        """Stop a transfer; nobody is told."""
        transfer.cancelled = True
        if transfer.flow is not None and self._under_way.get(transfer.flow) is transfer:
            del self._under_way[transfer.flow]
            self._flows.stop(transfer.flow, self._clock.now_s)

    def forget(self, node: str) -> None:
        """Begin with new connections to `node` from now on."""
        self._window_bits[ORCHESTRATOR, node] = initial_window_bits()
        self._window_bits[node, ORCHESTRATOR] = initial_window_bits()


def _delay_s(path: list[Link]) -> float:
    return sum(link.delay_s for link in path)


def _shape(path: list[Link], rtt_s: float) -> PathShape:
    return PathShape(
        rate_bps=min(link.rate_bps for link in path),
        rtt_s=rtt_s,
        loss_ratio=1 - prod(1 - link.loss_ratio for link in path),
    )
