"""Turn core values into what JSON can hold: the one way for log, API, report and store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from math import isfinite

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


def to_json(value: object) -> Json:
    """Convert `value` (dataclasses, maps, sequences, scalars); non-finite floats become None.

    Maps keyed by pairs of names are written with keys `a->b`.

    Raises:
        TypeError: something that has no JSON form.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return _number(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {_key(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, set | frozenset):
        return [to_json(item) for item in sorted(value)]
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def _number(value: int | float) -> Json:
    return float(value) if isinstance(value, float) and isfinite(value) else _integer_or_none(value)


def _integer_or_none(value: int | float) -> Json:
    return int(value) if isinstance(value, int) else None


def _key(key: object) -> str:
    return "->".join(key) if isinstance(key, tuple) else str(key)
