"""What hosts count reaches the controller in one request, and a controller without ears disturbs nobody."""

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from orchestrator.adapters.counter_reports import WHAT, counter_reports
from orchestrator.adapters.telling import Telling

COUNTERS = {"198.18.1.1": {"at": 1800000000.5, "rx_packets": 30, "tx_packets": 20}}


class Controller(ThreadingHTTPServer):
    """Takes PUTs, and answers with `status`."""

    def __init__(self):
        self.status = 200
        self.taken = []
        self.changed = threading.Condition()
        controller = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                return

            def do_PUT(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(controller.status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                with controller.changed:
                    controller.taken.append((self.path, self.headers["Authorization"], body))
                    controller.changed.notify_all()

        super().__init__(("127.0.0.1", 0), Handler)

    def wait(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.taken) >= count, timeout=10)


@pytest.fixture
def controller():
    server = Controller()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture
def start():
    running = []

    def start(url, counters):
        tell = counter_reports(lambda: counters)
        reports = Telling(url=url, token="secret", what=WHAT, tell=tell, interval_s=0.01)
        reports.start()
        running.append(reports)
        return reports

    yield start
    for reports in running:
        reports.stop()


def url(controller):
    return f"http://127.0.0.1:{controller.server_address[1]}"


def test_all_counters_go_in_one_request_with_the_token(controller, start):
    start(url(controller), COUNTERS)
    controller.wait(2)
    assert controller.taken[0] == ("/northbound/v1/hosts/counters", "Bearer secret", {"hosts": COUNTERS})


def test_nothing_to_tell_is_not_told(controller, start):
    counters = {}
    start(url(controller), counters)
    assert not controller.taken
    counters.update(COUNTERS)
    controller.wait(1)
    assert controller.taken[0][2] == {"hosts": COUNTERS}


def test_a_controller_that_refuses_is_noted_once_and_asked_again(controller, start, caplog):
    caplog.set_level(logging.INFO)
    controller.status = 503
    start(url(controller), COUNTERS)
    controller.wait(3)
    controller.status = 200
    controller.wait(6)  # the sixth is sent after the fifth's answer was noted
    texts = [record.message for record in caplog.records if "packet counters" in record.message]
    assert len([text for text in texts if "does not take" in text]) == 1
    assert len([text for text in texts if "again" in text]) == 1


def test_a_controller_that_is_gone_does_not_keep_the_reports_from_ending(start):
    reports = start("http://127.0.0.1:9", COUNTERS)
    reports.stop()
    assert not reports._thread.is_alive()
