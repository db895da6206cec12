"""What the controller is told periodically ends in an orderly way, and failures make it rarer."""

import threading

from orchestrator.adapters.telling import Telling
from orchestrator.client import ApiError


def run(tell, **options):
    return Telling(
        url="http://127.0.0.1:9", token="secret", what="nothing", tell=tell, interval_s=0.001, **options
    )


def test_the_end_is_told_once_and_last():
    calls, told = [], threading.Event()

    def tell(_client):
        calls.append("tell")
        told.set()
        return True

    telling = run(tell, at_end=lambda _client: calls.append("end"))
    telling.start()
    assert told.wait(10)
    telling.stop()
    assert calls.count("end") == 1
    assert calls[-1] == "end"


def test_an_end_that_cannot_be_told_is_the_end_all_the_same():
    def fail(_client):
        raise ApiError("the controller does not answer")

    telling = run(lambda _client: True, at_end=fail)
    telling.start()
    telling.stop()
    assert not telling._thread.is_alive()


def test_failures_lengthen_the_pause_up_to_its_limit_and_a_success_ends_that():
    pauses, enough = [], threading.Event()

    def tell(_client):
        if len(pauses) != 5:
            raise ApiError("the controller does not answer")
        return True

    telling = run(tell, longest_pause_s=0.004)

    def wait(pause_s):
        pauses.append(pause_s)
        if len(pauses) == 7:
            enough.set()
            telling._stopping.set()
        return telling._stopping.is_set()

    telling._stopping.wait = wait
    telling.start()
    assert enough.wait(10)
    telling.stop()
    assert pauses == [0.002, 0.004, 0.004, 0.004, 0.004, 0.001, 0.002]
