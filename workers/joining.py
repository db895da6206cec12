"""How a worker gets to the orchestrator: its certificate, its two connections, and patience."""

from __future__ import annotations

import datetime
import logging
import random
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from workers import identity as identities
from workers.config import WorkerConfig
from workers.device import DeviceProfile
from workers.errors import (
    ChannelClosed,
    ConnectFailed,
    EnrolmentError,
    LinkError,
    RemoteError,
    RequestTimeout,
    WorkersError,
)
from workers.identity import Identity, Token
from workers.wire import connections, link, tls
from workers.wire.frames import Frame

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

CONNECT_TIMEOUT_S = 10.0
ATTACH_TIMEOUT_S = 20.0
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """An attached worker's connections to the orchestrator, and how often it wants to hear."""

    control: link.Channel
    bulk: link.Channel
    heartbeat_interval_s: float


class Joining:
    """Enrols and attaches one worker, as often as it takes; `stop` from any other thread.

    Both methods that wait give None when stopped, and raise ConnectFailed when the orchestrator was away for
    longer than the configuration allows. `obtain_identity` replaces enrolment and what is stored of it.
    """

    def __init__(
        self,
        config: WorkerConfig,
        profile: DeviceProfile,
        *,
        handler: link.Handler,
        on_close: link.OnClose,
        obtain_identity: Callable[[], Identity] | None = None,
    ) -> None:
        self.identity: Identity | None = None
        self._config = config
        self._profile = profile
        self._handler = handler
        self._on_close = on_close
        self._obtain_identity = obtain_identity or self._stored_or_enrolled
        self._token = Token.parse(config.token) if config.token else None
        self._token_used = False
        self._stopping = threading.Event()
        self._opening: link.Channel | None = None
        self._port = config.listen[1]
        self._last_connected_s = time.monotonic()

    def listens_at(self, port: int) -> None:
        """Tell the orchestrator this port: the one that the system chose, where the configuration has 0."""
        self._port = port

    def identify(self) -> Identity | None:
        """Get the certificate, by enrolling if need be.

        Raises:
            EnrolmentError, IdentityMismatch, RemoteError: the orchestrator does not take this worker.
        """
        self.identity = self._patiently(self._obtain_identity)
        return self.identity

    def attach(self) -> Session | None:
        """Open both connections; raises as `identify` does."""
        return self._patiently(self._attach)

    def note_connected(self) -> None:
        """Count the time that the orchestrator is away from now on."""
        self._last_connected_s = time.monotonic()

    def stop(self) -> None:
        """End what waits."""
        self._stopping.set()
        opening = self._opening
        if opening is not None:  # an orchestrator that does not answer must not keep the worker
            opening.close("the worker ends")

    def _patiently(self, attempt: Callable[[], Result]) -> Result | None:
        """Repeat an attempt, pausing longer each time, until it succeeds; None when stopped."""
        pause_s = FIRST_PAUSE_S
        while not self._stopping.is_set():
            try:
                return attempt()
            except (ConnectFailed, ChannelClosed, RequestTimeout) as error:
                if self._stopping.is_set():
                    break
                away_s = time.monotonic() - self._last_connected_s
                if away_s + pause_s > self._config.give_up_after_s:
                    address, port = self._config.orchestrator
                    raise ConnectFailed(
                        f"orchestrator at {address}:{port} not reached for {away_s:.0f} s, given up: {error}"
                    ) from error
                logger.info("%s; next try in %.1f s", error, pause_s)
            self._stopping.wait(pause_s * random.uniform(0.7, 1.3))  # so that many nodes do not try at once
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        return None

    def _stored_or_enrolled(self) -> Identity:
        config = self._config
        now = datetime.datetime.now(datetime.UTC)
        found = identities.stored(config.state_dir, config.node, token=self._token, now=now)
        return found or self._enrol()

    def _enrol(self) -> Identity:
        config = self._config
        if self._token is None:
            raise EnrolmentError(
                f"{config.state_dir} holds no usable certificate for {config.node!r} and no token was given; "
                "have the operator make one and start the worker with --token"
            )
        address, port = config.orchestrator
        identity = identities.enrol(
            address,
            port,
            token=self._token,
            node=config.node,
            state_dir=config.state_dir,
            timeout_s=CONNECT_TIMEOUT_S,
        )
        self._token_used = True
        return identity

    def _attach(self) -> Session:
        session = secrets.token_hex(16)
        control, interval_s = self._open("control", session)
        try:
            bulk, _ = self._open("bulk", session)
        except WorkersError:
            control.close("the bulk channel could not be opened")
            raise
        self.note_connected()
        logger.info("%s attached to %s", self._config.node, control)
        return Session(control=control, bulk=bulk, heartbeat_interval_s=interval_s)

    def _open(self, name: str, session: str) -> tuple[link.Channel, float]:
        assert self.identity is not None
        channel = connections.connect(
            *self._config.orchestrator,
            context=self.identity.client_context(),
            expected_name=tls.ORCHESTRATOR,
            handler=self._handler,
            on_close=self._on_close,
            timeout_s=CONNECT_TIMEOUT_S,
        )
        self._opening = channel
        if self._stopping.is_set():  # `stop` may have looked before
            channel.close("the worker ends")
        fields = {
            "channel": name,
            "session": session,
            "address": self._config.listen[0],
            "port": self._port,
            "profile": self._profile.to_fields(),
        }
        try:
            reply = channel.request("attach", fields, timeout_s=ATTACH_TIMEOUT_S)
            return channel, _checked_interval_s(reply)
        except RemoteError as error:
            channel.close("attach was refused")
            if self._token is None or self._token_used:
                raise
            logger.warning("the stored certificate was refused (%s): enrolling with the token", error)
            self.identity = self._enrol()
            raise ConnectFailed(f"attach refused before enrolment: {error}") from error
        except WorkersError:
            channel.close("attach failed")
            raise
        finally:
            self._opening = None


def _checked_interval_s(reply: Frame) -> float:
    interval_s = reply.fields.get("heartbeat_interval_s")
    if not isinstance(interval_s, int | float) or not 0.01 <= interval_s <= 3600:
        raise LinkError(f"the orchestrator's heartbeat_interval_s is {interval_s!r}, not 0.01 to 3600")
    return float(interval_s)
