"""The emulated network on this machine: packets meet what is configured, and all of it can be removed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from emulated_network import small_scenario

from topologies import state, testbed, userspace_switch
from topologies.edge_cloud import interface_name
from topologies.processes import identify
from topologies.specs import network_spec

PREFIX = "tpa"
OTHER_PREFIX = "tpb"
QUIET_RTT_EXCESS_S = 0.008
"""What six wires and six passes through a userspace switch may add on a busy two-core machine."""

pytestmark = [
    pytest.mark.functional,
]


def scenario(prefix):
    return small_scenario("emulation", prefix=prefix, number=1, hosts=4, seed=3)


def up(progress=lambda _text: None, *, prefix=PREFIX):
    return testbed.up(scenario(prefix), stages=("network",), tied=True, progress=progress)


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left():
    testbed.down(PREFIX)
    yield
    testbed.down(PREFIX)
    assert state.inventory(PREFIX) == []


@pytest.fixture(scope="module")
def spec():
    return network_spec(scenario(PREFIX))


@pytest.fixture(scope="module")
def network(spec):
    """Return the status of a network that all tests share which only look at it or restore what they change.

    It forwards along the tree orch - c1 - gateway - host.
    """
    status = up()
    for bridge, flows in static_flows(spec).items():
        subprocess.run(
            ["ovs-ofctl", "-O", "OpenFlow13", "add-flows", bridge, "-"],
            input="\n".join(flows), text=True, check=True,
        )  # fmt: skip
    return status


@pytest.fixture
def fresh_network():
    """Return the status of a network of one's own to break; such tests come last in this file."""
    testbed.down(PREFIX)
    yield up()
    testbed.down(PREFIX)


def static_flows(spec):
    flows = {f"{spec.prefix}-{switch.name}": [] for switch in spec.switches}

    def forward(switch, ip, port, priority):
        flows[f"{spec.prefix}-{switch}"] += [
            f"priority={priority},ip,nw_dst={ip},actions=output:{port}",
            f"priority={priority},arp,arp_tpa={ip},actions=output:{port}",
        ]

    forward("c1", spec.orch.ip, spec.link("orch-c1").b_port, 2)
    for host in spec.hosts:
        trunk = spec.link(f"{host.switch}-c1")
        forward(host.switch, host.ip, spec.link(f"{host.name}-{host.switch}").b_port, 2)
        forward("c1", host.ip, trunk.b_port, 2)
        forward(host.switch, "198.18.0.0/15", trunk.a_port, 1)
    return flows


def inside(status, host, *command, timeout_s=60):
    netns = next(item["netns"] for item in status.hosts if item["name"] == host)
    done = subprocess.run(
        ["nsenter", f"--net={netns}", "--", *command], capture_output=True, text=True, timeout=timeout_s
    )
    return done.stdout


def ping(status, ip, *, count=20, interval_s=0.05):
    """Return lowest RTT in seconds and the share that was lost."""
    said = inside(status, "orch", "ping", "-q", "-c", str(count), "-i", str(interval_s), "-W", "2", ip)
    lost = float(re.search(r"([\d.]+)% packet loss", said)[1]) / 100
    lowest = re.search(r"= ([\d.]+)/", said)
    return (float(lowest[1]) / 1e3 if lowest else None), lost


def test_round_trips_take_what_the_links_are_configured_to_take(network, spec):
    for host in spec.hosts:
        configured_s = 2 * spec.end_to_end(host.name).delay_s
        rtt_s, _ = ping(network, host.ip)
        assert configured_s <= rtt_s <= configured_s + QUIET_RTT_EXCESS_S, host.name


def test_a_link_is_degraded_and_restored_while_packets_are_under_way(network, spec):
    host = spec.hosts[0]
    client = testbed.Client(PREFIX)
    ping(network, host.ip, count=3)
    netns = next(item["netns"] for item in network.hosts if item["name"] == "orch")
    with subprocess.Popen(
        ["nsenter", f"--net={netns}", "ping", "-c", "40", "-i", "0.05", "-W", "3", host.ip],
        stdout=subprocess.PIPE, text=True,
    ) as pinging:  # fmt: skip
        first = [pinging.stdout.readline() for _ in range(8)]
        client.degrade("h1-g1", loss_ratio=0.0)
        current = client.degrade("g1-h1", "g1>h1", delay_s=0.5)
        rest = pinging.stdout.read()
    assert current["a_to_b"]["delay_s"] != current["b_to_a"]["delay_s"] == 0.5
    before_ms = [float(ms) for ms in re.findall(r"time=([\d.]+) ms", "".join(first))]
    after_ms = [float(ms) for ms in re.findall(r"time=([\d.]+) ms", rest)]
    added_ms = 500 - network_delay_ms(spec, "h1-g1")
    assert max(after_ms) == pytest.approx(min(before_ms) + added_ms, abs=30)
    assert len(before_ms) + len(after_ms) >= 38  # changing the link lost nothing; its own loss ratio may have
    client.restore("h1-g1")
    assert ping(network, host.ip)[0] < 2 * spec.end_to_end("h1").delay_s + QUIET_RTT_EXCESS_S
    link = next(item for item in client.status().links if item["name"] == "h1-g1")
    assert link["current"] == link["configured"]


def wait_until(condition, *, timeout_s=10):
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.05)


def network_delay_ms(spec, link):
    return spec.link(link).a_to_b.delay_s * 1e3


def test_loss_is_as_configured_per_direction(network, spec):
    client = testbed.Client(PREFIX)
    client.degrade("h2-g2", "g2>h2", loss_ratio=0.1, delay_s=0.002)
    client.degrade("h2-g2", "h2>g2", loss_ratio=0.0, delay_s=0.002)
    _, lost = ping(network, spec.hosts[1].ip, count=1000, interval_s=0.005)
    client.restore("h2-g2")
    assert 0.065 <= lost <= 0.14  # four standard deviations around 0.1


def goodput_bps(network, spec):
    netns = next(item["netns"] for item in network.hosts if item["name"] == "h1")
    serving = subprocess.Popen(
        ["nsenter", f"--net={netns}", "iperf3", "-s", "--forceflush"], stdout=subprocess.PIPE, text=True
    )
    try:
        while "listening" not in serving.stdout.readline():
            assert serving.poll() is None
        said = inside(network, "orch", "iperf3", "-c", spec.hosts[0].ip, "-t", "4", "-O", "1", "-J")
    finally:
        serving.kill()
        serving.wait()
    return json.loads(said)["end"]["sum_received"]["bits_per_second"]


@pytest.mark.skipif(shutil.which("iperf3") is None, reason="needs iperf3")
@pytest.mark.parametrize("rate_bps", [2e6, 20e6, 50e6])
def test_goodput_is_the_configured_rate_less_headers(network, spec, rate_bps):
    testbed.Client(PREFIX).degrade("h1-g1", rate_bps=rate_bps, delay_s=0.01, loss_ratio=0.0)
    assert 0.86 * rate_bps <= goodput_bps(network, spec) <= rate_bps


def test_the_emulator_tells_how_late_it_was(network, spec):
    ping(network, spec.hosts[0].ip)
    report = testbed.Client(PREFIX).emulation()
    assert report["packets"] >= 6 * 20
    assert 0 <= report["lateness_p50_s"] <= report["lateness_p99_s"] <= report["lateness_max_s"]
    assert report["overflow_packets"] == 0
    assert isinstance(report["kept_up"], bool)


def test_hosts_have_no_ipv6_and_see_only_the_data_network(network):
    addresses = inside(network, "h1", "ip", "-br", "address")
    assert "198.18.1.1/15" in addresses
    assert ":" not in re.sub(r"(@\w+)|(if\d+)", "", addresses).replace("02:", "")
    assert "default" not in inside(network, "h1", "ip", "route")


def test_every_port_of_a_userspace_switch_has_room_for_bursts(network, spec):
    if network.datapath != "user":
        pytest.skip("the kernel's datapath has no receive buffers")
    switches = {switch.name for switch in spec.switches}
    ends = [end for link in spec.links for end in ((link.a, link.a_port), (link.b, link.b_port))]
    names = {interface_name(PREFIX, node, port) for node, port in ends if node in switches}
    assert userspace_switch.deepen(names) == names
    told = subprocess.run(["ss", "-0", "-m"], capture_output=True, text=True, check=True).stdout
    rooms = dict(re.findall(rf"\*:({PREFIX}-\S+).*?skmem:\(r\d+,rb(\d+)", told, re.DOTALL))
    assert {name for name in names if int(rooms[name]) < userspace_switch.BUFFER_BYTES} == set()


def test_a_second_up_says_that_it_is_up(network):
    with pytest.raises(testbed.AlreadyUp) as caught:
        up()
    assert caught.value.status.pids == network.pids


@pytest.mark.parametrize(
    "victims", [("guard", "supervisor"), ("emulator",), ("guard", "supervisor", "emulator")]
)
def test_down_removes_everything_after_a_crash(fresh_network, victims):
    for name in victims:
        os.kill(fresh_network.pids[name], signal.SIGKILL)
    assert testbed.down(PREFIX) != []
    assert state.inventory(PREFIX) == []
    wait_until(lambda: not any(identify(name, pid) for name, pid in fresh_network.pids.items()))


def kill_supervisor_and_guard(status):
    """Kill both at one stroke: of one alone the other would clean up, or start it again."""
    for name in ("guard", "supervisor"):
        os.kill(status.pids[name], signal.SIGKILL)
    wait_until(lambda: not any(identify(name, status.pids[name]) for name in ("guard", "supervisor")))


def test_everything_goes_by_itself_when_the_supervisor_is_killed(fresh_network):
    os.kill(fresh_network.pids["supervisor"], signal.SIGKILL)
    wait_until(lambda: state.inventory(PREFIX) == [], timeout_s=30)
    wait_until(lambda: not any(identify(name, pid) for name, pid in fresh_network.pids.items()))


def test_up_waits_for_the_sweep_after_a_killed_supervisor(fresh_network):
    os.kill(fresh_network.pids["supervisor"], signal.SIGKILL)
    wait_until(lambda: identify("supervisor", fresh_network.pids["supervisor"]) is None)
    after = up()
    assert after.pids["supervisor"] != fresh_network.pids["supervisor"]
    assert testbed.Client(PREFIX).status().trouble == ()


def test_a_killed_guard_is_started_again(fresh_network):
    os.kill(fresh_network.pids["guard"], signal.SIGKILL)
    client = testbed.Client(PREFIX)
    wait_until(lambda: client.status().pids["guard"] != fresh_network.pids["guard"])
    assert "guard ended with status -9 and was started again" in client.status().trouble[0]


def test_up_sweeps_what_a_crashed_run_left(fresh_network):
    kill_supervisor_and_guard(fresh_network)
    assert testbed.status(PREFIX) is None
    told = []
    assert up(told.append).pids["supervisor"] != fresh_network.pids["supervisor"]
    assert any("earlier run" in line for line in told)


def test_up_of_another_prefix_sweeps_what_a_crashed_run_left(fresh_network):
    marked = ["ovs-vsctl", "--bare", "--columns=name", "find", "Bridge", "external-ids:made-by=utopia"]
    names = subprocess.run(marked, capture_output=True, text=True, check=True).stdout.split()
    assert {f"{PREFIX}-{switch['name']}" for switch in fresh_network.switches} <= set(names)
    kill_supervisor_and_guard(fresh_network)
    assert state.inventory(PREFIX) != []
    told = []
    try:
        up(told.append, prefix=OTHER_PREFIX)
        assert any(f"Removed testbed {PREFIX}" in line for line in told)
        assert state.inventory(PREFIX) == []
    finally:
        testbed.down(OTHER_PREFIX)


@pytest.mark.parametrize("ready", [True, False], ids=["when it is up", "while it starts"])
def test_a_tied_testbed_goes_with_the_process_that_wanted_it(ready):
    testbed.down(PREFIX)
    script = (
        "import sys, time; sys.path.insert(0, 'tests/functional'); import test_network_emulation as t; "
        "t.up(lambda text: print(text, flush=True)); print('ready', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as wanting:
        for line in wanting.stdout:
            if line.startswith("ready" if ready else "Making the network"):
                break
        wait_until(lambda: state.inventory(PREFIX) != [])
        wanting.kill()
    wait_until(lambda: state.inventory(PREFIX) == [], timeout_s=30)


def test_a_dead_emulator_shows_in_the_status(fresh_network):
    os.kill(fresh_network.pids["emulator"], signal.SIGKILL)
    wait_until(lambda: testbed.Client(PREFIX).status().trouble)
    assert "emulator ended with status -9" in testbed.Client(PREFIX).status().trouble[0]


def test_others_bridges_are_left_alone(fresh_network):
    other = f"{PREFIX}-mine"
    subprocess.run(
        ["ovs-vsctl", "add-br", other, "--", "set", "bridge", other, "datapath_type=netdev"], check=True
    )
    try:
        testbed.down(PREFIX)
        assert other in subprocess.run(["ovs-vsctl", "list-br"], capture_output=True, text=True).stdout
    finally:
        subprocess.run(["ovs-vsctl", "del-br", other], check=True)


def test_mn_can_use_the_topology_by_itself():
    """`mn --custom` brings up impaired links and leaves nothing behind."""
    testbed.down(PREFIX)
    mn = shutil.which("mn", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    command = [
        mn, "--custom", "topologies/edge_cloud.py", "--topo", "edge_cloud,hosts=2,domains=1,prefix=tpa",
        "--controller", "remote,port=6701", "--test", "none",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "completed in" in done.stderr
    wait_until(lambda: state.inventory(PREFIX) == [])
