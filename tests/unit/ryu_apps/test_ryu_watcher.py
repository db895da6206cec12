"""What is told of values that moved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ryu_world import World

from ryu_apps.paths import LinkValues
from ryu_apps.signals import Change

H1, H4 = "198.18.1.1", "198.18.1.4"
LINK = f"{H1}-0000000000000001.11"


@pytest.fixture
def told() -> tuple[World, list[Any]]:
    """A measured ring, and the changes of one link's loss that are told from now on."""
    world = World()
    world.host(H1, 1, 11)
    world.host(H4, 4, 11)
    world.advance(2.0)
    world.say_arp(H1, H4)
    world.advance(20.0)
    changes: list[Any] = []

    def note(datum: dict[str, Any]) -> None:
        if (datum["link"], datum["metric"]) == (LINK, "loss_ratio"):
            changes.append((datum["before"], datum["after"]))

    world.parts.signals.connect(Change.METRIC_CHANGED, note)
    return world, changes


def look(world: World, value: float, low: float, high: float) -> None:
    values: dict[str, LinkValues] = world.parts.views.all_values()
    loss = replace(values[LINK].loss_ratio, value=value, low=low, high=high)
    world.parts.watcher._compare({LINK: replace(values[LINK], loss_ratio=loss)})


def test_a_loss_that_surely_moved_is_told_and_one_that_may_be_the_same_is_not(
    told: tuple[World, list[Any]],
) -> None:
    world, changes = told
    look(world, 0.010, 0.006, 0.017)
    look(world, 0.016, 0.009, 0.025)
    assert changes == [(None, 0.010)]
    look(world, 0.050, 0.030, 0.080)
    assert changes[1:] == [(0.010, 0.050)]


def test_a_difference_too_small_to_matter_is_not_told(told: tuple[World, list[Any]]) -> None:
    world, changes = told
    look(world, 0.0, 0.0, 0.0004)
    look(world, 0.0015, 0.0012, 0.0018)
    assert changes == [(None, 0.0)]
