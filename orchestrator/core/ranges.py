"""The one check that values of options are within their limits."""

from __future__ import annotations

from math import inf

from orchestrator.core.errors import InvalidValue


def check_ranges(what: str, values: object, **ranges: tuple[float, float]) -> None:
    """Check that fields of `values`, by name in `ranges`, are finite, from the least to the most given.

    Raises:
        InvalidValue: one is not; `what` says in the text what `values` are.
    """
    for name, (least, most) in ranges.items():
        value = getattr(values, name)
        if not (least <= value <= most and value < inf):
            limits = f"at least {least:g} and finite" if most == inf else f"in {least:g}..{most:g}"
            raise InvalidValue(f"{what}: {name} is {value}, must be {limits}")


def check_above_zero(what: str, values: object, **limits: float) -> None:
    """Check that fields of `values`, by name in `limits`, are finite, above 0 and at most what is given.

    Raises:
        InvalidValue: one is not; `what` says in the text what `values` are.
    """
    for name, most in limits.items():
        value = getattr(values, name)
        if not (0 < value <= most and value < inf):
            limit = "finite" if most == inf else f"at most {most:g}"
            raise InvalidValue(f"{what}: {name} is {value}, must be above 0 and {limit}")
