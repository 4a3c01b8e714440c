"""The cluster of docker-compose.yml is what docs/scaling.md says. It was never started."""

import re
from typing import Any

import yaml

from local.programs import ROOT
from service.postgres.distribution import MIN_VERSION

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
CLUSTER = {name: each for name, each in SERVICES.items() if each.get("profiles") == ["citus"]}


def test_all_servers_have_one_image_that_is_new_enough() -> None:
    assert CLUSTER.keys() == {"citus", "citus-node-1", "citus-node-2", "citus-nodes"}
    [image] = {each["image"] for each in CLUSTER.values()}
    assert re.fullmatch(r"citusdata/citus:\d+\.\d+", image)
    assert int(re.findall(r"\d+", image)[0]) >= MIN_VERSION


def test_the_nodes_are_added_before_the_migrations_run() -> None:
    nodes = CLUSTER["citus-nodes"]
    statements = " ".join(nodes["command"])
    named = re.findall(r"citus_(?:set_coordinator_host|add_node)\('([\w-]+)'", statements)
    servers = CLUSTER.keys() - {"citus-nodes"}
    assert len(named) == len(set(named))
    assert set(named) == servers == nodes["depends_on"].keys()
    wait = SERVICES["migrate"]["depends_on"]["citus-nodes"]
    # Without the profile there are none.
    assert wait == {"condition": "service_completed_successfully", "required": False}
    for program in ("service", "worker"):
        assert "migrate" in SERVICES[program]["depends_on"]


def test_the_servers_can_be_reached_by_the_programs_only() -> None:
    for name, each in CLUSTER.items():
        assert "ports" not in each, name
    for name in ("migrate", "service", "worker"):
        assert "${DATABASE_HOST:-postgres}" in SERVICES[name]["environment"]["DATABASE_URL"]


def test_each_server_keeps_its_data_in_a_volume_of_its_own() -> None:
    volumes = [
        each["volumes"][0].partition(":")[0] for each in CLUSTER.values() if "volumes" in each
    ]
    assert sorted(volumes) == sorted(CLUSTER.keys() - {"citus-nodes"})
    assert set(volumes) <= COMPOSE["volumes"].keys()
