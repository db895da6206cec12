"""What an engine gives out while it takes an event: instructions in order, decision records among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from orchestrator.core.decisions import Alternative, Crossing, Decision, NodeScore
from orchestrator.core.jsonable import Json

InstructionT = TypeVar("InstructionT")


class EngineJournal(Generic[InstructionT]):
    """Collects the instructions of one event; `take` gives them out.

    Decisions are on `subject`, a job or a deployment; `record` makes of one what keeps and publishes it.
    """

    def __init__(self, subject: str, record: Callable[[Decision], InstructionT]) -> None:
        self._subject = subject
        self._record = record
        self._out: list[InstructionT] = []

    def add(self, instruction: InstructionT) -> None:
        """Add something to be done."""
        self._out.append(instruction)

    def take(self) -> list[InstructionT]:
        """Give out what was collected."""
        instructions, self._out = self._out, []
        return instructions

    def decide(
        self,
        now_s: float,
        kind: str,
        verdict: str,
        reason: str,
        *,
        inputs: dict[str, Json] | None = None,
        scores: tuple[NodeScore, ...] = (),
        crossings: tuple[Crossing, ...] = (),
        alternatives: tuple[Alternative, ...] = (),
    ) -> None:
        """Record a decision."""
        decision = Decision(
            kind=kind,
            subject=self._subject,
            at_s=now_s,
            verdict=verdict,
            reason=reason,
            inputs=inputs or {},
            scores=scores,
            crossings=crossings,
            alternatives=alternatives,
        )
        self.add(self._record(decision))
