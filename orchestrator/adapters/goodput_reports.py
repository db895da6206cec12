"""Tell the controller what the orchestrator's own bulk transfers achieved, as their receivers timed them.

A transfer is noted where it ends and told later, many in one request; what cannot be told in time is
forgotten, the oldest first.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import asdict, dataclass

from orchestrator.client import ApiError, Client
from orchestrator.ports import Clock
from workers.wire.pace import Receipt, read_receipt

log = logging.getLogger(__name__)

WHAT = "the goodput of transfers"
INTERVAL_S = 5.0
MAX_KEPT = 1000
_PATH = "/northbound/v1/goodputs"
_TRANSFERS_PER_REQUEST = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """So many payload bytes from one address to another in so many seconds, done at a Unix time."""

    src: str
    dst: str
    bytes: int
    seconds: float
    at: float


class Transfers:
    """The transfers that the controller has not been told of; any thread may note one."""

    def __init__(self, *, own_address: str, clock: Clock) -> None:
        self._own_address = own_address
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: deque[Transfer] = deque(maxlen=MAX_KEPT)

    def received(self, src: str, receipt: Receipt | None) -> None:
        """Note what arrived here from the node at `src`, just now."""
        if receipt is not None:
            self._note(src, self._own_address, receipt.payload_bytes, receipt.seconds, 0.0)

    def sent(self, dst: str, told: object, *, sent_bytes: int, took_s: float) -> None:
        """Note what the node at `dst` says that it got of what was sent, as far as it can be."""
        read = read_receipt(told, most_bytes=sent_bytes, most_s=took_s)
        if read is not None:
            self._note(self._own_address, dst, *read)
        elif told is not None:
            log.debug("what %s says it received cannot be: %r", dst, told)

    def tell(self, client: Client) -> bool:
        """Tell the controller of all that was noted; raises ApiError, and keeps what it was not told."""
        told = False
        while transfers := self._take():
            try:
                answer = client.post(_PATH, {"transfers": [asdict(transfer) for transfer in transfers]})
            except ApiError as error:
                if error.status is None:
                    self._put_back(transfers)
                raise
            told = True
            log.debug("goodput of %d transfers told: %s", len(transfers), answer)
        return told

    def _note(self, src: str, dst: str, payload_bytes: int, seconds: float, ago_s: float) -> None:
        at = self._clock.unix_s() - ago_s
        with self._lock:
            self._kept.append(Transfer(src=src, dst=dst, bytes=payload_bytes, seconds=seconds, at=at))

    def _take(self) -> list[Transfer]:
        with self._lock:
            return [self._kept.popleft() for _ in range(min(len(self._kept), _TRANSFERS_PER_REQUEST))]

    def _put_back(self, transfers: list[Transfer]) -> None:
        with self._lock:
            room = MAX_KEPT - len(self._kept)
            if room > 0:
                self._kept.extendleft(reversed(transfers[-room:]))
