"""Compute the figures from the rows: pure. Rows of invalid phases (late emulation) are left out, and counted.

- `delay_error_p95_ms`, `delay_error_p95_rel`: 95th percentile of |measured - ping|, one way, over all
  `path_delay` samples; in milliseconds, and as a share of what the ping saw. The target is one:
  `delay_error_over_allowed_p95` is the same of error / max(floor, share x ping), to be at most 1.
- `bandwidth_error_p95`: of |measured - true| available bandwidth as a share of the true capacity, over all
  `bandwidth` samples, whether the capacity was configured or is the controller's estimate; the two apart are
  `_configured` and `_estimated`; `_counting_trains` takes the controller's own packet trains for traffic.
- `capacity_estimate_error_p90`: of |estimate / true capacity - 1|, over all access links.
- `loss_error_p95_pp`: percentage points between measured and configured loss of a path, loaded: of paths with
  at least LEAST_PPS packets a second of traffic. Beside it the error of counting itself, had every packet of
  that traffic been seen (`loss_counting_limit_pp`, what physics leaves of it), and
  `loss_error_delivered_p95_pp` against what the receivers of that traffic missed.
- `loss_interval_coverage`: share of intervals that hold the configured loss; `_delivered`: that hold what the
  receivers missed. `loss_half_width_p95_pp` is half of the intervals' width.
- `detection_p95_s`: over all steps, a step that was not seen counts as infinitely late (null).
- `refresh_s`: 95th percentile, over the seconds, of the greatest age of any link's delay and used bandwidth.
- `controller_cpu`: median CPU seconds per second of the controller's process, where it was measured while
  nobody read its REST (large networks) then; `controller_cpu_read` while everything was read again and again.
- `switch_cpu`: the same of Open vSwitch. Its userspace datapath has one thread for all ports of all switches,
  which looks at every port whenever it wakes: what it takes grows with ports times packets. Where it comes
  near 1, packets wait in the switches, pings and probes alike: then one measures the machine.
- `classic`: the same figures of the classic method where it has any.

A measured value that was unknown is not compared; `unknown_ratio` says how often that was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

from benchmarks.envelope import Target
from benchmarks.network_accuracy.plan import LEAST_PPS

Row = dict[str, Any]
Figures = dict[str, Any]

ALLOWED_DELAY = {"idle": (0.001, 0.03), "loaded": (0.003, 0.10)}
_Z95 = 1.959964
KEYS = (
    "delay_error_p95_ms",
    "delay_error_p95_rel",
    "bandwidth_error_p95",
    "capacity_estimate_error_p90",
    "loss_error_p95_pp",
    "loss_interval_coverage",
    "detection_p95_s",
    "refresh_s",
    "controller_cpu",
)
"""What every group of figures has; null where it was not measured there."""

GROUPS = {
    "idle": (("hosts12", "quick"), "idle"),
    "loaded": (("hosts12", "quick"), "loaded"),
    "scale_40_hosts": (("hosts40",), "idle"),
    "scale_40_hosts_loaded": (("hosts40",), "loaded"),
    "scale_200_hosts": (("hosts200",), "idle"),
}
"""Group of figures to the parts and the phase that its rows come from."""


def quantile(values: Iterable[float], share: float) -> float | None:
    """Return the `share` quantile (nearest rank, so that infinity stays infinity); None of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def compute(rows: Sequence[Row]) -> dict[str, Figures]:
    """Return all groups of figures that the rows have something for."""
    found = {}
    for group, (parts, phase) in GROUPS.items():
        own = [row for row in rows if row["part"] in parts and row["phase"] == phase]
        if own:
            found[group] = _group([row for row in own if row["valid"]], own, phase)
    detections = [row for row in rows if row["kind"] == "detection" and row["valid"]]
    if detections:
        found["detection"] = _detection(detections)
        for group in ("idle", "loaded"):
            if group in found:
                found[group]["detection_p95_s"] = _late(detections, phase=group)
    return found


def _group(rows: list[Row], with_invalid: list[Row], phase: str) -> Figures:
    def of(kind: str) -> list[Row]:
        return [row for row in rows if row["kind"] == kind]

    figures: Figures = dict.fromkeys(KEYS)
    networks = {row["network"] for row in with_invalid}
    figures["networks"] = len(networks)
    figures["invalid_networks"] = len(networks - {row["network"] for row in rows})
    figures |= _delay(of("path_delay"), phase, "measured_s")
    figures |= {f"link_{name}": value for name, value in _link_delay(of("link_delay")).items()}
    uneven = _link_delay([row for row in of("link_delay") if row["asymmetric"]])
    figures["asymmetric_link_delay_error_p95_ms"] = uneven["delay_error_p95_ms"]
    figures |= _bandwidth(of("bandwidth"))
    figures |= _capacity(of("capacity"))
    figures |= _loss(of("loss"), phase)
    ages = [age for row in of("refresh") for age in row["ages_s"]]
    figures["refresh_s"] = quantile(ages, 0.95)
    costs = of("controller")
    if costs:
        quiet = [row for row in costs if row["read_every_s"] is None]
        read = [row for row in costs if row["read_every_s"] is not None]
        figures["controller_cpu"] = median(row["cpu_s_per_s"] for row in quiet or costs)
        figures["controller_cpu_read"] = median(row["cpu_s_per_s"] for row in read or costs)
        switch = [row["switch_cpu_s_per_s"] for row in costs if row.get("switch_cpu_s_per_s") is not None]
        figures["switch_cpu"] = median(switch) if switch else None
        for name in ("probe_bytes_per_s", "train_bytes_per_s", "probes_per_s", "links"):
            figures[name] = median(row[name] for row in costs)
    late = [value for row in of("emulation") for value in row["recent_lateness_p99_s"]]
    figures["emulation_lateness_p99_worst_s"] = max(late, default=None)
    figures["classic"] = _classic(rows, phase)
    return figures


def _errors(rows: list[Row], field: str) -> list[tuple[float, float]]:
    """Return (error, truth) of the samples of `path_delay` rows that have both."""
    return [
        (abs(sample[field] - sample["truth_s"]), sample["truth_s"])
        for row in rows
        for sample in row["samples"]
        if sample[field] is not None and sample["truth_s"] is not None
    ]


def _delay(rows: list[Row], phase: str, field: str) -> Figures:
    floor_s, share = ALLOWED_DELAY[phase]
    errors = _errors(rows, field)
    pinged = sum(sample["truth_s"] is not None for row in rows for sample in row["samples"])
    p95_s = quantile((error for error, _ in errors), 0.95)
    p50_s = quantile((error for error, _ in errors), 0.5)
    return {
        "delay_error_p50_ms": None if p50_s is None else p50_s * 1e3,
        "delay_error_p95_ms": None if p95_s is None else p95_s * 1e3,
        "delay_error_p95_rel": quantile((error / truth for error, truth in errors if truth > 0), 0.95),
        "delay_error_over_allowed_p95": quantile(
            (error / max(floor_s, share * truth) for error, truth in errors), 0.95
        ),
        "delay_unknown_ratio": 1 - len(errors) / pinged if pinged else None,
    }


def _link_delay(rows: list[Row], field: str = "measured_s") -> Figures:
    errors = [
        abs(sample[field] - row["configured_s"])
        for row in rows
        for sample in row["samples"]
        if sample[field] is not None
    ]
    p95_s = quantile(errors, 0.95)
    return {"delay_error_p95_ms": None if p95_s is None else p95_s * 1e3}


def _bandwidth(rows: list[Row], field: str = "measured_bps") -> Figures:
    def p95(wanted: Callable[[Row], bool], truth: str = "truth_bps") -> float | None:
        return quantile(
            (
                abs(sample[field] - sample[truth]) / row["capacity_bps"]
                for row in rows
                if wanted(row)
                for sample in row["samples"]
                if sample[field] is not None
            ),
            0.95,
        )

    samples = [sample[field] for row in rows for sample in row["samples"]]
    return {
        "bandwidth_error_p95": p95(lambda row: True),
        "bandwidth_error_p95_configured": p95(lambda row: bool(row["capacity_configured"])),
        "bandwidth_error_p95_estimated": p95(lambda row: not row["capacity_configured"]),
        "bandwidth_error_p95_counting_trains": p95(lambda row: True, "counted_bps"),
        "bandwidth_unknown_ratio": samples.count(None) / len(samples) if samples else None,
    }


def _capacity(rows: list[Row]) -> Figures:
    known = [row for row in rows if row["estimate"] is not None and row["estimate"]["value"] is not None]
    errors = [abs(row["estimate"]["value"] / row["truth_bps"] - 1) for row in known]
    return {
        "capacity_estimate_error_p50": quantile(errors, 0.5),
        "capacity_estimate_error_p90": quantile(errors, 0.9),
        "capacity_unknown_ratio": 1 - len(known) / len(rows) if rows else None,
    }


def _loss(rows: list[Row], phase: str) -> Figures:
    if phase == "loaded":
        rows = [row for row in rows if row["traffic_pps"] >= LEAST_PPS]
    known = [row for row in rows if row["measured"] is not None and row["measured"]["value"] is not None]
    intervals = [
        (row["measured"]["low"], row["truth_ratio"], row["measured"]["high"])
        for row in known
        if row["measured"]["low"] is not None and row["measured"]["high"] is not None
    ]
    errors = [100 * abs(row["measured"]["value"] - row["truth_ratio"]) for row in known]
    limits = [
        100
        * _Z95
        * math.sqrt(row["truth_ratio"] * (1 - row["truth_ratio"]) / (row["traffic_pps"] * row["after_s"]))
        for row in rows
        if row["traffic_pps"] > 0 and row["after_s"] > 0
    ]
    delivered = [
        100 * abs(row["measured"]["value"] - row["delivered_loss_ratio"])
        for row in known
        if row.get("delivered_loss_ratio") is not None
    ]
    covered = [
        row["measured"]["low"] <= row["delivered_loss_ratio"] <= row["measured"]["high"]
        for row in known
        if row.get("delivered_loss_ratio") is not None and row["measured"]["low"] is not None
    ]
    return {
        "loss_interval_coverage_delivered": sum(covered) / len(covered) if covered else None,
        "loss_error_delivered_p95_pp": quantile(delivered, 0.95),
        "loss_error_p50_pp": quantile(errors, 0.5),
        "loss_error_p95_pp": quantile(errors, 0.95),
        "loss_counting_limit_pp": median(limits) if limits else None,
        "loss_half_width_p95_pp": quantile((50 * (high - low) for low, _, high in intervals), 0.95),
        "loss_interval_coverage": (
            sum(low <= truth <= high for low, truth, high in intervals) / len(intervals)
            if intervals
            else None
        ),
        "loss_intervals": len(intervals),
        "loss_unknown_ratio": 1 - len(known) / len(rows) if rows else None,
    }


def _classic(rows: list[Row], phase: str) -> Figures | None:
    delays = [row for row in rows if row["kind"] == "path_delay"]
    links = [row for row in rows if row["kind"] == "link_delay" and row["between_switches"]]
    bandwidths = [row for row in rows if row["kind"] == "bandwidth"]
    if not any(sample["classic_s"] is not None for row in delays for sample in row["samples"]):
        return None
    return {
        **_delay(delays, phase, "classic_s"),
        "link_delay_error_p95_ms": _link_delay(links, "classic_s")["delay_error_p95_ms"],
        "link_delay_error_p95_ms_ours": _link_delay(links)["delay_error_p95_ms"],
        "bandwidth_error_p95": _bandwidth(bandwidths, "classic_bps")["bandwidth_error_p95"],
        "bandwidth_error_p95_if_told_capacity": _bandwidth(bandwidths, "classic_told_bps")[
            "bandwidth_error_p95"
        ],
        "capacity_estimate_error_p90": None,
        "loss_error_p95_pp": None,
        "loss_interval_coverage": None,
    }


def _late(rows: list[Row], *, phase: str | None = None, field: str = "value_s") -> float | None:
    """Return the 95th percentile of how late steps showed; None if that many did not show at all."""
    own = [row for row in rows if (phase is None or row["phase"] == phase) and row["counts"]]
    late = quantile((math.inf if row[field] is None else row[field] for row in own), 0.95)
    return None if late is None or math.isinf(late) else late


def _detection(rows: list[Row]) -> Figures:
    figures: Figures = {"detection_p95_s": _late(rows), "event_p95_s": _late(rows, field="event_s")}
    for metric in dict.fromkeys(row["metric"] for row in rows):
        own = [row for row in rows if row["metric"] == metric]
        seen = [row["value_s"] for row in own if row["value_s"] is not None]
        figures[metric] = {
            "steps": len(own),
            "seen": len(seen),
            "median_s": median(seen) if seen else None,
            "p95_s": quantile((math.inf if row["value_s"] is None else row["value_s"] for row in own), 0.95),
            "events": sum(row["event_s"] is not None for row in own),
            "event_median_s": median(
                [row["event_s"] for row in own if row["event_s"] is not None] or [math.inf]
            ),
        }
        for name, value in figures[metric].items():
            figures[metric][name] = None if value == math.inf else value
    return figures


def targets(figures: dict[str, Figures]) -> list[Target]:
    """Return the targets that the figures were made for; those of parts that did not run are missing."""
    wanted: list[tuple[str, str, str, float]] = []
    for group in ("idle", "loaded", "scale_40_hosts", "scale_40_hosts_loaded"):
        wanted += [
            (group, "delay_error_over_allowed_p95", "<=", 1.0),
            (group, "bandwidth_error_p95", "<=", 0.05),
            (group, "capacity_estimate_error_p90", "<=", 0.10),
            (group, "loss_interval_coverage", ">=", 0.93),
        ]
        wanted.append(
            (group, "loss_error_p95_pp", "<=", 0.3)
            if group.endswith("loaded")
            else (group, "loss_half_width_p95_pp", "<=", 1.0)
        )
    wanted += [
        ("detection", "detection_p95_s", "<=", 3.0),
        ("scale_40_hosts", "refresh_s", "<=", 1.0),
        ("scale_40_hosts", "controller_cpu", "<=", 0.35),
    ]
    return [
        Target(name=f"{group}.{name}", value=figures[group].get(name), op=op, limit=limit)
        for group, name, op, limit in wanted
        if group in figures
    ]
