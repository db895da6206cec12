"""The requests of a head: by name, by the number its ring knows them by, and those that wait for room."""

from __future__ import annotations

import itertools

from workers.inference.generation import Generation
from workers.inference.waiting import Waiting

MOST_REQUESTS = 256


class Requests:
    """What one deployment's head is answering; used by whoever has the compute thread's turn.

    `get(number)` returns the request that the ring knows by a number, None if none is (any more).
    """

    def __init__(self) -> None:
        self._named: dict[str, Generation] = {}
        self._numbered: dict[int, Generation] = {}
        self._numbers = itertools.count(1)
        self._waiting: Waiting[Generation] = Waiting()
        self.get = self._numbered.get
        self.put_back_total = 0

    def all(self) -> list[Generation]:
        """Return all, in the order of their coming."""
        return list(self._named.values())

    def waiting(self) -> list[Generation]:
        """Return those that wait for room for their caches, the oldest first."""
        return self._waiting.all()

    @property
    def waiting_count(self) -> int:
        """How many wait for room for their caches."""
        return len(self._waiting)

    @property
    def under_way_count(self) -> int:
        """How many are in the ring or about to be."""
        return len(self._named) - len(self._waiting)

    def refusal(self, request: str) -> str | None:
        """Return why a request of this name cannot be taken now, if so."""
        if request in self._named:
            return f"request {request!r} is already running"
        if len(self._named) >= MOST_REQUESTS:
            return f"{MOST_REQUESTS} requests are running"
        return None

    def enter(self, generation: Generation) -> bool:
        """Take a request; tells whether it may go: where others wait for room, those come first."""
        generation.number = generation.age = next(self._numbers)
        self._named[generation.request] = generation
        self._numbered[generation.number] = generation
        if not len(self._waiting):
            return True
        generation.put_back = True
        self._waiting.put(generation, room=True)
        return False

    def is_alone(self) -> bool:
        """Tell whether only one of them has caches, so that there will never be more room for it."""
        return sum(not one.put_back for one in self._named.values()) == 1

    def youngest(self) -> Generation:
        """Return the last of those that have caches."""
        return [one for one in self._named.values() if not one.put_back][-1]

    def put_back(self, generation: Generation) -> None:
        """Have one wait until there may be room."""
        generation.put_back = True
        self._waiting.put(generation)
        self.put_back_total += 1

    def next_waiting(self) -> Generation | None:
        """Return one that is to be tried again now; it does not wait any more."""
        generation = self._waiting.next()
        if generation is not None:
            generation.put_back = False
        return generation

    def more_room(self) -> None:
        """Learn that there may be room that was not there before."""
        self._waiting.more_room()

    def made_token(self, generation: Generation) -> None:
        """Learn that a request goes on, so that what it needs fits."""
        self._waiting.made_token(generation)

    def renumber(self, generation: Generation) -> None:
        """Give a request another number: what still comes of the old one is not known."""
        del self._numbered[generation.number]
        generation.number = next(self._numbers)
        self._numbered[generation.number] = generation

    def leave(self, generation: Generation) -> None:
        """Forget one that has ended; its number first, its place among the others by `ended`."""
        del self._named[generation.request], self._numbered[generation.number]

    def ended(self, generation: Generation) -> None:
        """Learn that what a request held is free."""
        self._waiting.ended(generation)
