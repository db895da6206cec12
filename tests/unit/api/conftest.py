"""An API on doubles."""

from __future__ import annotations

import pytest
from orchestrator_fakes import (
    FakeDeployments,
    FakeJobs,
    FakeNorthbound,
    FakePool,
    ManualClock,
    MemoryStore,
)

from orchestrator.api.app import create_app
from orchestrator.api.services import Services
from orchestrator.config import Config
from orchestrator.events import EventLog


class World:
    """An API with everything behind it in reach."""

    def __init__(self, tmp_path, **settings) -> None:
        self.store = MemoryStore()
        self.clock = ManualClock()
        self.pool = FakePool()
        self.northbound = FakeNorthbound()
        self.events = EventLog(store=self.store, clock=self.clock)
        self.jobs = FakeJobs(self.store)
        self.deployments = FakeDeployments(self.store)
        config = Config(
            northbound_url="http://127.0.0.1:1", data_address="127.0.0.1", state_dir=tmp_path, **settings
        )
        services = Services(
            config=config,
            clock=self.clock,
            pool=self.pool,
            northbound=self.northbound,
            store=self.store,
            events=self.events,
            jobs=self.jobs,
            deployments=self.deployments,
        )
        self.http = create_app(services).test_client()


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def make_world(tmp_path):
    """Make a world with settings of its own."""
    return lambda **settings: World(tmp_path, **settings)
