"""Sending to the next node: at once where that takes no waiting, in order in any case."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from model_worlds import wait_for

from workers.errors import ChannelClosed
from workers.inference.assignment import Neighbour
from workers.inference.peers import FEW_FRAMES, PeerLink
from workers.wire.frames import Form

NEXT = Neighbour(node="b", address="127.0.0.1", port=1)


class Channel:
    """A channel that can be full, or broken."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []
        self.tensors: list[dict[str, Any]] = []
        self.full = False
        self.broken = False
        self.gate = threading.Event()
        self.gate.set()

    def notify(self, kind: str, fields: Any = None, tensors: Any = None, timeout_s: float = 1.0) -> None:
        self.gate.wait(10)
        if self.broken:
            raise ChannelClosed("broken")
        self.sent.append((kind, "queued"))
        self.tensors.append({name: tensor.tolist() for name, tensor in (tensors or {}).items()})

    def notify_at_once(self, kind: str, fields: Mapping[str, Any], tensors: Any = None) -> bool:
        if self.broken:
            raise ChannelClosed("broken")
        if not self.full:
            self.sent.append((kind, "at once"))
        return not self.full

    def send_form_at_once(self, form: Form) -> bool:
        return self.notify_at_once(form.kind, form.fields)

    def close(self) -> None:
        self.broken = True


@pytest.fixture
def made() -> list[Channel]:
    return []


@pytest.fixture
def link(made: list[Channel]):
    def dial(_node: str, _address: str, _port: int) -> Channel:
        made.append(Channel())
        return made[-1]

    found = PeerLink(NEXT, dial)
    found.open()
    yield found
    found.close()


def test_a_frame_goes_at_once_where_the_socket_takes_it(link: PeerLink, made: list[Channel]) -> None:
    link.send("a", {})
    assert made[0].sent == [("a", "at once")]


def test_a_frame_never_overtakes_one_that_waits(link: PeerLink, made: list[Channel]) -> None:
    channel = made[0]
    channel.full = True
    channel.gate.clear()
    link.send("a", {})
    channel.full = False
    link.send("b", {})
    channel.gate.set()
    wait_for(lambda: len(channel.sent) == 2, "both frames")
    assert channel.sent == [("a", "queued"), ("b", "queued")]
    wait_for(lambda: not link._undelivered, "the sender")
    link.send("c", {})
    assert channel.sent[-1] == ("c", "at once")


def test_a_form_that_has_to_wait_is_sent_as_it_was(link: PeerLink, made: list[Channel]) -> None:
    form = Form("rows", {}, {"x": (np.float32, (1, 2))})
    link.send_form(form)
    assert made[0].sent == [("rows", "at once")]
    made[0].full = True
    made[0].gate.clear()
    form.tensors["x"][:] = 1
    link.send_form(form)
    form.tensors["x"][:] = 2
    made[0].gate.set()
    wait_for(lambda: len(made[0].sent) == 2, "the second")
    assert made[0].sent[1] == ("rows", "queued")
    assert made[0].tensors == [{"x": [[1.0, 1.0]]}]


def test_a_connection_that_broke_is_made_again(link: PeerLink, made: list[Channel]) -> None:
    made[0].broken = True
    link.send("a", {})
    wait_for(lambda: len(made) == 2 and made[1].sent, "a new connection")
    assert made[1].sent == [("a", "queued")]


def test_more_is_made_while_few_frames_wait_and_again_once_few_do(
    link: PeerLink, made: list[Channel]
) -> None:
    channel, called = made[0], threading.Event()
    channel.full = True
    channel.gate.clear()
    for _ in range(FEW_FRAMES):
        assert link.takes_more(called.set)
        link.send("a", {})
    assert not link.takes_more(called.set)
    assert not called.is_set()
    channel.gate.set()
    assert called.wait(10)
    wait_for(lambda: len(channel.sent) == FEW_FRAMES, "all sent")
    assert link.takes_more(called.clear)
