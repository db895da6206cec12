"""Take over switches that carry rules already: of an earlier run, or from before a connection was lost.

Traffic that flows over old rules goes on flowing. What a switch has is listed when it joins; from the rules
of pairs follows who talks to whom and at which ports, so hosts that say nothing are asked there, and their
pairs get rules of this run, which replace the old ones one by one. What is not wanted after a while is
removed; what was never ours is removed at once.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ryu_apps import openflow, packets
from ryu_apps.arp import ArpProxy
from ryu_apps.discovery import Network, Switch, dpid_text
from ryu_apps.flows import Flow, Place
from ryu_apps.forwarding import Forwarding
from ryu_apps.signals import Change, Signals

LOG = logging.getLogger(__name__)

LIST_TIMEOUT_S = 5.0
GRACE_S = 12.0
"""Old rules stay so long: for links to show, hosts to answer, and new rules to be in place."""
MAX_ENTRIES = 20_000
MAX_PAIRS = 8192
MAX_HINTS = 8
MAX_ASKED = 100
"""Hosts asked at a time."""


@dataclass(slots=True)
class _Visit:
    """What there is to do at a switch that has joined."""

    joined_at: float
    transaction: int = 0
    asked_at: float | None = None
    entries: list[Any] = field(default_factory=list)
    listed_once: bool = False


class Takeover:
    """Own what is left of earlier rules."""

    def __init__(self, network: Network, signals: Signals, *, arp: ArpProxy, forwarding: Forwarding) -> None:
        self._network = network
        self._arp = arp
        self._forwarding = forwarding
        self._visits: dict[int, _Visit] = {}
        self._pairs: dict[Flow, float] = {}
        """Pairs whose old rules still lead them, and until when they may be restored."""
        self._hints: dict[str, set[Place]] = {}
        self.counts: Counter[str] = Counter()
        signals.connect(Change.SWITCH_UP, self._switch_up)
        signals.connect(Change.SWITCH_DOWN, lambda switch: self._visits.pop(switch.dpid, None))

    def _switch_up(self, switch: Switch) -> None:
        self._visits[switch.dpid] = _Visit(joined_at=switch.connected_since)
        self._ask(switch.connected_since, switch)

    def _ask(self, now: float, switch: Switch) -> None:
        visit = self._visits[switch.dpid]
        request = openflow.all_rules_request(switch.datapath)
        visit.transaction, visit.asked_at, visit.entries = request.xid, now, []
        switch.datapath.send_msg(request)

    # What switches answer.

    def awaits(self, dpid: int, transaction: int) -> bool:
        """Tell whether a list of rules is the answer to a request made here."""
        visit = self._visits.get(dpid)
        return visit is not None and visit.asked_at is not None and visit.transaction == transaction

    def listed(self, now: float, dpid: int, body: list[Any], *, more: bool) -> None:
        """Take the rules of a switch in, or a part of them."""
        visit, switch = self._visits[dpid], self._network.switches[dpid]
        visit.entries.extend(body)
        if len(visit.entries) > MAX_ENTRIES:
            self._empty(switch, f"it has more than {MAX_ENTRIES} rules")
        elif not more:
            entries, visit.entries, visit.asked_at = visit.entries, [], None
            if visit.listed_once:
                self._purge(switch, entries)
                del self._visits[dpid]
            else:
                visit.listed_once = True
                self._inherit(now, switch, entries)

    def _inherit(self, now: float, switch: Switch, entries: list[Any]) -> None:
        """Remove what is not ours, and learn from what is."""
        for entry in entries:
            if not openflow.is_ours(entry.cookie):
                self._remove(switch, entry)
            elif openflow.is_pair(entry.cookie) and not self._forwarding.owns(switch.dpid, entry.cookie):
                self._learn(now, switch, entry)

    def _learn(self, now: float, switch: Switch, entry: Any) -> None:
        match = dict(entry.match.items())
        src, dst = match.get("ipv4_src"), match.get("ipv4_dst")
        if not (isinstance(src, str) and isinstance(dst, str)) or len(self._pairs) >= MAX_PAIRS:
            return
        self._pairs[Flow(src=src, dst=dst)] = now + GRACE_S
        for ip, port in ((src, match.get("in_port")), (dst, openflow.output_port(entry))):
            hints = self._hints.setdefault(ip, set())
            if port and len(hints) < MAX_HINTS:
                hints.add((switch.dpid, port))

    def _purge(self, switch: Switch, entries: list[Any]) -> None:
        """Remove every rule of ours that nobody wants; see to it that those for measuring are there.

        Rules that others have written since the switch joined are theirs: another controller may be at work.
        """
        base = openflow.base_rules(switch.datapath)
        kept = {(rule.priority, frozenset(rule.match.items())) for rule in base}
        unwanted = [
            entry
            for entry in entries
            if openflow.is_ours(entry.cookie)
            and not self._forwarding.owns(switch.dpid, entry.cookie)
            and (entry.priority, frozenset(entry.match.items())) not in kept
        ]
        for entry in unwanted:
            self._remove(switch, entry)
        if unwanted:
            LOG.info("removed %d old rules from switch %s", len(unwanted), dpid_text(switch.dpid))
            for message in base:
                switch.datapath.send_msg(message)

    def _remove(self, switch: Switch, entry: Any) -> None:
        self.counts["removed_rules"] += 1
        switch.datapath.send_msg(openflow.delete_entry(switch.datapath, entry))

    # What time brings.

    def look_after(self, now: float) -> None:
        """Ask hosts, restore pairs, and remove what is left when its time has come."""
        self._ask_hosts(now)
        self._restore(now)
        for dpid, visit in list(self._visits.items()):
            switch = self._network.switches[dpid]
            if visit.asked_at is not None:
                if now - visit.asked_at > LIST_TIMEOUT_S:
                    self._empty(switch, f"it has not listed its rules within {LIST_TIMEOUT_S:g} s")
            elif now - visit.joined_at >= GRACE_S:
                self._ask(now, switch)

    def _ask_hosts(self, now: float) -> None:
        silent = [ip for ip in self._hints if ip not in self._network.hosts]
        for ip in silent[:MAX_ASKED]:
            for place in self._hints[ip]:
                if self._network.is_edge(now, *place):
                    self._arp.ask_at(place, packets.ip_bytes(ip))

    def _restore(self, now: float) -> None:
        for flow, until in list(self._pairs.items()):
            if self._forwarding.restore(flow):
                self.counts["restored_routes"] += 1
            elif now < until:
                continue
            del self._pairs[flow]
        if not self._pairs:
            self._hints.clear()

    def _empty(self, switch: Switch, why: str) -> None:
        """Begin anew with a switch whose rules cannot be told."""
        LOG.warning("emptied switch %s: %s", dpid_text(switch.dpid), why)
        self.counts["emptied_switches"] += 1
        del self._visits[switch.dpid]
        switch.datapath.send_msg(openflow.delete_all(switch.datapath))
        self._forwarding.begin_anew(switch)
