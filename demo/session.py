"""What the phases of the demo share: where things run, who is asked, how long each phase took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from orchestrator.client import Client
from scenarios.schema import Scenario
from topologies.specs import NetworkSpec

ORCHESTRATOR = "orch"


@dataclass(slots=True, kw_only=True)
class Session:
    """One run of the demo on a testbed that is up."""

    scenario: Scenario
    spec: NetworkSpec
    console: Console
    api: Client
    northbound: Client
    testbed: Any
    """`topologies.testbed.Client` of this testbed."""
    addresses: dict[str, str]
    """IPv4 address by host name, the orchestrator's among them."""


@dataclass(slots=True)
class Phases:
    """The phases so far, with their seconds; the console says which one is going on."""

    console: Console
    done: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens inside and announce it."""
        number = len(self.done) + 1
        self.console.rule(f"[bold]{number}. {name}", align="left")
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        self.done.append({"name": name, "seconds": round(seconds, 2)})
        self.console.print(f"[dim]{name}: {seconds:.1f} s[/dim]")
