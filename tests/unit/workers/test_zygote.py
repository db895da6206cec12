"""The zygote as a process of its own: calls over its socket, children, namespaces, endings."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from worker_loopback import LoopbackOrchestrator, TestAuthority, wait_until

from workers.models.embedded import CONFIG

# A zygote whose workers only write down where they are and wait for SIGTERM: no torch, so it starts at once.
LIGHT = """
import json, os, signal, sys
from pathlib import Path
from workers.zygote import Zygote

def work(config):
    netns, fds = os.readlink("/proc/self/ns/net"), os.listdir("/proc/self/fd")
    print(json.dumps({"netns": netns, "fds": fds, "power": config.power}), flush=True)
    if config.node == "fails":
        raise RuntimeError("this worker fails")
    if config.node == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while config.node != "short":
        signal.pause()
    return 7

Zygote(Path(sys.argv[1]), work=work).run()
"""


class Client:
    """Speaks JSON lines with a zygote."""

    def __init__(self, path: Path) -> None:
        wait_until(path.exists, what="the zygote's socket", within_s=30)
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(15)
        self.sock.connect(str(path))
        self.file = self.sock.makefile("rb")

    def call(self, **call: Any) -> dict[str, Any]:
        return self.raw(json.dumps(call).encode())

    def raw(self, line: bytes) -> dict[str, Any]:
        self.sock.sendall(line + b"\n")
        answer: dict[str, Any] = json.loads(self.file.readline())
        return answer

    def close(self) -> None:
        self.file.close()
        self.sock.close()


def worker(node: str, state_dir: Path, **changes: Any) -> dict[str, Any]:
    return {
        "node": node,
        "orchestrator": "127.0.0.1:9",
        "token": None,
        "listen": "127.0.0.1:0",
        "state_dir": str(state_dir),
        "power": 30,
        "compute_flops": 2.4e9,
        "layer_overhead_s": 0.001,
        "memory_bytes": 10**6,
        "pacing": False,
        "emulated": True,
    } | changes


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen([sys.executable, "-c", LIGHT, str(tmp_path / "z.sock")])
    try:
        yield started
    finally:
        started.kill()
        started.wait(10)


@pytest.fixture
def client(process: subprocess.Popen[bytes], tmp_path: Path) -> Iterator[Client]:
    with closing(Client(tmp_path / "z.sock")) as connected:
        yield connected


@pytest.fixture
def spawn(client: Client, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def spawn(node: str, *, netns: str | None = None, **more: Any) -> dict[str, Any]:
        log = str(tmp_path / f"{node}.log")
        return client.call(
            call="spawn", node=node, netns=netns, log=log, worker=worker(node, tmp_path / node), **more
        )

    return spawn


def report(tmp_path: Path, node: str) -> dict[str, Any]:
    log = tmp_path / f"{node}.log"
    wait_until(lambda: log.exists() and b"\n" in log.read_bytes(), what=f"{node}'s report")
    line: dict[str, Any] = json.loads(log.read_text().splitlines()[0])
    return line


def test_a_spawned_worker_has_the_priority_that_was_asked_for(
    spawn: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    pid = spawn("h1", nice=7)["pid"]
    report(tmp_path, "h1")
    assert os.getpriority(os.PRIO_PROCESS, pid) == 7


@pytest.mark.parametrize("nice", [-1, 20, "5", True, 1.5])
def test_a_priority_out_of_range_is_refused(spawn: Callable[..., dict[str, Any]], nice: object) -> None:
    assert f"nice is {nice!r}" in spawn("h1", nice=nice)["error"]


def test_the_socket_is_for_this_user_only(client: Client, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "z.sock").stat().st_mode) == 0o600


def test_a_spawned_worker_runs_with_its_configuration_and_its_log(
    spawn: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    pid = spawn("h1")["pid"]
    assert alive(pid)
    seen = report(tmp_path, "h1")
    assert seen["power"] == 30
    assert seen["netns"] == os.readlink("/proc/self/ns/net")
    assert stat.S_IMODE((tmp_path / "h1.log").stat().st_mode) == 0o600


def test_a_worker_holds_no_descriptor_of_the_zygote(
    client: Client, spawn: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    spawn("h1")
    # 0, 1, 2 and the one that lists the folder.
    assert len(report(tmp_path, "h1")["fds"]) == 4
    client.close()


def test_ended_workers_are_reaped_once_with_their_status(
    client: Client, spawn: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    short, fails, killed = (spawn(node)["pid"] for node in ("short", "fails", "h1"))
    report(tmp_path, "h1")
    os.kill(killed, signal.SIGKILL)
    exited: list[dict[str, int]] = []
    wait_until(
        lambda: exited.extend(client.call(call="reap")["exited"]) or len(exited) == 3, what="three endings"
    )
    assert {item["pid"]: item["status"] for item in exited} == {short: 7, fails: 1, killed: -signal.SIGKILL}
    assert client.call(call="reap") == {"exited": []}
    assert "this worker fails" in (tmp_path / "fails.log").read_text()


def test_stop_ends_all_workers_and_the_zygote(
    client: Client, spawn: Callable[..., dict[str, Any]], process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    pids = [spawn(node)["pid"] for node in ("h1", "h2")]
    assert client.call(call="stop") == {"stopped": pids}
    assert process.wait(10) == 0
    assert not any(alive(pid) for pid in pids)
    assert not (tmp_path / "z.sock").exists()


def test_a_worker_that_ignores_sigterm_is_killed(
    client: Client, spawn: Callable[..., dict[str, Any]], process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    pid = spawn("deaf")["pid"]
    report(tmp_path, "deaf")
    client.call(call="stop")
    assert process.wait(10) == 0
    assert not alive(pid)


def test_sigterm_ends_the_zygote_and_its_workers(
    spawn: Callable[..., dict[str, Any]], process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    pid = spawn("h1")["pid"]
    report(tmp_path, "h1")
    process.terminate()
    assert process.wait(10) == 0
    assert not alive(pid)


def test_workers_do_not_outlive_a_zygote_that_is_killed(
    spawn: Callable[..., dict[str, Any]], process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    pid = spawn("h1")["pid"]
    report(tmp_path, "h1")
    process.kill()
    wait_until(lambda: not alive(pid), what="the worker's end")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"nonsense", "one line of JSON"),
        (b"[1]", "a call is a JSON object"),
        (b'{"call": "dance"}', "call 'dance' is unknown"),
        (b'{"call": "spawn"}', "spawn needs node"),
        (b'{"call": "spawn", "nodes": 3}', "unknown keys: nodes"),
        (b"\xff\xfe", "one line of JSON"),
    ],
)
def test_a_wrong_call_is_answered_with_what_is_wrong(client: Client, line: bytes, words: str) -> None:
    assert words in client.raw(line)["error"]
    assert client.call(call="reap") == {"exited": []}


def test_a_worker_that_cannot_be_started_is_refused_before_the_fork(client: Client, tmp_path: Path) -> None:
    def refused(**changes: Any) -> str:
        call = {"call": "spawn", "node": "h1", "log": str(tmp_path / "log"), "worker": worker("h1", tmp_path)}
        error: str = client.call(**(call | changes))["error"]
        return error

    assert "netns /proc/0/ns/net: No such file" in refused(netns="/proc/0/ns/net")
    assert "log /nowhere/log: No such file" in refused(log="/nowhere/log")
    assert "unknown worker keys: colour" in refused(worker=worker("h1", tmp_path, colour=1))
    assert "node is 'h2', but worker.node is 'h1'" in refused(node="h2")


def test_a_second_zygote_on_the_same_socket_is_refused(client: Client, tmp_path: Path) -> None:
    second = subprocess.run(
        [sys.executable, "-c", LIGHT, str(tmp_path / "z.sock")], capture_output=True, timeout=30, check=False
    )
    assert second.returncode != 0
    assert b"a zygote serves" in second.stderr
    assert client.call(call="reap") == {"exited": []}


def test_a_socket_left_over_by_a_killed_zygote_is_replaced(
    process: subprocess.Popen[bytes], client: Client, tmp_path: Path
) -> None:
    process.kill()
    process.wait(10)
    again = subprocess.Popen([sys.executable, "-c", LIGHT, str(tmp_path / "z.sock")])
    try:

        def answers() -> bool:
            with contextlib.suppress(ConnectionRefusedError), closing(Client(tmp_path / "z.sock")) as other:
                return other.call(call="reap") == {"exited": []}
            return False

        wait_until(answers, what="the second zygote")
    finally:
        again.kill()
        again.wait(10)


def test_real_workers_enrol_and_end(tmp_path: Path) -> None:
    path = tmp_path / "z.sock"
    with closing(LoopbackOrchestrator(TestAuthority(tmp_path / "authority"))) as orchestrator:
        process = subprocess.Popen([sys.executable, "-m", "workers.zygote", "--socket", str(path)])
        try:
            with closing(Client(path)) as client:
                for node in ("h1", "h2", "h3"):
                    config = worker(
                        node,
                        tmp_path / node,
                        orchestrator=f"127.0.0.1:{orchestrator.port}",
                        token=orchestrator.authority.token(node),
                        pacing=True,
                    )
                    answer = client.call(
                        call="spawn", node=node, netns=None, log=str(tmp_path / f"{node}.log"), worker=config
                    )
                    assert "pid" in answer, answer
                orchestrator.wait_for("h1", "h2", "h3")
                client.call(call="stop")
            assert process.wait(15) == 0
        finally:
            process.kill()
            process.wait(10)
    assert "h1 ends" in (tmp_path / "h1.log").read_text()


GPT2 = {"model_type": "gpt2", "vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 8}
WHAT_IS_IMPORTED = """
import os, sys
from pathlib import Path
from workers.zygote import _import_for

_import_for(Path(sys.argv[1]))
print("transformers" in sys.modules, len(os.listdir("/proc/self/task")))
"""


@pytest.mark.parametrize(
    ("config", "imported"),
    [
        (GPT2, True),
        (CONFIG, False),
        ({"model_type": "unheard-of"}, False),
    ],
    ids=["of the library", "our own", "unknown"],
)
def test_what_training_the_model_takes_is_imported_before_workers_are_forked_and_starts_no_thread(
    tmp_path: Path, config: dict[str, Any], imported: bool
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-c", WHAT_IS_IMPORTED, str(tmp_path)],
        capture_output=True, text=True, timeout=60, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.split() == [str(imported), "1"], done.stderr


@pytest.mark.functional
def test_a_worker_enters_the_given_network_namespace(
    spawn: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    host = subprocess.Popen(["unshare", "--net", "sleep", "60"])
    try:
        path = f"/proc/{host.pid}/ns/net"
        own = os.readlink("/proc/self/ns/net")
        wait_until(lambda: os.readlink(path) != own, what="the host's namespace")
        spawn("h1", netns=path)
        assert report(tmp_path, "h1")["netns"] == os.readlink(path)
    finally:
        host.kill()
        host.wait(10)
