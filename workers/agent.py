"""The worker process: enrol, attach, tell how it is, carry commands to trainer and shards, come back.

The main thread only attaches and sends heartbeats; commands and peers' frames are served in the channels'
threads, and what the shards tell goes through an outbox with a thread of its own, so that nothing here
ever waits for torch.
"""

from __future__ import annotations

import datetime
import logging
import os
import random
import secrets
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psutil
import torch

from workers import config as configuration
from workers import connections, link, tls
from workers import identity as identities
from workers.config import WorkerConfig
from workers.device import DeviceProfile, Pacer
from workers.errors import (
    ChannelClosed,
    ConfigError,
    ConnectFailed,
    EnrolmentError,
    IdentityMismatch,
    LinkError,
    RemoteError,
    RequestRefused,
    RequestTimeout,
    WireError,
    WorkersError,
)
from workers.identity import Identity, Token
from workers.nic import PacketCounters
from workers.shard import ShardHost
from workers.trainer import Trainer
from workers.wire import Frame

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

PEER_KINDS = frozenset({"activation", "activations", "release"})
SHARD_KINDS = frozenset({"probe.layer", "generate", "cancel"})
CONNECT_TIMEOUT_S = 10.0
ATTACH_TIMEOUT_S = 20.0
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
OUTBOX_LIMIT = 8192
STOP_PATIENCE_S = 3.0
EXIT_CONFIG, EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_FAILED = 2, 3, 4, 1


class CommandHandler(Protocol):
    """What the agent needs of a trainer."""

    def handle(self, frame: Frame) -> link.Reply | None:
        """Carry out one command."""

    def close(self) -> None:
        """End what runs and free what is held."""


class ShardHandler(CommandHandler, Protocol):
    """What the agent needs of a shard host."""

    def on_peer_frame(self, peer_name: str, frame: Frame, *, more: bool) -> None:
        """Take a frame of another node; `more`: others wait behind it."""

    def holdings(self) -> Sequence[str]:
        """Name the shards held now, for the heartbeat."""


class Outbox:
    """Sends notifications in order over whatever control channel is open, and keeps them while none is."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting: deque[tuple[str, Mapping[str, Any]]] = deque()
        self._channel: link.Channel | None = None
        self._closed = False
        self._sending = False
        self._thread = threading.Thread(target=self._send_all, name="outbox", daemon=True)
        self._thread.start()

    def put(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Send a notification or queue it; never waits. The oldest are given up when too many wait."""
        with self._condition:
            if self._sent_at_once(kind, fields):
                return
            if len(self._waiting) >= OUTBOX_LIMIT:
                lost_kind, lost = self._waiting.popleft()
                logger.warning(
                    "%d notifications wait; the oldest is given up: %s %s", OUTBOX_LIMIT, lost_kind, lost
                )
            self._waiting.append((kind, fields))
            self._condition.notify()

    def use(self, channel: link.Channel | None) -> None:
        """Send over `channel` from now on; None: keep until there is one."""
        with self._condition:
            self._channel = channel
            self._condition.notify()

    def close(self) -> None:
        """Stop the thread; what waits is not sent."""
        with self._condition:
            self._closed = True
            self._condition.notify()

    def _sent_at_once(self, kind: str, fields: Mapping[str, Any]) -> bool:
        """Send past the thread, cheaper than waking it, if nothing waits and the socket has room."""
        if self._channel is None or self._waiting or self._sending or self._closed:
            return False
        try:
            return self._channel.notify_at_once(kind, fields)
        except (LinkError, WireError):
            return False  # the thread will find out, and say so

    def _send_all(self) -> None:
        while True:
            with self._condition:
                self._sending = False
                self._condition.wait_for(lambda: self._closed or (self._waiting and self._channel))
                if self._closed:
                    return
                channel, (kind, fields) = self._channel, self._waiting.popleft()
                self._sending = True
            assert channel is not None
            try:
                channel.notify(kind, fields)
            except (ChannelClosed, RequestTimeout) as error:
                logger.info("%s waits for the next connection: %s", kind, error)
                with self._condition:
                    self._waiting.appendleft((kind, fields))
                    if self._channel is channel:
                        self._channel = None
            except WireError:
                logger.exception("notification %s cannot be sent", kind)


class Agent:
    """One worker, from enrolment to its end; `run` in one thread, `stop` from any other."""

    def __init__(
        self,
        config: WorkerConfig,
        profile: DeviceProfile,
        *,
        make_trainer: Callable[[Pacer, Path | None], CommandHandler] = Trainer,
        make_shards: Callable[..., ShardHandler] = ShardHost,
    ) -> None:
        self._config = config
        self._profile = profile
        self._token = Token.parse(config.token) if config.token else None
        self._token_used = False
        self._identity: Identity | None = None
        self._pacer = Pacer(profile)
        self._trainer = make_trainer(self._pacer, config.local_data)
        self._outbox = Outbox()
        self._shards = make_shards(
            config.node,
            self._pacer,
            memory_bytes=profile.memory_bytes,
            dial=self._dial_peer,
            notify=self._outbox.put,
        )
        self._process = psutil.Process()
        self._packets = PacketCounters(config.listen[0])
        self._busy: str | None = None
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._opening: link.Channel | None = None
        self._last_connected_s = time.monotonic()

    def run(self) -> None:
        """Work until `stop`.

        Raises:
            EnrolmentError, IdentityMismatch, RemoteError: the orchestrator does not take this worker.
            ConnectFailed: the orchestrator was away for longer than the configuration allows.
            ConfigError: the listening address or the state directory cannot be used.
        """
        with ExitStack() as stack:
            stack.callback(self._pacer.close)
            stack.callback(self._outbox.close)
            stack.callback(self._shards.close)
            stack.callback(self._trainer.close)
            listening = stack.enter_context(_listen(*self._config.listen))
            self._identity = self._patiently(self._obtain_identity)
            if self._identity is None:
                return
            server = connections.serve(
                listening,
                self._identity.server_context(),
                handler=self._on_peer_frame,
                inline_kinds=PEER_KINDS,
            )
            stack.callback(server.close, "the worker ends")
            while (session := self._patiently(self._attach)) is not None:
                self._stay(*session)

    def stop(self) -> None:
        """End `run` soon."""
        self._stopping.set()
        self._wake.set()
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

    def _obtain_identity(self) -> Identity:
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

    def _attach(self) -> tuple[link.Channel, link.Channel, float]:
        """Open both channels to the orchestrator; answers (control, bulk, heartbeat interval)."""
        session = secrets.token_hex(16)
        control = self._open("control", session)
        try:
            bulk = self._open("bulk", session)
        except WorkersError:
            control[0].close("the bulk channel could not be opened")
            raise
        self._last_connected_s = time.monotonic()
        logger.info("%s attached to %s", self._config.node, control[0])
        return control[0], bulk[0], control[1]

    def _open(self, name: str, session: str) -> tuple[link.Channel, float]:
        assert self._identity is not None
        channel = connections.connect(
            *self._config.orchestrator,
            context=self._identity.client_context(),
            expected_name=tls.ORCHESTRATOR,
            handler=self._on_command,
            on_close=lambda _channel, _reason: self._wake.set(),
            timeout_s=CONNECT_TIMEOUT_S,
        )
        self._opening = channel
        if self._stopping.is_set():  # `stop` may have looked before
            channel.close("the worker ends")
        address, port = self._config.listen
        fields = {
            "channel": name,
            "session": session,
            "address": address,
            "port": port,
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
            self._identity = self._enrol()
            raise ConnectFailed(f"attach refused before enrolment: {error}") from error
        except WorkersError:
            channel.close("attach failed")
            raise
        finally:
            self._opening = None

    def _stay(self, control: link.Channel, bulk: link.Channel, interval_s: float) -> None:
        """Send heartbeats until a channel ends or the worker is stopped."""
        self._outbox.use(control)
        try:
            while not (self._stopping.is_set() or control.closed or bulk.closed):
                self._last_connected_s = time.monotonic()
                try:
                    control.notify("heartbeat", self._heartbeat(), timeout_s=interval_s)
                except RequestTimeout as error:
                    logger.warning("heartbeat left out: %s", error)
                except ChannelClosed:
                    break
                if self._wake.wait(interval_s):
                    self._wake.clear()
        finally:
            self._outbox.use(None)
            ended = bulk if bulk.closed and not control.closed else control
            reason = ended.closed_reason or "the worker ends"
            logger.info("%s detached: %s", self._config.node, reason)
            for channel in (control, bulk):
                channel.close(reason)

    def _heartbeat(self) -> dict[str, Any]:
        paced = self._profile.pacing
        return {
            "sent_at": time.time(),
            # An emulated device's load is what it emulates; the machine's is shared by all of them.
            "cpu_utilisation": self._pacer.utilisation() if paced else psutil.cpu_percent() / 100,
            "rss_bytes": self._process.memory_info().rss,
            "free_memory_bytes": self._free_memory_bytes(),
            "busy": self._busy,
            "shards": list(self._shards.holdings()),
            "packets": self._packets.read(),
        }

    def _free_memory_bytes(self) -> int:
        """Say what fine-tuning may take now: what is free, up to what the configuration allows."""
        free = psutil.virtual_memory().available
        limit = self._config.training_memory_bytes
        return free if limit is None else min(free, limit)

    def _on_command(self, _channel: link.Channel, frame: Frame) -> link.Reply | None:
        """Serve the orchestrator, whose certificate the channel has verified."""
        if frame.id is None:
            raise RequestRefused("not-served", f"{frame.kind!r} must be a request")
        reply = self._carry_out(frame)
        if frame.receipt is None:
            return reply
        reply = reply or link.Reply()
        received = frame.receipt.to_fields(time.monotonic())
        return link.Reply({**reply.fields, "received": received}, reply.tensors)

    def _carry_out(self, frame: Frame) -> link.Reply | None:
        if frame.kind.startswith("train."):
            self._busy = frame.kind
            try:
                return self._trainer.handle(frame)
            finally:
                self._busy = None
        if frame.kind.startswith("shard.") or frame.kind in SHARD_KINDS:
            return self._shards.handle(frame)
        raise RequestRefused("not-served", f"a worker does not know {frame.kind!r}")

    def _on_peer_frame(self, channel: link.Channel, frame: Frame) -> None:
        """Take activations of other nodes; commands come from the orchestrator, on channels to it."""
        if channel.peer_name is None or frame.kind not in PEER_KINDS or frame.id is not None:
            raise WireError(f"{frame.kind!r} from {channel.peer_name!r} is not taken here")
        self._shards.on_peer_frame(channel.peer_name, frame, more=channel.more_waiting())

    def _dial_peer(self, node: str, address: str, port: int) -> link.Channel:
        """Open a channel to another node; raises ConnectFailed or IdentityMismatch."""
        if self._identity is None:
            raise ConnectFailed(f"{node} at {address}:{port}: this worker has no certificate yet")
        return connections.connect(
            address,
            port,
            context=self._identity.client_context(),
            expected_name=node,
            timeout_s=CONNECT_TIMEOUT_S,
        )


def _checked_interval_s(reply: Frame) -> float:
    interval_s = reply.fields.get("heartbeat_interval_s")
    if not isinstance(interval_s, int | float) or not 0.01 <= interval_s <= 3600:
        raise LinkError(f"the orchestrator's heartbeat_interval_s is {interval_s!r}, not 0.01 to 3600")
    return float(interval_s)


def _listen(address: str, port: int) -> socket.socket:
    try:
        return socket.create_server((address, port), backlog=64)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {address}:{port}: {error.strerror}; give a free address of this node"
        ) from error


def make_profile(config: WorkerConfig) -> DeviceProfile:
    """Describe this device; what the configuration leaves open is measured."""
    return DeviceProfile(
        device="cuda" if torch.cuda.is_available() and not config.emulated else "cpu",
        cpu_count=1 if config.emulated else os.cpu_count() or 1,
        memory_bytes=config.memory_bytes or psutil.virtual_memory().available // 2,
        compute_flops=config.compute_flops or measure_flops(),
        layer_overhead_s=config.layer_overhead_s,
        power=config.power,
        emulated=config.emulated,
        pacing=config.pacing,
        torch=torch.__version__,
        pid=os.getpid(),
    )


def measure_flops(*, size: int = 512, repetitions: int = 8) -> float:
    """Measure the flop/s of matrix products with torch's present number of threads; the best of several."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    best_s = min(_product_s(a, b) for _ in range(repetitions))
    return 2 * size**3 / best_s


def _product_s(a: torch.Tensor, b: torch.Tensor) -> float:
    started_s = time.perf_counter()
    a @ b
    return max(time.perf_counter() - started_s, 1e-9)


def work(config: WorkerConfig) -> int:
    """Run a worker in this process until it ends or is told to by SIGTERM or SIGINT; answers the exit code.

    To be called in the main thread.
    """
    if threads := config.threads or (1 if config.emulated else None):
        torch.set_num_threads(threads)
    try:
        agent = Agent(config, make_profile(config))
        ended = threading.Event()
        _stop_at_signals(agent, ended)
        agent.run()
        ended.set()
    except ConfigError as error:
        logger.error("%s", error)
        return EXIT_CONFIG
    except (EnrolmentError, IdentityMismatch, RemoteError) as error:
        logger.error("the orchestrator does not take this worker: %s", error)
        return EXIT_REFUSED
    except ConnectFailed as error:
        logger.error("%s", error)
        return EXIT_UNREACHABLE
    except LinkError as error:
        logger.error("the orchestrator cannot be worked with: %s", error)
        return EXIT_REFUSED
    except Exception:
        logger.exception("the worker failed")
        return EXIT_FAILED
    logger.info("%s ends", config.node)
    return 0


def _stop_at_signals(agent: Agent, ended: threading.Event) -> None:
    """Stop the agent at SIGTERM or SIGINT.

    The handler does nothing, since it may interrupt a thread that holds a lock; the interpreter writes the
    signal's number to a socket, and a thread of its own reads it there. Masks would not do: libraries
    start threads when they are imported.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)

    def wait() -> None:
        with reader, writer:
            number = reader.recv(1)[0]
            logger.info("%s: stopping", signal.Signals(number).name)
            agent.stop()
            if not ended.wait(STOP_PATIENCE_S):
                logger.warning("something does not end; leaving it")
                leave(128 + number)

    threading.Thread(target=wait, name="signals", daemon=True).start()


def leave(code: int) -> None:
    """End the process at once, without the interpreter's clean-up, which threads inside torch can crash."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `utopia-worker`."""
    try:
        config = configuration.from_arguments(arguments)
    except ConfigError as error:
        sys.exit(f"utopia-worker: {error}")
    configuration.configure_logging(config.node)
    leave(work(config))


if __name__ == "__main__":
    main()
