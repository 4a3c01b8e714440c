"""`make compose-check`: start docker-compose.yml, as it is, by Docker Compose.

Needs what `make image-check` needs, and the right to run a privileged container: Debian's Docker
Engine and Compose run in it, without a network, and with images and volumes in memory. So the
check uses no ports of this machine and leaves no volumes. If no registry has the images of
PostgreSQL and RabbitMQ, others stand in for them (tests/compose/Dockerfile).
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest

from local.postgres import programs_directory
from local.programs import ROOT
from tests.image_check import (
    ENGINE,
    IMAGE,
    base,
    build_image,
    build_options,
    engine,
    succeeds,
)

FILES = ROOT / "tests" / "compose"
PUBLIC = {"postgres": "postgres:18", "rabbitmq": "rabbitmq:4"}
PROGRAMS = {"service", "worker", "gateway"}
RABBITMQ = {
    "OPERATION_QUEUE": "rabbitmq",
    "AMQP_URL": "amqp://appointments:appointments@rabbitmq",
}
START = 60.0  # seconds

pytestmark = pytest.mark.timeout(900)


def own_tag(target: str) -> str:
    return f"localhost/compose-check:{target}"


def build_stand_in(target: str, base_name: str) -> str:
    """Build a target of the Dockerfile and return its name."""
    wheel = programs_directory().parents[2]
    name = own_tag(target)
    arguments = [f"--target={target}", f"--build-arg=BASE={base_name}"]
    arguments += [f"--build-context=wheel={wheel}", f"--file={FILES / 'Dockerfile'}"]
    engine("build", *build_options(), *arguments, "--tag", name, FILES)
    return name


def public_image(target: str, base_name: str) -> str:
    """Return the name of an image that has been pulled, or of one that stands in for it."""
    public = f"docker.io/library/{PUBLIC[target]}"
    if succeeds(ENGINE, "pull", "--quiet", public):
        return public
    click.echo(f"No registry has {PUBLIC[target]}: one made of tests/compose/Dockerfile is used.")
    return build_stand_in(target, base_name)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("it takes too long")
        time.sleep(0.2)


class Docker:
    """An engine in a container. Its Compose has this repository's docker-compose.yml."""

    def __init__(self, image: str) -> None:
        options = ["--detach", "--privileged", "--network=none", "--tmpfs=/var/lib/docker"]
        project = f"--volume={ROOT / 'docker-compose.yml'}:/project/docker-compose.yml:ro"
        self.container = engine("run", *options, project, "--workdir=/project", image)

    def answers(self) -> bool:
        return succeeds(ENGINE, "exec", self.container, "docker", "info")

    def remove(self) -> None:
        engine("rm", "--force", "--volumes", self.container)

    def load(self, name: str, as_name: str) -> None:
        """Give it an image of the engine outside."""
        save = [ENGINE, "save", name]
        load = [ENGINE, "exec", "--interactive", self.container, "docker", "load", "--quiet"]
        with subprocess.Popen(save, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as saved:
            subprocess.run(load, stdin=saved.stdout, capture_output=True, check=True)
        self.run("tag", name, as_name)

    def run(self, *arguments: str, **settings: str) -> str:
        """Run a command of docker, with these variables of the environment."""
        variables = [f"--env={name}={value}" for name, value in settings.items()]
        return engine("exec", *variables, self.container, "docker", *arguments)

    def compose(self, *arguments: str, **settings: str) -> str:
        return self.run("compose", "--progress=quiet", *arguments, **settings)

    def up(self, profile: str = "", **settings: str) -> None:
        """Start what does not run, and wait until it is healthy."""
        options = ("--detach", "--wait", "--wait-timeout=120", "--no-build")
        try:
            self.compose(f"--profile={profile}", "up", *options, **settings)
        except pytest.fail.Exception:
            click.echo(self.compose("--profile=*", "ps", "--all"))
            click.echo(self.compose("--profile=*", "logs", "--tail=20"))
            raise

    def containers(self) -> dict[str, dict[str, Any]]:
        """What Compose tells of each container of the project."""
        lines = self.compose("--profile=*", "ps", "--all", "--format=json").splitlines()
        return {each["Service"]: each for each in map(json.loads, lines)}

    def healthy(self) -> set[str]:
        return {name for name, each in self.containers().items() if each["Health"] == "healthy"}

    def exit_codes(self) -> dict[str, int]:
        """The exit codes of those that have ended."""
        containers = self.containers().items()
        return {name: each["ExitCode"] for name, each in containers if each["State"] == "exited"}

    def started(self, names: set[str]) -> dict[str, str]:
        """When each of these containers was started."""
        template = '{{index .Config.Labels "com.docker.compose.service"}} {{.State.StartedAt}}'
        ids = self.compose("ps", "--all", "--quiet", *names).split()
        lines = self.run("inspect", f"--format={template}", *ids).splitlines()
        return dict(line.split() for line in lines)

    def kill(self, service: str) -> None:
        """Kill all processes of a container. The command may fail, as it is killed with them."""
        command = ["docker", "compose", "exec", "-T", service, "sh", "-c", "kill -9 -1"]
        subprocess.run([ENGINE, "exec", self.container, *command], capture_output=True, check=False)

    def calls(self) -> dict[str, Any]:
        """Run tests/compose/calls.py and return its results."""
        script = (FILES / "calls.py").read_text()
        network = f"--network=container:{self.container}"
        results = json.loads(engine("run", "--rm", network, IMAGE, "python", "-c", script))
        assert isinstance(results, dict)
        return results


@pytest.fixture(scope="module")
def engine_with_images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    if not ENGINE:
        pytest.fail("there is no container engine: neither docker nor podman answers")
    base_name = base(tmp_path_factory.mktemp("base"))
    build_image(base_name)
    docker = Docker(build_stand_in("engine", base_name))
    try:
        wait_until(docker.answers)
        click.echo(docker.run("compose", "version"))
        docker.load(IMAGE, "appointments")
        for target, name in PUBLIC.items():
            docker.load(public_image(target, base_name), name)
        yield docker
    finally:
        docker.remove()
        for target in ("engine", *PUBLIC):
            succeeds(ENGINE, "rmi", own_tag(target))


@pytest.fixture
def docker(engine_with_images: Docker) -> Iterator[Docker]:
    """Nothing of the project runs or is stored."""
    yield engine_with_images
    engine_with_images.compose("--profile=*", "down", "--volumes")


def test_it_starts_recovers_stops_and_keeps_its_data(docker: Docker) -> None:
    docker.up()
    running = {"postgres", *PROGRAMS}
    assert docker.healthy() == running
    assert docker.exit_codes() == {"migrate": 0}
    # Only for this machine.
    assert docker.compose("port", "service", "50051") == "127.0.0.1:50051"
    assert docker.compose("port", "gateway", "3000") == "127.0.0.1:3000"
    assert docker.calls() == {
        "stored before": [],
        "upsert, conflict, asynchronous": [201, 409, 202],
        "asynchronous outcome": "CREATED",
    }

    # Once more, what runs is left alone.
    first = docker.started(running)
    docker.up()
    assert docker.started(running) == first
    assert docker.exit_codes() == {"migrate": 0}

    # A program that is killed is started again.
    for name in PROGRAMS:
        docker.kill(name)
    wait_until(lambda: all(at != first[name] for name, at in docker.started(PROGRAMS).items()))
    docker.up()
    assert docker.healthy() == running
    assert docker.started({"postgres"}).items() <= first.items()

    # A program that is not ready to end in time is killed, with 137.
    docker.compose("stop")
    assert docker.exit_codes() == dict.fromkeys([*running, "migrate"], 0)

    docker.compose("down")
    assert docker.containers() == {}
    docker.up()
    assert docker.calls() == {
        "stored before": ["a", "c"],
        "upsert, conflict, asynchronous": [200, 409, 202],
        "asynchronous outcome": "UNCHANGED",
    }


def test_rabbitmq_can_be_the_queue(docker: Docker) -> None:
    # Both take any characters.
    settings = {**RABBITMQ, "POSTGRES_PASSWORD": "a b/c@d#e%f:$g"}
    docker.up("rabbitmq", **settings)
    assert docker.healthy() == {"postgres", "rabbitmq", *PROGRAMS}
    assert docker.calls() == {
        "stored before": [],
        "upsert, conflict, asynchronous": [201, 409, 202],
        "asynchronous outcome": "CREATED",
    }
    assert "consuming operations from RabbitMQ" in docker.compose("logs", "worker")
    docker.compose("--profile=rabbitmq", "stop", **settings)
    assert set(docker.exit_codes().values()) == {0}


def test_the_cluster_of_citus_is_understood(docker: Docker) -> None:
    """No more than that: nothing stands in for its image."""
    arguments = ("--profile=citus", "config", "--format=json")
    services = json.loads(docker.compose(*arguments, DATABASE_HOST="citus"))["services"]
    cluster = {"citus", "citus-node-1", "citus-node-2", "citus-nodes"}
    assert services.keys() == {"postgres", "migrate", *PROGRAMS, *cluster}
    url = "postgresql://appointments@citus/appointments"
    for name in ("migrate", "service", "worker"):
        assert services[name]["environment"]["DATABASE_URL"] == url
