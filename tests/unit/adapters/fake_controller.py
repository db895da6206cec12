"""A small HTTP server that answers as docs/northbound_api.md says; what it answers can be changed."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def measurement(value, *, reason=None, unit="s", source="probe", age_s=0.2):
    return {
        "value": value,
        "raw": value,
        "low": None,
        "high": None,
        "samples": 40 if value is not None else 0,
        "age_s": age_s,
        "source": source,
        "unit": unit,
        "reason": reason,
    }


def path(src, dst, *, delay_s=0.02, loss_ratio=0.001, capacity_bps=16e6, available_bps=15e6):
    return {
        "src": src,
        "dst": dst,
        "links": [f"{src}-0000000000000011.4", f"0000000000000011.5-{dst}"],
        "delay_s": measurement(delay_s),
        "jitter_s": measurement(0.001),
        "loss_ratio": measurement(loss_ratio, unit="ratio"),
        "capacity_bps": measurement(capacity_bps, unit="bit/s", source="packet_train"),
        "used_bps": measurement(capacity_bps - available_bps, unit="bit/s", source="counters"),
        "available_bps": measurement(available_bps, unit="bit/s", source="derived"),
        "available_to_own_bps": measurement(capacity_bps, unit="bit/s", source="derived"),
    }


class FakeController:
    """Serves `paths`, `topology` and an event stream on 127.0.0.1."""

    def __init__(self, port=0) -> None:
        self.paths = {"generated_at": 1.0, "paths": []}
        self.topology = {"generated_at": 1.0, "switches": [], "hosts": [], "links": []}
        self.raw: bytes | None = None
        self.asked = 0
        self.authorization: str | None = None
        self.listeners = 0
        self.changed = threading.Condition()
        self._events: list[tuple[str, dict]] = []
        self._closing = threading.Event()
        controller = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                return

            def do_GET(self):
                controller._answer(self)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def tell(self, kind, data):
        with self.changed:
            self._events.append((kind, data))
            self.changed.notify_all()

    def close(self):
        self._closing.set()
        with self.changed:
            self.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request):
        if request.path.endswith("/events"):
            self._stream(request)
            return
        known = {"/northbound/v1/paths": self.paths, "/northbound/v1/topology": self.topology}
        with self.changed:
            self.asked += 1
            self.authorization = request.headers["Authorization"]
            self.changed.notify_all()
        found = known.get(request.path)
        body = self.raw if self.raw is not None else json.dumps(found).encode()
        request.send_response(200 if found is not None else 404)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def _stream(self, request):
        request.send_response(200)
        request.send_header("Content-Type", "text/event-stream")
        request.end_headers()
        with self.changed:
            self.listeners += 1
            self.changed.notify_all()
        sent = 0
        while not self._closing.is_set():
            with self.changed:
                if len(self._events) == sent:
                    self.changed.wait(timeout=1)
                fresh = self._events[sent:]
            sent += len(fresh)
            try:
                for kind, data in fresh:
                    request.wfile.write(f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode())
                request.wfile.flush()
            except OSError:
                return
