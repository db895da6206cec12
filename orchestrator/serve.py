"""The orchestrator process: start, wait for a signal, stop."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

import torch

from orchestrator import bootstrap, config
from orchestrator.errors import OrchestratorError

log = logging.getLogger(__name__)

_STOP_LIMIT_S = 15.0


def main(config_path: str, *, resume: bool = True) -> int:
    """Run until SIGTERM or SIGINT; answers the exit code. `resume`: go on with what was left."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
        force=True,
    )
    # Evaluation is one of many things this process does: it must not take every core.
    torch.set_num_threads(1)
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    try:
        process = bootstrap.start(config.load(config_path), resume=resume)
    except OrchestratorError as error:
        log.error("%s", error)
        return 1
    told.wait()
    log.info("stopping")
    limit = threading.Timer(_STOP_LIMIT_S, _give_up)
    limit.daemon = True
    limit.start()
    process.stop()
    limit.cancel()
    log.info("stopped")
    return 0


def _give_up() -> None:
    log.error("something does not end within %g s; leaving it", _STOP_LIMIT_S)
    logging.shutdown()
    os._exit(1)
