"""State, processes, ports, and the little protocol between the testbed's processes."""

import json
import os
import select
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from scenarios.schema import parse
from topologies import checks, controller_token, ovs, rpc, stages, state, testbed
from topologies.answers import _sides
from topologies.errors import TestbedError, TopologyError
from topologies.processes import Process, identify, start_ticks, stop_all
from topologies.specs import network_spec
from topologies.supervisor import _in_words
from topologies.wiring import Wiring


def scenario(**network):
    document = {"name": "t", "finetune": {"policies": ["all"]}, "network": {"prefix": "zz", **network}}
    return parse(document, source="test")


def test_a_process_is_known_by_pid_and_start_time(sleeper):
    process = identify("sleeper", sleeper.pid)
    assert process.alive()
    assert not Process(name="other", pid=sleeper.pid, start_ticks=process.start_ticks + 1).alive()


def test_a_process_that_took_over_a_pid_is_not_stopped(sleeper):
    impostor = Process(name="gone", pid=sleeper.pid, start_ticks=start_ticks(sleeper.pid) - 1)
    assert stop_all([impostor]) == []
    assert sleeper.poll() is None


def test_a_process_that_ignores_the_request_is_killed():
    script = "import signal as s, time; s.signal(15, s.SIG_IGN); print(1, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as stubborn:
        stubborn.stdout.readline()
        stop_all([identify("stubborn", stubborn.pid)], timeout_s=0.3)
        assert stubborn.wait(5) == -9


CHILD = """
import os, signal, sys
from topologies.processes import end_with_parent
signal.signal(signal.SIGTERM, lambda *_: (print("asked to end", flush=True), os._exit(0)))
print(end_with_parent(int(sys.argv[1])), flush=True)
signal.pause()
"""
PARENT = f"""
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {CHILD!r}, str(os.getpid())])
time.sleep(600)
"""


def test_a_process_can_end_with_its_parent_even_when_that_is_killed():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "True\n"
        parent.kill()
        assert parent.stdout.readline() == "asked to end\n"


def test_a_process_whose_parent_is_gone_already_is_told():
    done = subprocess.run(
        [sys.executable, "-c", CHILD.replace("signal.pause()", ""), "1"], capture_output=True, text=True
    )
    assert done.stdout == "False\n"


def test_a_tied_testbed_is_started_from_the_main_thread():
    """The kernel takes the thread for the parent: its end would end the testbed."""
    with ThreadPoolExecutor(1) as threads:
        refused = threads.submit(testbed.up, scenario(), tied=True, progress=print)
        with pytest.raises(TestbedError, match="in the main thread"):
            refused.result(10)


def test_the_journal_is_read_back_and_swept_with_its_processes(root, sleeper):
    journal = state.Journal.create("zz")
    journal.add_process("sleeper", sleeper.pid)
    journal.set_status({"what": "ever"})
    record = state.read("zz")
    assert record.owner.pid == os.getpid()
    assert [item.name for item in record.processes] == ["sleeper"]
    (root / "zz" / "orchestrator").mkdir()
    (root / "zz" / "workers").mkdir()
    assert state.sweep("zz") == [f"process sleeper ({sleeper.pid})"]
    assert sleeper.wait(5) == -15
    assert sorted(os.listdir(root / "zz")) == ["logs", "orchestrator"]
    assert state.read("zz") is None


def test_a_journal_of_an_earlier_boot_says_nothing_about_processes(root, sleeper):
    state.Journal.create("zz").add_process("sleeper", sleeper.pid)
    path = root / "zz" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"boot": "another"}))
    assert state.read("zz") is None
    assert state.sweep("zz") == []
    assert sleeper.poll() is None


def test_a_prefix_with_a_living_owner_cannot_be_taken(root, sleeper):
    state.Journal.create("zz")
    path = root / "zz" / "state.json"
    document = json.loads(path.read_text())
    document["owner"] = {"name": "x", "pid": sleeper.pid, "start_ticks": start_ticks(sleeper.pid)}
    path.write_text(json.dumps(document))
    with pytest.raises(TestbedError, match=f"up already.*{sleeper.pid}"):
        state.Journal.create("zz")


@pytest.mark.parametrize("name", ["zz-c1", "zz-g12", "zz-g12.3"])
def test_names_that_this_package_gives_are_ours(name):
    assert state._is_ours("zz", name)


@pytest.mark.parametrize(
    "name", ["zz", "zz-", "zz-br0", "zz-g1x", "zz-g1.1x", "zzz-g1", "az-g1", "zz-h1", "eth0"]
)
def test_other_names_are_not_ours(name):
    assert not state._is_ours("zz", name)


def test_a_taken_port_is_named_with_its_holder_and_the_key_to_change():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(TestbedError, match=rf"port {port} \(network.northbound_port\).*{os.getpid()}"):
            checks.check_ports(scenario(northbound_port=port, openflow_port=1), ("controller", "network"))
        checks.check_ports(scenario(northbound_port=port), ("network",))


def test_the_same_port_twice_is_refused():
    with pytest.raises(TestbedError, match="both 1234"):
        checks.check_ports(scenario(openflow_port=1234, northbound_port=1234), ("controller",))


def test_missing_tools_are_named_with_their_packages(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(TestbedError, match="mnexec is not installed; apt-get install mininet"):
        checks.check_tools("nfqueue")


def test_links_have_the_controllers_names():
    spec = network_spec(scenario())
    assert stages.northbound_ids(spec, spec.link("g1-c2")) == (
        "000000000000a001.2-000000000000c002.2",
        "000000000000c002.2-000000000000a001.2",
    )
    assert stages.northbound_ids(spec, spec.link("h1-g1")) == (
        "198.18.1.1-000000000000a001.3",
        "000000000000a001.3-198.18.1.1",
    )


def test_only_core_links_get_a_capacity_and_only_once_the_controller_knows_them(root, monkeypatch):
    spec = network_spec(scenario())
    state.make_directory(root / "zz")
    token = controller_token.make("zz").read_text().strip()
    known, put = [], []

    def http_json(method, url, body=None, headers=None):
        if method == "GET":
            return 200, {"links": [{"id": name} for name in known]}
        assert headers == {"Authorization": f"Bearer {token}"}
        put.append((url.rpartition("/")[2], body))
        return 200, {}

    monkeypatch.setattr(stages, "http_json", http_json)
    capacities = stages.Capacities(scenario(), spec)
    assert not capacities.put_between_switches()
    core = [name for link in spec.links if link.kind == "core" for name in stages.northbound_ids(spec, link)]
    known += [name for name in core if not name.startswith("198") and "-198" not in name]
    known += stages.northbound_ids(spec, spec.link("h1-g1"))
    assert capacities.put_between_switches()
    assert sorted(name for name, _ in put) == sorted(set(known) & set(core))
    assert capacities.missing.keys() == set(stages.northbound_ids(spec, spec.link("orch-c1")))
    assert put[0][1] == {"capacity_bps": 1e9}


def test_the_controllers_token_is_for_root_only_and_new_each_time(root):
    state.make_directory(root / "zz")
    tokens = set()
    for _ in range(2):
        path = controller_token.make("zz")
        assert path.stat().st_mode & 0o777 == 0o600
        tokens.add(path.read_text())
    assert len(tokens) == 2
    state.sweep("zz")
    with pytest.raises(TestbedError, match=r"northbound.token cannot be read.*is it up"):
        controller_token.headers("zz")


def test_a_direction_is_named_by_its_ends():
    link = network_spec(scenario()).link("h3-g3")
    assert _sides(link, None) == ("a_to_b", "b_to_a")
    assert _sides(link, "h3>g3") == _sides(link, "h3-g3") == ("a_to_b",)
    assert _sides(link, "g3>h3") == ("b_to_a",)
    with pytest.raises(TestbedError, match="h3>g3 and g3>h3"):
        _sides(link, "sideways")


def test_stages_are_checked_before_anything_starts():
    for wanted, message in ((("net",), "unknown stages net"), (("controller",), "network"),
                            (("network", "workers"), "orchestrator")):  # fmt: skip
        with pytest.raises(TestbedError, match=message):
            testbed.up(scenario(), stages=wanted, progress=print)


def test_asking_a_testbed_that_is_not_up_says_so(root):
    assert testbed.status("zz") is None
    with pytest.raises(TestbedError, match="testbed zz is not up"):
        testbed.Client("zz").status()


# --- the protocol


@pytest.fixture
def serving(tmp_path):
    path = tmp_path / "s.sock"

    def handle(request, reply):
        if request["call"] == "boom":
            raise ValueError("odd")
        if request["call"] == "no":
            raise TopologyError("there is no such thing")
        reply({"echo": request})

    server = rpc.Server(path, handle)
    running = threading.Event()
    running.set()

    def loop():
        while running.is_set():
            readable, writable, _ = select.select(server.readers(), server.writers(), [], 0.02)
            server.step(readable, writable)

    thread = threading.Thread(target=loop)
    thread.start()
    yield path
    running.clear()
    thread.join()
    server.close()


def test_a_request_is_answered(serving):
    assert rpc.call(serving, {"call": "x", "n": 1}) == {"echo": {"call": "x", "n": 1}}


def test_only_this_user_may_ask(serving):
    assert serving.stat().st_mode & 0o777 == 0o600


def test_a_large_answer_arrives_whole(serving):
    text = "x" * 900_000
    assert rpc.call(serving, {"call": "x", "text": text})["echo"]["text"] == text


@pytest.mark.parametrize(("call", "message"), [("no", "no such thing"), ("boom", "odd")])
def test_a_refusal_reaches_the_caller_as_text(serving, call, message):
    with pytest.raises(TopologyError, match=message):
        rpc.call(serving, {"call": call})


@pytest.mark.parametrize("garbage", [b"\n", b"[]\n", b"\xff\xfe\n", b"{}\n", b"[" * 100_000 + b"\n"])
def test_garbage_is_refused_and_others_go_on(serving, garbage):
    with socket.socket(socket.AF_UNIX) as rude:
        rude.settimeout(5)
        rude.connect(str(serving))
        rude.sendall(garbage)
        assert b"error" in rude.recv(65536)
        assert rpc.call(serving, {"call": "x"})["echo"] == {"call": "x"}


def test_an_endless_line_is_cut_off(serving):
    with socket.socket(socket.AF_UNIX) as rude:
        rude.settimeout(5)
        rude.connect(str(serving))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            rude.sendall(b"x" * (rpc.MAX_REQUEST_BYTES + (16 << 20)))
    assert rpc.call(serving, {"call": "x"})["echo"] == {"call": "x"}


def test_nobody_listening_is_an_error_with_the_path(tmp_path):
    with pytest.raises(TopologyError, match=r"none\.sock"):
        rpc.call(tmp_path / "none.sock", {"call": "x"})


def test_a_directory_that_cannot_be_made_is_one_message_that_names_it(root):
    (root / "zz").mkdir()
    (root / "zz" / "logs").write_text("in the way")
    with pytest.raises(TestbedError, match=r"zz/logs cannot be made: File exists; what is in its way"):
        state.make_directory(root / "zz" / "logs")
    assert (root / "zz" / "logs").read_text() == "in the way"


def test_a_file_that_cannot_be_used_is_named_in_words_not_as_python_shows_it(root):
    with pytest.raises(FileNotFoundError) as failed:
        (root / "nowhere" / "plan.json").write_text("{}")
    assert _in_words(failed.value) == f"{root}/nowhere/plan.json: No such file or directory"


def test_a_bridge_that_somebody_else_removed_is_missed(tmp_path):
    (tmp_path / "zz-c1").mkdir()
    assert ovs.missing_bridges(["zz-c1", "zz-c2"], interfaces=tmp_path) == ["zz-c2"]


def test_an_emulator_that_died_is_reported_as_not_keeping_up_and_refuses_changes_with_the_reason(tmp_path):
    wiring = Wiring("zz", backend="nfqueue", seed=1, state_dir=tmp_path, record=lambda name, pid: None)
    wiring._emulator = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    wiring._emulator.wait(30)
    found = testbed._flat(wiring.report())
    assert (found["kept_up"], found["lateness_p99_s"]) == (False, None)
    assert "ended with status 3, so no packet passes" in found["reason"]
    with pytest.raises(TopologyError, match=r"ended with status 3.*take the testbed down and start it again"):
        wiring.change("h1-g1", {"delay_s": 0.1})
