"""Functional tests need root and the emulation's tools; without them they are skipped, and say so."""

from __future__ import annotations

import os
import shutil

import pytest

TOOLS = ("ovs-vsctl", "mnexec", "iptables-legacy", "ethtool")


def _missing() -> str | None:
    if os.geteuid() != 0:
        return "needs root: sudo make test"
    gone = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"needs {', '.join(gone)}: make setup" if gone else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked functional where it cannot run."""
    reason = _missing()
    if reason is None:
        return
    for item in items:
        if item.get_closest_marker("functional"):
            item.add_marker(pytest.mark.skip(reason=reason))
