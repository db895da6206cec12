"""Look over all links twice a second: drop dead ones, tell of values that moved, ask for new estimates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ryu_apps.arp import ArpProxy
from ryu_apps.discovery import Network
from ryu_apps.options import Options
from ryu_apps.paths import LinkValues
from ryu_apps.prober import Prober
from ryu_apps.signals import Change, Signals
from ryu_apps.stats import Measurement, moved
from ryu_apps.takeover import Takeover
from ryu_apps.trains import Trains
from ryu_apps.views import Views

INTERVAL_S = 0.5
SHARE = 0.25
FLOORS = {"delay_s": 0.002, "loss_ratio": 0.002, "capacity_bps": 1e5, "used_bps": 1e5, "available_bps": 1e5}
"""Changes smaller than this are noise, whatever their share."""


class Watcher:
    """Own what each link's values were when they were last told."""

    def __init__(
        self,
        *,
        network: Network,
        signals: Signals,
        options: Options,
        prober: Prober,
        trains: Trains,
        arp: ArpProxy,
        takeover: Takeover,
        views: Views,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._network = network
        self._signals = signals
        self._host_timeout_s = options.host_timeout_s
        self._prober = prober
        self._trains = trains
        self._arp = arp
        self._takeover = takeover
        self._views = views
        self._clock = clock
        self._sleep = sleep
        self._told: dict[tuple[str, str], float] = {}

    def run(self) -> None:
        """Look again and again, for ever."""
        while True:
            self._sleep(INTERVAL_S)
            now = self._clock()
            self._prober.drop_dead_links(now)
            self._network.forget_silent(now, self._host_timeout_s)
            self._arp.ask_for_lost(now)
            self._arp.ask_for_claimed(now)
            self._takeover.look_after(now)
            self._compare(self._views.all_values())

    def _compare(self, links: dict[str, LinkValues]) -> None:
        for key in [key for key in self._told if key[0] not in links]:
            del self._told[key]
        for link_id, values in links.items():
            for metric, floor in FLOORS.items():
                self._compare_one(link_id, metric, getattr(values, metric), floor)

    def _compare_one(self, link_id: str, metric: str, measured: Measurement, floor: float) -> None:
        before, after = self._told.get((link_id, metric)), measured.value
        if after is None or not moved(before, after, share=SHARE, floor=floor):
            return
        if metric == "loss_ratio" and before is not None and _may_still_be(before, measured):
            return
        self._told[link_id, metric] = after
        datum: dict[str, Any] = {"link": link_id, "metric": metric, "before": before, "after": after}
        self._signals.emit(Change.METRIC_CHANGED, datum)
        if metric == "delay_s" and before is not None:
            self._trains.request(_subject(link_id))


def _may_still_be(before: float, measured: Measurement) -> bool:
    """Tell whether a value with an interval may be what it was."""
    return measured.low is not None and measured.high is not None and measured.low <= before <= measured.high


def _subject(link_id: str) -> str:
    """Return the name under which a link's trains go: a host's address, or the id of the link itself."""
    for end in link_id.split("-"):
        if end.count(".") == 3:
            return end
    return link_id
