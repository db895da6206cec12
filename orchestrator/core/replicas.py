"""Which of several deployments of the same model is to answer a request: pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One deployment as a request would find it.

    `token_s` is how many seconds it takes for a token, all of its answers together; None before it has made
    any. `running` counts the answers under way.
    """

    deployment: str
    running: int
    token_s: float | None


def by_finish(replicas: Sequence[Replica], *, answers: int = 1) -> list[str]:
    """Return the deployments in the order in which they would finish `answers` more, the first first.

    Answers share a replica: each gets a token every `token_s` times the number under way. A replica that was
    never tried is taken for as fast as the fastest one, so that it gets tried.
    """
    known = [replica.token_s for replica in replicas if replica.token_s is not None]
    fastest_s = min(known, default=1.0)

    def key(replica: Replica) -> tuple[float, int, str]:
        token_s = fastest_s if replica.token_s is None else replica.token_s
        return token_s * (replica.running + answers), replica.running, replica.deployment

    return [replica.deployment for replica in sorted(replicas, key=key)]
