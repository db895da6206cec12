"""The network that a scenario describes: seeded, independent of order, with sane names and values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenarios.schema import Scenario, parse
from topologies.edge_cloud import interface_name
from topologies.errors import SpecError
from topologies.specs import (
    PEKEL_TABLE_I,
    Impairment,
    LinkKind,
    access_impairment,
    device,
    network_spec,
    niceness,
)


def scenario(**changes) -> Scenario:
    document = {"name": "t", "devices": {"trusted": ["h1"]}, "finetune": {"policies": ["all"]}, **changes}
    return parse(document, source="test")


def test_the_same_scenario_describes_the_same_network():
    assert network_spec(scenario(seed=3)) == network_spec(scenario(seed=3))


def test_another_seed_draws_other_links_and_devices():
    one, other = network_spec(scenario(seed=3)), network_spec(scenario(seed=4))
    assert one.end_to_end("h1") != other.end_to_end("h1")
    assert one.hosts[0].device != other.hosts[0].device


def test_a_host_keeps_its_values_when_hosts_are_added():
    few = network_spec(scenario(topology={"hosts": 4, "domains": 2}))
    many = network_spec(scenario(topology={"hosts": 40, "domains": 2}))
    assert [few.end_to_end(host.name) for host in few.hosts] == [
        many.end_to_end(host.name) for host in many.hosts[:4]
    ]
    assert [host.device for host in few.hosts] == [host.device for host in many.hosts[:4]]


def test_redrawing_the_links_leaves_the_devices_alone():
    one, other = network_spec(scenario(links={"setup": 1})), network_spec(scenario(links={"setup": 3}))
    assert [host.device for host in one.hosts] == [host.device for host in other.hosts]
    assert one.links != other.links


def test_the_end_to_end_delay_is_drawn_and_the_access_link_carries_what_the_core_does_not():
    spec = network_spec(scenario(links={"core": {"delay_s": 0.004}, "delay_floor_s": 0.014}))
    for host in spec.hosts:
        access = spec.link(f"{host.name}-{host.switch}").a_to_b
        assert spec.end_to_end(host.name).delay_s == pytest.approx(access.delay_s + 0.008)
        assert spec.end_to_end(host.name).delay_s >= 0.014 - 1e-12


def test_values_are_clipped_to_floors_and_ceiling():
    spec = network_spec(
        scenario(
            topology={"hosts": 200, "domains": 3},
            links={"rate_floor_bps": 5e6, "delay_floor_s": 0.05, "loss_ceiling_ratio": 0.01},
            devices={"trusted": [], "power_min": 20},
        )
    )
    ends = [spec.end_to_end(host.name) for host in spec.hosts]
    assert min(end.rate_bps for end in ends) == 5e6
    assert min(end.delay_s for end in ends) == pytest.approx(0.05)
    assert max(end.loss_ratio for end in ends) == pytest.approx(0.01)
    assert min(host.device.power for host in spec.hosts) == 20


@pytest.mark.parametrize("setup", [1, 2, 3])
def test_draws_have_the_means_of_the_paper(setup):
    links = scenario(
        links={"setup": setup, "rate_floor_bps": 8000, "delay_floor_s": 1e-9, "loss_ceiling_ratio": 0.5,
               "core": {"delay_s": 0}}
    ).links  # fmt: skip
    drawn = [access_impairment(links, seed=1, host_number=number) for number in range(1, 4001)]
    rate_mean, delay_mean, loss_mean = PEKEL_TABLE_I[setup]
    assert np.mean([item.rate_bps for item in drawn]) == pytest.approx(rate_mean, rel=0.07)
    assert np.mean([item.delay_s for item in drawn]) == pytest.approx(delay_mean, rel=0.07)
    assert np.mean([item.loss_ratio for item in drawn]) == pytest.approx(loss_mean, rel=0.07)


def test_fast_devices_do_not_tend_to_have_fast_or_slow_links():
    small = scenario(devices={"trusted": [], "power_min": 0.001})
    numbers = range(1, 2001)
    rates = [access_impairment(small.links, seed=5, host_number=n).rate_bps for n in numbers]
    powers = [device(small.devices, seed=5, host_number=n).power for n in numbers]
    assert abs(np.corrcoef(rates, powers)[0, 1]) < 0.1


def test_a_slower_device_has_fewer_flops_and_more_overhead():
    devices = scenario().devices
    drawn = sorted((device(devices, seed=5, host_number=n) for n in range(1, 30)), key=lambda d: d.power)
    assert drawn[0].compute_flops < drawn[-1].compute_flops
    assert drawn[0].layer_overhead_s > drawn[-1].layer_overhead_s
    middle = drawn[15]
    assert middle.layer_overhead_s * middle.power == pytest.approx(
        devices.layer_overhead_s * devices.power_mean
    )


@settings(max_examples=25, deadline=None)
@given(
    hosts=st.integers(2, 300),
    domains=st.integers(1, 100),
    cores=st.integers(2, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_network_is_well_formed(hosts, domains, cores, seed):
    domains = min(hosts, domains)
    spec = network_spec(
        scenario(
            seed=seed,
            topology={"hosts": hosts, "domains": domains, "cores": cores},
            network={"prefix": "abcd"},
        )
    )
    names = [item.name for item in (*spec.all_hosts(), *spec.switches)]
    assert len(set(names)) == len(names)
    assert (
        len({host.ip for host in spec.all_hosts()})
        == len({host.mac for host in spec.all_hosts()})
        == hosts + 1
    )
    assert len({switch.dpid for switch in spec.switches}) == domains + cores
    assert all(len(switch.dpid) == 16 and int(switch.dpid, 16) for switch in spec.switches)
    ports = [
        (node, port) for li in spec.links for node, port in ((li.a, li.a_port), (li.b, li.b_port)) if port
    ]
    assert len(set(ports)) == len(ports)
    assert {link.b for link in spec.links if link.kind is LinkKind.ACCESS} == {
        f"g{n + 1}" for n in range(domains)
    }
    for gateway in range(1, domains + 1):
        assert {link.b for link in spec.links if link.a == f"g{gateway}"} == {
            f"c{n + 1}" for n in range(cores)
        }
    for node, port in ports:
        assert len(interface_name("abcd", node, port)) <= 15
    assert all(len(f"{link.name}.a") <= 15 for link in spec.links)


def test_names_fit_for_the_largest_network():
    spec = network_spec(
        scenario(topology={"hosts": 1000, "domains": 100, "cores": 20}, network={"prefix": "abcd"})
    )
    assert max(len(f"{link.name}.a") for link in spec.links) <= 15
    assert all(host.ip.split(".")[3] not in ("0", "255") for host in spec.hosts)


def test_a_link_is_found_from_both_ends_and_an_unknown_one_is_refused_with_the_known_ones():
    spec = network_spec(scenario())
    assert spec.link("g1-h1") == spec.link("h1-g1")
    with pytest.raises(SpecError, match=r"no link 'h1-g9'.*h1-g1"):
        spec.link("h1-g9")


@pytest.mark.parametrize(
    ("field", "value"),
    [("rate_bps", 0), ("rate_bps", float("nan")), ("delay_s", -0.1), ("delay_s", float("nan")),
     ("loss_ratio", 1.1), ("queue_packets", 0), ("jitter_s", 1.0)],
)  # fmt: skip
def test_an_impossible_impairment_is_refused_by_name(field, value):
    with pytest.raises(SpecError, match=field):
        Impairment(**{"rate_bps": 1e6, "delay_s": 0.01, field: value})


def test_a_faster_device_is_never_behind_a_slower_one() -> None:
    levels = [niceness(power, reference=30.0) for power in (1, 6, 15, 30, 60, 500)]
    assert levels == sorted(levels, reverse=True)
    assert niceness(30.0, reference=30.0) == 5
    assert min(levels) == 0
    assert max(levels) == 19
