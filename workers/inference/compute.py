"""A node's inference work, one task after another, in whichever thread has the turn.

What the tasks touch (caches, running generations) belongs to the thread whose turn it is, so none of it needs
a lock. That is a thread of its own, or, for a short task that finds nothing else to do, the one that brings
it: a row that goes through a ring is then received, computed and sent on without changing threads
(docs/adr/0019). Heartbeats and commands never wait for it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from workers.errors import RequestRefused

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Task = Callable[[], None]
MAX_TASKS = 4096
STOP_PATIENCE_S = 5.0
LOOK_S = 0.1
"""How late `on_idle` may be called for what another thread's turn has changed."""


class ComputeThread:
    """Runs tasks in the order they came, one at a time; long ones take turns with the others.

    Between two long tasks all others run that had come by the end of the first: whatever waits for its turn
    waits for one long task at most, and neither kind keeps the other out. `on_idle` is called when nothing
    is left to do; it returns the seconds until it wants to be called again, or None.
    """

    def __init__(self, name: str, *, on_idle: Callable[[], float | None]) -> None:
        self._tasks: deque[Task] = deque()
        self._long: deque[Task] = deque()
        self._before_long = 0
        self._on_idle = on_idle
        self._changed = threading.Condition()
        self._turn: int | None = None
        self._own: deque[Task] = deque()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, task: Task, *, long: bool = False) -> None:
        """Queue a task; raises RequestRefused when too many wait or the thread is ending."""
        with self._changed:
            self._check_open()
            self._queue(task, long=long)

    def offer(self, task: Task) -> None:
        """Run a short task, and what follows it, in this thread if nothing else is to be done; else queue it.

        Raises RequestRefused as `submit` does; what the task raises is logged.
        """
        with self._changed:
            self._check_open()
            if self._turn is not None or self._waits():
                self._queue(task)
                return
            self._turn = threading.get_ident()
        _run(task)
        while self._own:
            _run(self._own.popleft())
        with self._changed:
            self._turn = None
            if self._waits() or self._closing:
                self._changed.notify()

    def follow_up(self, task: Task, *, long: bool = False) -> None:
        """Queue what a task has to be followed by; never refused, because a task causes one of a kind."""
        if not long and self._turn == threading.get_ident() and self._turn != self._thread.ident:
            self._own.append(task)
            return
        with self._changed:
            self._queue(task, long=long)

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
        with self._changed:
            self._closing = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(STOP_PATIENCE_S)

    def _check_open(self) -> None:
        if self._closing:
            raise RequestRefused("ending", "this worker is ending")
        if len(self._tasks) + len(self._long) >= MAX_TASKS:
            raise RequestRefused("busy", f"{MAX_TASKS} tasks wait on this node")

    def _queue(self, task: Task, *, long: bool = False) -> None:
        if not long:
            self._tasks.append(task)
        else:
            if not self._long:
                self._before_long = len(self._tasks)
            self._long.append(task)
        if self._turn is None:
            self._changed.notify()

    def _waits(self) -> bool:
        return bool(self._tasks or self._long)

    def _next(self) -> tuple[Task, bool]:
        """Take the task whose turn it is, and tell whether it is a long one; one must wait."""
        if self._tasks and (self._before_long or not self._long):
            self._before_long = max(0, self._before_long - 1)
            return self._tasks.popleft(), False
        return self._long.popleft(), True

    def _work(self) -> None:
        wait_s: float | None = 0.0
        while True:
            with self._changed:
                due = self._changed.wait_for(
                    self._can_work, LOOK_S if wait_s is None else min(wait_s, LOOK_S)
                )
                if self._closing and self._turn is None:
                    return
                if self._turn is not None:
                    continue
                self._turn = self._thread.ident
                task, long = self._next() if due else (None, False)
            if task is not None:
                _run(task)
            if not self._waits():
                wait_s = self._idle()
            with self._changed:
                self._turn = None
                if long:
                    self._before_long = len(self._tasks)

    def _can_work(self) -> bool:
        return self._turn is None and (self._waits() or self._closing)

    def _idle(self) -> float | None:
        try:
            return self._on_idle()
        except Exception:
            logger.exception("looking for what is overdue failed")
            return None


def _run(task: Task) -> None:
    try:
        task()
    except Exception:  # the outermost loop: one broken task must not end the others
        logger.exception("a task failed")


def _fulfil(future: Future[Result], task: Callable[[], Result]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(task())
    except Exception as error:  # noqa: BLE001 - goes to the caller, whatever it is
        future.set_exception(error)
