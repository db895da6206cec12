"""The project's `ryu-manager`: make Ryu 4.34 run on a current eventlet, set safe defaults, then be Ryu's.

Ryu is no longer maintained upstream; what it needs to run here is in this file and nowhere else.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

from ryu_apps.errors import StartError

LOG = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
OPENFLOW_PORT = 6653
REALTIME_PRIORITY = 5
"""Below that of the link emulator, which shares the machine in emulation."""


def main() -> None:
    """Start Ryu with this process's arguments; exit with 1 and one clear line if it cannot start."""
    mend_eventlet()
    from ryu.cmd import manager

    from ryu_apps import options

    root = str(Path(__file__).resolve().parent.parent)
    if root not in sys.path:
        sys.path.append(root)
    options.register()
    _set_defaults(manager.CONF)
    try:
        _check(manager.CONF)
        if manager.CONF.realtime:
            _be_punctual()
        logging.getLogger("ryu.lib.hub").setLevel(logging.WARNING)  # it logs every HTTP request
        manager.main()
    except StartError as error:
        print(f"ryu-manager: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(1)


def mend_eventlet() -> None:
    """Give eventlet.wsgi the name that Ryu imports and current versions no longer have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that eventlet is in maintenance is known, and why it is here only
        import eventlet.wsgi
    if not hasattr(eventlet.wsgi, "ALREADY_HANDLED"):
        eventlet.wsgi.ALREADY_HANDLED = object()


def _set_defaults(conf: Any) -> None:
    """Listen on this machine only unless told otherwise, and notice switches that hang."""
    conf.set_default("wsapi_host", LOOPBACK)
    conf.set_default("ofp_listen_host", LOOPBACK)
    conf.set_default("ofp_tcp_listen_port", OPENFLOW_PORT)
    conf.set_default("echo_request_interval", 5.0)
    conf.set_default("maximum_unreplied_echo_requests", 3)


def _check(conf: Any) -> None:
    """Read the command line once ahead of Ryu, to refuse what would fail half-started.

    Raises:
        StartError: an option is out of range, the token is not safe, or a port is taken.
    """
    from ryu_apps import access, options

    conf(project="ryu")
    access.from_options(options.read())
    for flag, host, port in (
        ("--ofp-tcp-listen-port", conf.ofp_listen_host, conf.ofp_tcp_listen_port),
        ("--wsapi-port", conf.wsapi_host, conf.wsapi_port),
    ):
        _check_port(flag, host, port)


def _be_punctual() -> None:
    """Ask the kernel to run this process as soon as a packet arrives, ahead of ordinary programs.

    The time between a probe's arrival and its reading counts as the link's delay otherwise: on a machine
    whose processors are all busy that is tens of milliseconds.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(REALTIME_PRIORITY))
    except OSError as error:
        LOG.warning("no real-time scheduling (%s): a busy machine will look like slow links", error.strerror)


def _check_port(flag: str, host: str, port: int) -> None:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
    except OSError as error:
        raise StartError(
            f"cannot listen on {host} port {port}: {error.strerror}; free it or give another one with {flag}"
        ) from error


if __name__ == "__main__":
    main()
