"""Forks workers into the namespaces of emulated hosts: torch is imported once, for all of them.

`python -m workers.zygote --socket PATH` serves JSON lines on a Unix socket that only this user can open:

    {"call": "spawn", "node": "h1", "netns": "/proc/123/ns/net" or null, "log": "FILE", "worker": {...}}
        -> {"pid": n}; `worker` as in workers/config.py; "nice": 0 to 19 (0) is the process's priority
    {"call": "reap"}  -> {"exited": [{"pid": n, "status": exit code, or minus the signal's number}]}
    {"call": "stop"}  -> {"stopped": [pids]}, and the zygote ends

Any other answer is {"error": "..."}. The process has one thread, because only that survives a fork. Its
children end with it. With `--model FOLDER` it has imported what training that model takes, too.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib
import json
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workers import namespaces
from workers.config import WorkerConfig, configure_logging
from workers.errors import ConfigError, ModelError, WorkersError

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT)
MAX_LINE_BYTES = 1 << 20
STOP_PATIENCE_S = 5.0
SEND_TIMEOUT_S = 5.0


class ZygoteError(WorkersError):
    """A call that cannot be carried out; the text is the answer."""


@dataclass(slots=True)
class _Client:
    """One connection to the zygote and what it has sent of its next line."""

    sock: socket.socket
    received: bytearray = field(default_factory=bytearray)


class Zygote:
    """Serves calls on a Unix socket and forks workers that run `work(config)`."""

    def __init__(self, socket_path: Path, *, work: Callable[[WorkerConfig], int]) -> None:
        self._work = work
        self._children: dict[int, str] = {}
        self._running = True
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._selector = selectors.DefaultSelector()
        self._socket_path = socket_path
        self._listening = _listen(socket_path)
        self._selector.register(self._listening, selectors.EVENT_READ)
        # Signals only make the selector return: a handler that raised could leave a fork half done.
        self._signals, writer = socket.socketpair()
        writer.setblocking(False)
        self._signals.setblocking(False)
        self._signal_writer = writer
        self._selector.register(self._signals, selectors.EVENT_READ)
        signal.set_wakeup_fd(writer.fileno())
        for number in ENDING_SIGNALS:
            signal.signal(number, self._on_signal)

    def run(self) -> None:
        """Serve until told to stop by call or signal; ends all children."""
        try:
            while self._running:
                for key, _ in self._selector.select():
                    self._serve(key)
        finally:
            self._end_children()
            with contextlib.suppress(FileNotFoundError):
                self._socket_path.unlink()

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._running = False

    def _serve(self, key: selectors.SelectorKey) -> None:
        if key.fileobj is self._signals:
            with contextlib.suppress(BlockingIOError):
                self._signals.recv(64)
        elif key.fileobj is self._listening:
            sock, _ = self._listening.accept()
            sock.settimeout(SEND_TIMEOUT_S)
            self._selector.register(sock, selectors.EVENT_READ, _Client(sock))
        else:
            self._take(key.data)

    def _take(self, client: _Client) -> None:
        try:
            block = client.sock.recv(1 << 16)
            client.received += block
            while (end := client.received.find(b"\n")) >= 0:
                line = bytes(client.received[:end])
                del client.received[: end + 1]
                client.sock.sendall(json.dumps(self.answer(line)).encode() + b"\n")
        except OSError as error:
            logger.info("a client is gone: %s", error)
            block = b""
        if not block or len(client.received) > MAX_LINE_BYTES:
            self._selector.unregister(client.sock)
            client.sock.close()

    def answer(self, line: bytes) -> dict[str, Any]:
        """Carry out one call; every failure is an answer."""
        try:
            call = _parsed(line)
            match call.get("call"):
                case "spawn":
                    return {"pid": self._spawn(call)}
                case "reap":
                    return {"exited": self._reap()}
                case "stop":
                    self._running = False
                    return {"stopped": self._end_children()}
                case other:
                    raise ZygoteError(f"call {other!r} is unknown; known are spawn, reap, stop")
        except WorkersError as error:
            return {"error": str(error)}

    def _spawn(self, call: dict[str, Any]) -> int:
        if unknown := sorted(set(call) - {"call", "node", "netns", "log", "worker", "nice"}):
            raise ZygoteError(f"unknown keys: {', '.join(unknown)}")
        node, netns, log, worker = (call.get(key) for key in ("node", "netns", "log", "worker"))
        if not (isinstance(node, str) and isinstance(log, str) and isinstance(worker, dict)):
            raise ZygoteError("spawn needs node (text), log (path) and worker (object)")
        if netns is not None and not isinstance(netns, str):
            raise ZygoteError("netns must be a path or null")
        nice = call.get("nice", 0)
        if not isinstance(nice, int) or isinstance(nice, bool) or not 0 <= nice <= 19:
            raise ZygoteError(f"nice is {nice!r}; it must be a whole number from 0 to 19")
        config = WorkerConfig.from_mapping(worker)
        if config.node != node:
            raise ConfigError(f"node is {node!r}, but worker.node is {config.node!r}")
        with contextlib.ExitStack() as stack:
            log_fd = _opened(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, "log", stack)
            netns_fd = None if netns is None else _opened(netns, os.O_RDONLY, "netns", stack)
            parent = os.getpid()
            # Held back over the fork: a child that still had the zygote's handlers would swallow its end.
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
            stack.callback(signal.pthread_sigmask, signal.SIG_UNBLOCK, ENDING_SIGNALS)
            pid = os.fork()
            if pid == 0:
                self._become_worker(config, nice=nice, netns_fd=netns_fd, log_fd=log_fd, parent=parent)
        self._children[pid] = node
        logger.info("forked %s as %d", node, pid)
        return pid

    def _become_worker(
        self, config: WorkerConfig, *, nice: int, netns_fd: int | None, log_fd: int, parent: int
    ) -> None:
        """Turn the forked child into a worker; does not return."""
        code = 1
        try:
            self._libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)
            os.dup2(log_fd, 1)
            os.dup2(log_fd, 2)
            os.close(log_fd)
            self._forget_zygote()
            if netns_fd is not None:
                self._enter(netns_fd)
            os.setpriority(os.PRIO_PROCESS, 0, nice)
            configure_logging(config.node)
            code = self._work(config)
        except BaseException:
            logger.exception("%s did not start", config.node)
        finally:
            with contextlib.suppress(Exception):
                logging.shutdown()
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _enter(self, netns_fd: int) -> None:
        try:
            namespaces.enter(netns_fd)
        except OSError as error:
            raise ZygoteError(f"cannot enter the host's namespace: {error.strerror}") from error
        os.close(netns_fd)

    def _forget_zygote(self) -> None:
        signal.set_wakeup_fd(-1)
        for number in ENDING_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
        # Only closed, never unregistered: the child shares the parent's epoll object.
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._signal_writer.close()
        self._selector.close()

    def _reap(self) -> list[dict[str, int]]:
        exited = []
        for pid in list(self._children):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found == pid:
                exited.append({"pid": pid, "status": os.waitstatus_to_exitcode(status)})
                logger.info("%s (%d) ended with %d", self._children.pop(pid), pid, exited[-1]["status"])
        return exited

    def _end_children(self) -> list[int]:
        """End all workers: SIGTERM, then SIGKILL for those that stay."""
        ended = list(self._children)
        self._signal_all(signal.SIGTERM)
        deadline_s = time.monotonic() + STOP_PATIENCE_S
        while self._children and time.monotonic() < deadline_s:
            self._reap()
            time.sleep(0.02)
        if self._children:
            logger.warning("killing %s", ", ".join(self._children.values()))
            self._signal_all(signal.SIGKILL)
            for pid in list(self._children):
                os.waitpid(pid, 0)
                del self._children[pid]
        return ended

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _listen(path: Path) -> socket.socket:
    """Listen on a Unix socket of mode 0600; one left over by a dead process is replaced.

    The file appears under its name when it can be connected to, not before.
    """
    _refuse_served(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    making = path.with_name(path.name + ".new")
    before = os.umask(0o177)
    try:
        making.unlink(missing_ok=True)
        sock.bind(str(making))
        sock.listen(8)
        making.rename(path)
    except OSError as error:
        sock.close()
        raise ConfigError(f"cannot make the socket {path}: {error.strerror or error}") from error
    finally:
        os.umask(before)
    return sock


def _refuse_served(path: Path) -> None:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(str(path))
    except (ConnectionRefusedError, FileNotFoundError):
        return
    except OSError as error:
        raise ConfigError(f"cannot use {path} as a socket: {error.strerror or error}") from error
    raise ConfigError(f"a zygote serves {path} already; stop it or give another path")


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        call = json.loads(line)
    except ValueError as error:
        raise ZygoteError(f"a call is one line of JSON, but: {error}") from error
    if not isinstance(call, dict):
        raise ZygoteError("a call is a JSON object")
    return call


def _opened(path: str, flags: int, what: str, stack: contextlib.ExitStack) -> int:
    try:
        fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ZygoteError(f"{what} {path}: {error.strerror}") from error
    stack.callback(os.close, fd)
    return fd


def _import_for(model: Path) -> None:
    """Import what training a model takes: transformers, for some families, which is seconds of CPU."""
    from workers.models.architecture import architecture
    from workers.models.loader import read_config

    try:
        architecture(read_config(model))
    except ModelError as error:  # who asks for a job with it is told
        logger.warning("nothing is imported for model %s: %s", model, error)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the zygote."""
    parser = argparse.ArgumentParser(prog="python -m workers.zygote", description=__doc__.splitlines()[0])
    parser.add_argument("--socket", required=True, type=Path, metavar="PATH")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="what the workers are going to train")
    options = parser.parse_args(arguments)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    configure_logging("zygote")
    from workers import agent  # after the environment is set: importing torch sizes its thread pools

    # What torch.optim imports on first use takes 1.5 s of CPU: once here instead of once in every worker.
    importlib.import_module("torch._dynamo")
    if options.model is not None:
        _import_for(options.model)
    importlib.import_module("workers.models.decoders").compile_kernels()  # likewise
    try:
        zygote = Zygote(options.socket, work=agent.work)
    except ConfigError as error:
        sys.exit(f"zygote: {error}")
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        logger.warning("%d threads run already; those but one will be missing in the workers", threads)
    gc.collect()
    gc.freeze()  # what is loaded by now stays, so that collections in the workers do not copy its pages
    logger.info("serving %s", options.socket)
    zygote.run()


if __name__ == "__main__":
    main()
