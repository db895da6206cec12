"""Which requests wait because their caches did not fit, and when one of them may be tried again. No I/O."""

from __future__ import annotations

import bisect
from typing import Generic, Protocol, TypeVar


class Aged(Protocol):
    """A request; `age` is less the earlier it came."""

    @property
    def age(self) -> int:
        """Its place in the order of arrival."""


One = TypeVar("One", bound=Aged)


class Waiting(Generic[One]):
    """Requests that were put back, the oldest first.

    One is tried when another has ended, and the next one when that one has made a token, since what it needs
    fits then. One that is put back again shows that there is no room until another ends; so for each end
    there are no more tries than requests, and the oldest never waits.
    """

    def __init__(self) -> None:
        self._waiting: list[One] = []
        self._trying: One | None = None
        self._room = True

    def __len__(self) -> int:
        return len(self._waiting)

    def all(self) -> list[One]:
        """Return those that wait, the oldest first."""
        return list(self._waiting)

    def put(self, request: One, *, room: bool = False) -> None:
        """Have a request wait; `room`: it has not been tried yet."""
        bisect.insort(self._waiting, request, key=lambda one: one.age)
        self._room = self._room and room

    def next(self) -> One | None:
        """Return the one to be tried now, which does not wait any more; None if none is."""
        if not self._room or not self._waiting:
            return None
        self._room, self._trying = False, self._waiting.pop(0)
        return self._trying

    def made_token(self, request: One) -> None:
        """Learn that a request goes on."""
        if request is self._trying:
            self._trying, self._room = None, True

    def ended(self, request: One) -> None:
        """Learn that a request, waiting or not, has ended."""
        if request in self._waiting:
            self._waiting.remove(request)
        else:
            self.more_room()

    def more_room(self) -> None:
        """Learn that there may be room that was not there before."""
        self._trying, self._room = None, True
