"""One thread that does a node's inference work, one task after another.

What the tasks touch (caches, running generations) belongs to this thread alone, so none of it needs a
lock; sockets and heartbeats live in other threads and never wait for it.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from workers.errors import RequestRefused

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
MAX_TASKS = 4096
STOP_PATIENCE_S = 5.0


class ComputeThread:
    """Runs tasks in the order they came.

    `on_idle` is called whenever nothing is left to do; it returns the seconds until it wants to be called
    again, or None.
    """

    def __init__(self, name: str, *, on_idle: Callable[[], float | None]) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._on_idle = on_idle
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, task: Callable[[], None]) -> None:
        """Queue a task; raises RequestRefused when too many wait or the thread is ending."""
        if self._closing.is_set():
            raise RequestRefused("ending", "this worker is ending")
        if self._tasks.qsize() >= MAX_TASKS:
            raise RequestRefused("busy", f"{MAX_TASKS} tasks wait on this node")
        self._tasks.put(task)

    def follow_up(self, task: Callable[[], None]) -> None:
        """Queue what a task has to be followed by; never refused, because a task causes one at most."""
        self._tasks.put(task)

    def call(self, task: Callable[[], Result], timeout_s: float) -> Result:
        """Run a task in its turn and return its result, or raise what it raised."""
        future: Future[Result] = Future()
        self.submit(lambda: _fulfil(future, task))
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()
            raise RequestRefused("busy", f"this node did not get to it within {timeout_s:g} s") from None

    def close(self) -> None:
        """End the thread after the task that runs; what waits is dropped."""
        self._closing.set()
        self._tasks.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(STOP_PATIENCE_S)

    def _work(self) -> None:
        while not self._closing.is_set():
            try:
                task = self._next()
                if task is not None:
                    task()
            except Exception:  # the outermost loop: one broken task must not end the others
                logger.exception("a task failed")

    def _next(self) -> Callable[[], None] | None:
        try:
            return self._tasks.get_nowait()
        except queue.Empty:
            wait_s = self._on_idle()
        try:
            return self._tasks.get(timeout=wait_s)
        except queue.Empty:
            return None


def _fulfil(future: Future[Result], task: Callable[[], Result]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(task())
    except Exception as error:  # noqa: BLE001 - goes to the caller, whatever it is
        future.set_exception(error)
