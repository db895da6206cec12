"""The orchestrator reads the very answers that the controller's side of the contract is checked against."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.adapters.northbound import METRICS, join, parse_measurement, parse_paths

EXAMPLES = Path(__file__).parent / "northbound_examples"


def example(name):
    return json.loads((EXAMPLES / f"{name}.json").read_text())


def test_the_example_of_all_paths_is_read_whole():
    document = example("paths")
    parsed = parse_paths(document)
    assert [(path.src, path.dst) for path in parsed] == [
        (item["src"], item["dst"]) for item in document["paths"]
    ]
    for path, item in zip(parsed, document["paths"], strict=True):
        assert {name: path.metrics[name].value for name in METRICS} == {
            name: item[name]["value"] for name in METRICS
        }


def test_the_hosts_of_the_example_topology_join_with_the_paths_by_address():
    names = {host["ip"]: f"node-{host['ip']}" for host in example("topology")["hosts"]}
    parsed = parse_paths(example("paths"))
    network = join(parsed, names=names, taken_at_s=0.0, older_by_s=0.0)
    assert network.paths


@pytest.mark.parametrize("metric", [*METRICS, "jitter_s", "used_bps"])
def test_every_measurement_of_the_example_links_is_read(metric):
    for link in example("links")["links"]:
        assert parse_measurement(link[metric], metric).value == link[metric]["value"]
