"""Layer times measured on the nodes themselves, kept as long as the node stays attached."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import threading
from dataclasses import dataclass

from orchestrator.errors import WorkerError
from orchestrator.ports import Json, Model, NodeRecord, WorkerPool

log = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 30.0
_SHAPE_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "attention_bias",
    "sliding_window",
    "model_type",
    "n_embd",
    "n_inner",
    "n_head",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """One layer of one model on one node; None where the node did not tell."""

    decode_s: float | None
    prefill_s_per_token: float | None


class LayerProbes:
    """Asks each node once per kind of layer; one after another, so that none measures the others' load."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._probing = threading.Lock()
        self._lock = threading.Lock()
        self._known: dict[tuple[str, float | None, str], LayerTimes] = {}

    def measure(self, model: Model) -> None:
        """Ask every node that is alive and was not asked for this kind of layer yet."""
        kind = _layer_kind(model)
        with self._probing:
            for record in self._pool.nodes():
                key = (record.node, record.attached_at, kind)
                if record.alive and key not in self._known:
                    times = self._probe(record, model)
                    with self._lock:
                        self._known[key] = times

    def times(self, record: NodeRecord, model: Model) -> LayerTimes:
        """Give what is known of a node; nothing if it was not asked."""
        with self._lock:
            known = self._known.get((record.node, record.attached_at, _layer_kind(model)))
        return known or LayerTimes(decode_s=None, prefill_s_per_token=None)

    def _probe(self, record: NodeRecord, model: Model) -> LayerTimes:
        try:
            fields = {"config": model.config, "compute": model.compute}
            answer = self._pool.request(
                record.node, "control", "probe.layer", fields, timeout_s=_PROBE_TIMEOUT_S
            )
        except WorkerError as error:
            log.warning("layer times of node %s are modelled, not measured: %s", record.node, error)
            return LayerTimes(decode_s=None, prefill_s_per_token=None)
        return LayerTimes(
            decode_s=_seconds(answer.fields, "decode_s", record.node),
            prefill_s_per_token=_seconds(answer.fields, "prefill_s_per_token", record.node),
        )


def _seconds(fields: Json, name: str, node: str) -> float | None:
    value = fields.get(name)
    if isinstance(value, int | float) and math.isfinite(value) and value > 0:
        return float(value)
    log.warning("node %s answered probe.layer with %s %r; its time is modelled", node, name, value)
    return None


def _layer_kind(model: Model) -> str:
    shape = {key: model.config.get(key) for key in _SHAPE_KEYS} | {"compute": model.compute}
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()
