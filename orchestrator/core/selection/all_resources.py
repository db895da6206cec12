"""Keep every node in every epoch (Pekel 2025: AR, all resources)."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.selection.interface import Choice, Everybody, RoundView


@dataclass(frozen=True, slots=True, kw_only=True)
class AllResources(Everybody):
    """Eliminate nobody."""

    name: str = "all"

    def choose(self, view: RoundView) -> Choice:
        """Keep all that took part."""
        return Choice(eliminated=(), reason=f"all resources: all {len(view.scores)} nodes stay")
