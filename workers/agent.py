"""The worker process: join, tell how it is, carry commands to trainer and shards, come back.

The main thread only attaches and sends heartbeats; commands and peers' frames are served in the channels'
threads, and what the shards tell goes through an outbox with a thread of its own, so that nothing here
ever waits for torch.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch

from workers import config as configuration
from workers.config import WorkerConfig
from workers.device import DeviceProfile, Pacer
from workers.device_profile import make_profile
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
)
from workers.finetune.trainer import Trainer
from workers.identity import Identity
from workers.inference.shard import ShardHost
from workers.joining import CONNECT_TIMEOUT_S, Joining, Session
from workers.nic import PacketCounters
from workers.wire import connections, link
from workers.wire.frames import Frame
from workers.wire.outbox import Outbox

logger = logging.getLogger(__name__)

PEER_KINDS = frozenset({"activation", "activations", "passed", "release"})
SHARD_KINDS = frozenset({"probe.layer", "generate", "cancel"})
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

    def caches(self) -> dict[str, Any]:
        """Say what caches take and could take, for the heartbeat."""


class Agent:
    """One worker, from enrolment to its end; `run` in one thread, `stop` from any other."""

    def __init__(
        self,
        config: WorkerConfig,
        profile: DeviceProfile,
        *,
        make_trainer: Callable[[Pacer, Path | None], CommandHandler] = Trainer,
        make_shards: Callable[..., ShardHandler] = ShardHost,
        obtain_identity: Callable[[], Identity] | None = None,
    ) -> None:
        """`obtain_identity` replaces enrolment and what is stored of it."""
        self._config = config
        self._profile = profile
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
        self._joining = Joining(
            config,
            profile,
            handler=self._on_command,
            on_close=lambda _channel, _reason: self._wake.set(),
            obtain_identity=obtain_identity,
        )

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
            self._joining.listens_at(listening.getsockname()[1])
            identity = self._joining.identify()
            if identity is None:
                return
            server = connections.serve(
                listening,
                identity.server_context(),
                handler=self._on_peer_frame,
                inline_kinds=PEER_KINDS,
            )
            stack.callback(server.close, "the worker ends")
            while (session := self._joining.attach()) is not None:
                self._stay(session)

    def stop(self) -> None:
        """End `run` soon."""
        self._stopping.set()
        self._wake.set()
        self._joining.stop()

    def _stay(self, session: Session) -> None:
        """Send heartbeats until a channel ends or the worker is stopped."""
        control, bulk, interval_s = session.control, session.bulk, session.heartbeat_interval_s
        self._outbox.use(control)
        try:
            while not (self._stopping.is_set() or control.closed or bulk.closed):
                self._joining.note_connected()
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
            "caches": self._shards.caches(),
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
        identity = self._joining.identity
        if identity is None:
            raise ConnectFailed(f"{node} at {address}:{port}: this worker has no certificate yet")
        try:
            context = identity.client_context()
        except EnrolmentError as error:
            raise ConnectFailed(f"{node} at {address}:{port}: {error}") from error
        return connections.connect(
            address,
            port,
            context=context,
            expected_name=node,
            timeout_s=CONNECT_TIMEOUT_S,
        )


def _listen(address: str, port: int) -> socket.socket:
    try:
        return socket.create_server((address, port), backlog=64)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {address}:{port}: {error.strerror}; give a free address of this node"
        ) from error


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
