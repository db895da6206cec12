"""Real time and fresh ids."""

from __future__ import annotations

import secrets
import time


class SystemClock:
    """The machine's clocks."""

    def monotonic_s(self) -> float:
        """Give seconds for durations."""
        return time.monotonic()

    def unix_s(self) -> float:
        """Give Unix seconds for records."""
        return time.time()


def random_id(kind: str) -> str:
    """Make an id like `job-3f9a2c71`."""
    return f"{kind}-{secrets.token_hex(4)}"
