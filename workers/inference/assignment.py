"""What a node is to hold and run in one route epoch: the checked content of `shard.prepare`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workers import fields
from workers.errors import ModelError, RequestRefused
from workers.inference.activations import WIRE
from workers.models.config import parse_config
from workers.models.model_config import ModelConfig, check_layers
from workers.models.precision import COMPUTE

_LONGEST_TOKENIZER = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """The next node of the ring and where it listens."""

    node: str
    address: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One node's part of a placement: layers [first_layer, end_layer), and the head's work if `head`.

    `previous` and `next` are None on the only node of a ring, which has `ring_nodes`. Parameters are held in
    the precision `compute`, rows travel in that of `wire`. Caches of all layers, here and elsewhere, take no
    more than `kv_cache_bytes`.
    """

    deployment: str
    epoch: int
    model: str
    config: ModelConfig
    head: bool
    first_layer: int
    end_layer: int
    tokenizer_json: str | None
    previous: str | None
    next: Neighbour | None
    context_tokens: int
    request_timeout_s: float
    ring_nodes: int
    reuse: bool
    digest: str | None
    compute: str = "fp32"
    wire: str = "fp32"
    kv_cache_bytes: int | None = None

    @property
    def cache_limit_bytes(self) -> int | None:
        """What caches may take on this node: its layers' share of `kv_cache_bytes`."""
        limit = self.kv_cache_bytes
        return None if limit is None else limit * self.layers // self.config.layers

    @property
    def layers(self) -> int:
        """Number of layers held."""
        return self.end_layer - self.first_layer

    @property
    def starts_ring(self) -> bool:
        """Tell whether this head runs layers before it sends rows out."""
        return self.head and self.layers > 0 and self.first_layer == 0

    @property
    def ends_ring(self) -> bool:
        """Tell whether this head runs layers on rows that have come round."""
        return self.head and self.layers > 0 and self.first_layer > 0

    @property
    def has_last_layer(self) -> bool:
        """Tell whether rows have passed all layers after this node's."""
        return self.end_layer == self.config.layers

    @classmethod
    def parse(cls, message: Mapping[str, Any], *, node: str) -> Assignment:
        """Check the fields of `shard.prepare`; `node` is this node's name.

        Raises:
            RequestRefused: a field is wrong, or they contradict each other.
        """
        config = _config(message)
        head, stage = _roles(message)
        first_layer, end_layer = _layers(message, config)
        if stage != (end_layer > first_layer):
            raise _contradiction(
                f"the role 'stage' and layers [{first_layer}, {end_layer}) do not go together"
            )
        if head and stage and first_layer > 0 and end_layer < config.layers:
            raise _contradiction(
                f"a head cannot run layers [{first_layer}, {end_layer}) from the middle of {config.layers}; "
                "give it the first ones, the last ones, or none"
            )
        whole = head and end_layer - first_layer == config.layers
        return cls(
            deployment=fields.text(message, "deployment"),
            epoch=fields.integer(message, "epoch"),
            model=fields.text(message, "model"),
            config=config,
            head=head,
            first_layer=first_layer,
            end_layer=end_layer,
            tokenizer_json=fields.text(message, "tokenizer_json", longest=_LONGEST_TOKENIZER)
            if head
            else None,
            previous=None if whole else _other_node(message, "previous", node),
            next=None if whole else _neighbour(message, node),
            context_tokens=fields.integer(message, "context_tokens", least=1, most=config.context_tokens),
            request_timeout_s=fields.number(message, "request_timeout_s", most=3600.0),
            ring_nodes=fields.integer(
                {"ring_nodes": message.get("ring_nodes", 1 if whole else 2)},
                "ring_nodes",
                least=1,
                most=config.layers + 1,
            ),
            reuse=bool(message.get("reuse", False)),
            digest=fields.text(message, "digest") if message.get("digest") is not None else None,
            compute=fields.choice({"compute": "fp32", **message}, "compute", COMPUTE),
            wire=fields.choice({"wire": "fp32", **message}, "wire", WIRE),
            kv_cache_bytes=fields.integer(message, "kv_cache_bytes", least=1)
            if message.get("kv_cache_bytes") is not None
            else None,
        )


def _config(message: Mapping[str, Any]) -> ModelConfig:
    try:
        return parse_config(fields.section(message, "config"))
    except ModelError as error:
        raise RequestRefused("bad-model", str(error)) from error


def _roles(message: Mapping[str, Any]) -> tuple[bool, bool]:
    roles = message.get("roles")
    if not isinstance(roles, list) or not roles or not all(role in ("head", "stage") for role in roles):
        raise RequestRefused("bad-field", f"roles is {roles!r}; it must list 'head', 'stage' or both")
    return "head" in roles, "stage" in roles


def _layers(message: Mapping[str, Any], config: ModelConfig) -> tuple[int, int]:
    first_layer, end_layer = fields.integer(message, "first_layer"), fields.integer(message, "end_layer")
    try:
        check_layers(config, first_layer, end_layer)
    except ModelError as error:
        raise RequestRefused("bad-field", str(error)) from error
    return first_layer, end_layer


def _other_node(message: Mapping[str, Any], key: str, node: str) -> str:
    name = fields.text(message, key)
    if name == node:
        raise _contradiction(f"{key} is this node itself, but it does not hold the whole model")
    return name


def _neighbour(message: Mapping[str, Any], node: str) -> Neighbour:
    section = fields.section(message, "next")
    return Neighbour(
        node=_other_node(section, "node", node),
        address=fields.text(section, "address"),
        port=fields.integer(section, "port", least=1, most=65535),
    )


def _contradiction(text: str) -> RequestRefused:
    return RequestRefused("bad-field", text)
