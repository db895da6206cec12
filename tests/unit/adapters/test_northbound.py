"""The reader of the controller's northbound REST."""

from __future__ import annotations

import threading
import time

import pytest
from fake_controller import FakeController, measurement, path

from orchestrator.adapters.northbound import NorthboundClient, join, parse_paths, read_token
from orchestrator.errors import NorthboundError

NAMES = {"198.18.0.1": "orch", "198.18.1.1": "h1"}


class StepClock:
    def __init__(self):
        self.now_s = 100.0

    def monotonic_s(self):
        return self.now_s

    def unix_s(self):
        return self.now_s


@pytest.fixture
def controller():
    made = FakeController()
    yield made
    made.close()


def client_of(controller, clock=None, **options):
    return NorthboundClient(url=controller.url, names=lambda: NAMES, clock=clock or StepClock(), **options)


def paths(*items):
    return {"generated_at": 1.0, "paths": list(items)}


def test_paths_are_named_by_node_and_others_left_out():
    parsed = parse_paths(paths(path("198.18.0.1", "198.18.1.1"), path("198.18.1.1", "198.18.9.9")))
    network = join(parsed, names=NAMES, taken_at_s=5.0, older_by_s=1.5)
    assert set(network.paths) == {("orch", "h1")}
    found = network.path("orch", "h1")
    assert found.delay_s.value == 0.02
    assert found.delay_s.age_s == pytest.approx(1.7)
    assert found.capacity_bps.source == "packet_train"


def test_an_unknown_value_keeps_the_controllers_reason():
    item = path("198.18.0.1", "198.18.1.1")
    item["loss_ratio"] = measurement(None, reason="no probe yet")
    (parsed,) = parse_paths(paths(item))
    assert (parsed.metrics["loss_ratio"].value, parsed.metrics["loss_ratio"].reason) == (None, "no probe yet")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda item: item.pop("delay_s"), "delay_s is missing"),
        (lambda item: item["delay_s"].update(value="fast"), "value is str"),
        (lambda item: item["delay_s"].update(value=float("nan")), "finite"),
        (lambda item: item["delay_s"].update(value=True), "finite"),
        (lambda item: item["delay_s"].update(value=None), "without a reason"),
        (lambda item: item["loss_ratio"].update(value=1.5), "at most 1"),
        (lambda item: item["available_bps"].update(value=-1.0), "at least 0"),
        (lambda item: item.update(links=[1]), "strings"),
        (lambda item: item.update(src=None), "src is NoneType"),
    ],
)
def test_what_breaks_the_contract_is_refused_by_name(change, word):
    item = path("198.18.0.1", "198.18.1.1")
    change(item)
    with pytest.raises(NorthboundError, match=word):
        parse_paths(paths(item))


@pytest.mark.parametrize("document", [None, [], {"paths": {}}, {"paths": [5]}, {}])
def test_another_shape_is_refused(document):
    with pytest.raises(NorthboundError):
        parse_paths(document)


def test_values_age_between_readings(controller):
    clock = StepClock()
    controller.paths = paths(path("198.18.0.1", "198.18.1.1"))
    client = client_of(controller, clock)
    client.refresh()
    clock.now_s += 3
    assert client.network().path("orch", "h1").delay_s.age_s == pytest.approx(3.2)
    assert client.status().reachable
    assert client.status().age_s == 3


def test_when_the_controller_is_gone_values_grow_old_and_then_unknown_with_the_reason(controller):
    clock = StepClock()
    controller.paths = paths(path("198.18.0.1", "198.18.1.1"))
    client = client_of(controller, clock, max_age_s=15)
    client.refresh()
    controller.close()
    clock.now_s += 10
    client.refresh()
    assert client.network().path("orch", "h1").delay_s.value == 0.02
    assert not client.status().reachable
    assert "connection refused" in client.status().reason
    clock.now_s += 10
    gone = client.network().path("orch", "h1").delay_s
    assert gone.value is None
    assert "20 s old" in gone.reason
    assert "connection refused" in gone.reason


@pytest.mark.parametrize("raw", [b"{", b"[]", b"\xff", b'{"paths": 3}'])
def test_garbage_keeps_the_last_picture_and_says_why(controller, raw):
    controller.paths = paths(path("198.18.0.1", "198.18.1.1"))
    client = client_of(controller)
    client.refresh()
    controller.raw = raw
    client.refresh()
    assert client.network().path("orch", "h1").delay_s.value == 0.02
    assert not client.status().reachable


def test_before_the_first_answer_everything_is_unknown(controller):
    client = client_of(controller)
    assert client.network().path("orch", "h1").delay_s.value is None
    assert client.status().age_s is None


def test_an_event_makes_the_reader_look_again_at_once_and_stopping_is_prompt(controller):
    client = client_of(controller, poll_interval_s=60)
    client.start()
    with controller.changed:
        assert controller.changed.wait_for(lambda: controller.asked >= 2 and controller.listeners == 1, 10)
    before = controller.asked
    controller.paths = paths(path("198.18.0.1", "198.18.1.1", delay_s=0.5))
    controller.tell("metric_changed", {"link": "x", "metric": "delay_s", "before": 0.02, "after": 0.5})
    with controller.changed:
        assert controller.changed.wait_for(lambda: controller.asked > before, 10)
    started = time.monotonic()
    client.stop()
    assert time.monotonic() - started < 2.5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("northbound")]


def test_the_token_of_the_file_is_sent_where_one_is_configured(controller, tmp_path):
    client_of(controller).refresh()
    assert controller.authorization is None
    (tmp_path / "token").write_text("a-token-in-a-file\n")
    client_of(controller, token=read_token(tmp_path / "token")).refresh()
    assert controller.authorization == "Bearer a-token-in-a-file"
    for content in ("", "two words", "two\nlines"):
        (tmp_path / "token").write_text(content)
        with pytest.raises(NorthboundError, match="one token on one line"):
            read_token(tmp_path / "token")
    with pytest.raises(NorthboundError, match="cannot be read"):
        read_token(tmp_path / "none")
