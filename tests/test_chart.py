"""The Helm chart, rendered by Helm's own library for several values and checked."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import kubernetes_validate
import pytest
import yaml

from gateway.settings import Settings as GatewaySettings
from local.programs import ROOT
from service.settings import Settings as ServiceSettings
from tests.documents.reader import blocks_of

helm_python = pytest.importorskip("helm_python", reason="there is no wheel of Helm's library")

CHART = ROOT / "deploy" / "helm"
NAMESPACE = "booking"
# The oldest version of Kubernetes that the chart is for, and the newest one that is known.
VERSIONS = ("1.30", "1.35")
WARNING = 2
MINIMAL: dict[str, Any] = {
    "image": {"repository": "registry.example/appointments"},
    "secrets": {"DATABASE_URL": {"name": "database"}},
}
VALUES: dict[str, dict[str, Any]] = {
    "minimal": MINIMAL,
    "everything": {
        "image": {
            "repository": "registry.example/appointments",
            "digest": f"sha256:{'0' * 64}",
            "pullSecrets": ["registry"],
        },
        "secrets": {
            "DATABASE_URL": {"name": "database", "key": "url"},
            "MIGRATE_DATABASE_URL": {"name": "database-owner", "key": "url"},
            "DATABASE_READ_URL": {"name": "replicas", "key": "url"},
            "AMQP_URL": {"name": "rabbitmq", "key": "url"},
            "SECRETS_KEYS": {"name": "keys", "key": "keys"},
        },
        "settings": {
            "LOG_LEVEL": "warning",
            "MAX_MESSAGE_BYTES": 3145728,
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318",
        },
        "service": {
            "settings": {
                "ACCESS_CONTROL": "on",
                "OPERATION_QUEUE": "rabbitmq",
                "GRPC_TLS_CERTIFICATE": "/tls/tls.crt",
                "GRPC_TLS_KEY": "/tls/tls.key",
                "SHUTDOWN_GRACE": 60,
            },
            "files": [
                {"secret": "service-tls", "path": "/tls"},
                {"configMap": "issuer", "path": "/issuer"},
            ],
            "autoscaling": {"enabled": True},
        },
        "worker": {
            "settings": {"LOG_LEVEL": "debug"},
            "autoscaling": {"enabled": True, "min": 3, "max": 9, "operations": 5_000_000},
        },
        "gateway": {
            "settings": {
                "GATEWAY_TLS_CERTIFICATE": "/tls/tls.crt",
                "GATEWAY_TLS_KEY": "/tls/tls.key",
                "SERVICE_TLS_CA": "/tls/ca.crt",
            },
            "files": [{"secret": "gateway-tls", "path": "/tls"}],
            "autoscaling": {"enabled": True},
            "port": 443,
            "https": True,
        },
        "networkPolicy": {
            "enabled": True,
            "gatewayFrom": [{"namespaceSelector": {"matchLabels": {"ingress": "yes"}}}],
            "grpcFrom": [{"podSelector": {"matchLabels": {"books": "yes"}}}],
            "metricsFrom": [{"namespaceSelector": {}}],
            "gatewayTo": [{"ports": [{"port": 4318}]}],
        },
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboard": {"enabled": True},
        "pod": {"nodeSelector": {"kind": "general"}, "priorityClassName": "high"},
    },
    "secrets of their own": {
        **MINIMAL,
        "secrets": {
            "DATABASE_URL": {"name": "external-database", "key": "uri"},
            "SECRETS_KEYS": {"name": "external-keys"},
        },
    },
    "autoscaling by CPU alone": {
        **MINIMAL,
        **{name: {"autoscaling": {"enabled": True}} for name in ("service", "worker", "gateway")},
    },
    "no migrations": {**MINIMAL, "migrate": {"enabled": False}},
    "as documented": {
        key: value
        for block in blocks_of(ROOT / "docs" / "kubernetes.md")
        if block.language == "yaml"
        for key, value in yaml.safe_load(block.text).items()
    },
}

Manifest = dict[str, Any]


def render(values: Mapping[str, Any], release: str = "blue") -> list[Manifest]:
    """Return all objects that Helm would create."""
    with helm_python.Chart.load(CHART) as chart:
        rendered = chart.render(dict(values), name=release, namespace=NAMESPACE)
    return [
        manifest
        for name, text in rendered.items()
        if name.endswith(".yaml")
        for manifest in yaml.safe_load_all(text)
        if manifest is not None
    ]


@dataclass(frozen=True, slots=True)
class Release:
    values: dict[str, Any]
    manifests: list[Manifest]

    def of(self, kind: str) -> dict[str, Manifest]:
        """Return the objects of a kind by name."""
        found = [each for each in self.manifests if each["kind"] == kind]
        named = {each["metadata"]["name"]: each for each in found}
        assert len(named) == len(found)
        return named

    def pods(self) -> dict[str, Manifest]:
        """Return the templates of all pods, by program."""
        return {
            name.removeprefix("blue-appointments-"): each["spec"]["template"]
            for kind in ("Deployment", "Job")
            for name, each in self.of(kind).items()
        }

    def selected(self, labels: Mapping[str, str]) -> list[str]:
        """Return the programs whose pods have all of these labels."""
        return [
            program
            for program, pod in self.pods().items()
            if labels.items() <= pod["metadata"]["labels"].items()
        ]


@pytest.fixture(params=VALUES)
def release(request: pytest.FixtureRequest) -> Release:
    values = VALUES[request.param]
    return Release(values, render(values))


def container(pod: Manifest) -> Manifest:
    [only] = pod["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def environment(pod: Manifest) -> dict[str, Any]:
    """Return what each variable is set to: a value, or a reference to a Secret."""
    variables = container(pod).get("env", [])
    named = {each["name"]: each.get("value", each.get("valueFrom")) for each in variables}
    assert len(named) == len(variables)
    return named


def strings(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from (str(key), *strings(each))
    elif isinstance(value, list):
        for each in value:
            yield from strings(each)
    else:
        yield str(value)


def test_the_chart_has_no_faults(release: Release) -> None:
    report = helm_python.lint(CHART, release.values, strict=True)
    assert report["errors"] == []
    assert [each for each in report["messages"] if each["severity"] >= WARNING] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_objects_are_what_kubernetes_accepts(release: Release, version: str) -> None:
    """By the schemas of Kubernetes, without members that they do not know."""
    for manifest in release.manifests:
        if manifest["kind"] not in {"ServiceMonitor", "PrometheusRule"}:  # the operator's
            kubernetes_validate.validate(manifest, version, strict=True)


def test_settings_exist_and_are_accepted(release: Release) -> None:
    for program, pod in release.pods().items():
        given = {
            name: value
            for name, value in environment(pod).items()
            if not name.startswith("OTEL_")  # OpenTelemetry reads them itself
        }
        if program == "migrate":
            assert given.keys() == {"DATABASE_URL"}
            continue
        settings = GatewaySettings if program == "gateway" else ServiceSettings
        assert {name.lower() for name in given} <= settings.model_fields.keys()
        filled = {
            name.lower(): value if isinstance(value, str) else _EXAMPLES[name]
            for name, value in given.items()
        }
        # Secrets and numbers are texts, as in the environment.
        settings.model_validate(filled)


_EXAMPLES = {
    "DATABASE_URL": "postgresql://somebody@somewhere/appointments",
    "DATABASE_READ_URL": "postgresql://somebody@elsewhere/appointments",
    "AMQP_URL": "amqp://somebody@somewhere",
    "SECRETS_KEYS": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
}


def test_secrets_are_references(release: Release) -> None:
    assert release.of("Secret") == {}
    wanted = {"migrate": {"DATABASE_URL"}, "gateway": set[str]()}
    named = {name for name, secret in release.values["secrets"].items() if secret["name"]}
    named.discard("MIGRATE_DATABASE_URL")
    wanted |= {"service": named, "worker": named - {"DATABASE_READ_URL"}}
    secrets = {**_defaults()["secrets"]}
    for name, secret in release.values["secrets"].items():
        secrets[name] = {**secrets[name], **secret}
    owner = secrets["MIGRATE_DATABASE_URL"]
    for program, pod in release.pods().items():
        references = {
            name: value["secretKeyRef"]
            for name, value in environment(pod).items()
            if isinstance(value, dict)
        }
        assert references.keys() == wanted[program]
        for name, reference in references.items():
            use_owner = program == "migrate" and owner["name"]
            assert reference == (owner if use_owner else secrets[name])


def _defaults() -> dict[str, Any]:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    assert isinstance(defaults, dict)
    return defaults


def test_ports_are_those_of_the_programs(release: Release) -> None:
    def default(settings: type[ServiceSettings | GatewaySettings], name: str) -> object:
        return settings.model_fields[name].default

    ports = {
        program: {each["name"]: each["containerPort"] for each in container(pod).get("ports", [])}
        for program, pod in release.pods().items()
    }
    health = int(environment(release.pods()["service"])["GRPC_HEALTH_PORT"])
    assert ports["service"] == {
        "grpc": default(ServiceSettings, "grpc_port"),
        "metrics": default(ServiceSettings, "metrics_port"),
        "health": health,
    }
    assert ports["worker"] == {"metrics": default(ServiceSettings, "worker_metrics_port")}
    assert ports["gateway"] == {
        "http": default(GatewaySettings, "gateway_port"),
        "metrics": default(GatewaySettings, "gateway_metrics_port"),
    }
    for pod in release.pods().values():
        only = container(pod)
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            action = only.get(probe, {})
            port = (action.get("grpc") or action.get("httpGet") or {}).get("port")
            assert port in {None, *ports[only["name"]], *ports[only["name"]].values()}
    for service in release.of("Service").values():
        [program] = release.selected(service["spec"]["selector"])
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports[program]


def test_the_gateway_finds_all_pods_of_the_service(release: Release) -> None:
    host, _, port = environment(release.pods()["gateway"])["SERVICE_ADDRESS"].partition(":")
    service = release.of("Service")[host]
    assert service["spec"]["clusterIP"] == "None"
    assert release.selected(service["spec"]["selector"]) == ["service"]
    assert int(port) in {each["port"] for each in service["spec"]["ports"]}


def test_selectors_match_one_program(release: Release) -> None:
    programs = {"service", "worker", "gateway"}
    for kind in ("Deployment", "PodDisruptionBudget"):
        found = [
            release.selected(each["spec"]["selector"]["matchLabels"])
            for each in release.of(kind).values()
        ]
        assert sorted(found) == sorted([program] for program in programs)
    for scaler in release.of("HorizontalPodAutoscaler").values():
        target = release.of("Deployment")[scaler["spec"]["scaleTargetRef"]["name"]]
        assert "replicas" not in target["spec"]  # an upgrade would undo the autoscaler's
        assert container(target["spec"]["template"])["resources"]["requests"]["cpu"]
    # Not even the pods of another release.
    other = Release({}, render(release.values, "green"))
    for service in other.of("Service").values():
        assert release.selected(service["spec"]["selector"]) == []


def test_pods_have_no_more_rights_than_they_need(release: Release) -> None:
    for pod in release.pods().values():
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["securityContext"]["runAsUser"] == 10001
        assert "useradd --system --no-create-home --uid 10001" in (ROOT / "Dockerfile").read_text()
        assert container(pod)["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container(pod)["resources"]["limits"]["memory"]


def test_a_pod_has_the_time_that_it_needs_to_stop(release: Release) -> None:
    names = {"service": "SHUTDOWN_GRACE", "worker": "SHUTDOWN_GRACE"}
    for program, pod in release.pods().items():
        if program == "migrate":
            continue
        wait = container(pod)["lifecycle"]["preStop"]["sleep"]["seconds"]
        name = names.get(program, "GATEWAY_SHUTDOWN_GRACE")
        settings = GatewaySettings if program == "gateway" else ServiceSettings
        grace = environment(pod).get(name, settings.model_fields[name.lower()].default)
        assert wait >= 5
        assert pod["spec"]["terminationGracePeriodSeconds"] == wait + int(grace) + 10


def test_files_are_mounted() -> None:
    release = Release(VALUES["everything"], render(VALUES["everything"]))
    pods = release.pods()
    for program in ("service", "gateway"):
        volumes = {each["name"]: each for each in pods[program]["spec"]["volumes"]}
        mounts = {each["mountPath"]: each for each in container(pods[program])["volumeMounts"]}
        for file in VALUES["everything"][program]["files"]:
            volume = volumes[mounts[file["path"]]["name"]]
            found = volume["secret"]["secretName"] if "secret" in file else None
            assert found == file.get("secret")
            assert volume.get("configMap", {}).get("name") == file.get("configMap")


def test_the_network_is_closed_to_others() -> None:
    release = Release(VALUES["everything"], render(VALUES["everything"]))
    policies = {
        release.selected(each["spec"]["podSelector"]["matchLabels"])[0]: each["spec"]
        for each in release.of("NetworkPolicy").values()
    }
    assert policies.keys() == {"service", "worker", "gateway"}
    from_gateway = policies["service"]["ingress"][0]
    assert from_gateway["ports"] == [{"port": "grpc"}]
    assert release.selected(from_gateway["from"][0]["podSelector"]["matchLabels"]) == ["gateway"]
    to_service = policies["gateway"]["egress"][0]
    assert release.selected(to_service["to"][0]["podSelector"]["matchLabels"]) == ["service"]
    for program, policy in policies.items():
        names = {each["name"] for each in container(release.pods()[program])["ports"]}
        allowed = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
        assert allowed == names - {"health"}


def test_workers_follow_the_queue() -> None:
    release = Release(VALUES["everything"], render(VALUES["everything"]))
    worker = release.of("HorizontalPodAutoscaler")["blue-appointments-worker"]["spec"]
    assert (worker["minReplicas"], worker["maxReplicas"]) == (3, 9)
    [external] = [each["external"] for each in worker["metrics"] if each["type"] == "External"]
    assert external["target"] == {"type": "AverageValue", "averageValue": "5000000"}
    source = (ROOT / "service" / "metrics.py").read_text()
    assert f'"{external["metric"]["name"]}"' in source


def test_every_program_is_monitored() -> None:
    release = Release(VALUES["everything"], render(VALUES["everything"]))
    [monitor] = release.of("ServiceMonitor").values()
    selector = monitor["spec"]["selector"]["matchLabels"]
    services = [
        each
        for each in release.of("Service").values()
        if selector.items() <= each["metadata"]["labels"].items()
    ]
    assert len(services) == 3
    [endpoint] = monitor["spec"]["endpoints"]
    for service in services:
        assert endpoint["port"] in {each["name"] for each in service["spec"]["ports"]}
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_alerts_and_dashboard_are_those_of_the_repository() -> None:
    release = Release(VALUES["everything"], render(VALUES["everything"]))
    [rule] = release.of("PrometheusRule").values()
    alerts = ROOT / "deploy" / "prometheus" / "alerts.yml"
    assert rule["spec"] == yaml.safe_load(alerts.read_text("utf-8"))
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    [dashboard] = release.of("ConfigMap").values()
    [content] = dashboard["data"].values()
    text = (ROOT / "deploy" / "grafana" / "appointments.json").read_text("utf-8")
    assert json.loads(content) == json.loads(text)
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    kinds = {each["kind"] for each in render(MINIMAL)}
    assert kinds.isdisjoint({"ServiceMonitor", "PrometheusRule", "ConfigMap"})


def test_traces_can_be_switched_on_for_all_programs() -> None:
    pods = Release({}, render(VALUES["everything"])).pods()
    for program in ("service", "worker", "gateway"):
        assert environment(pods[program])["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4318"


def test_migrations_come_first() -> None:
    [migrate] = Release(MINIMAL, render(MINIMAL)).of("Job").values()
    hooks = migrate["metadata"]["annotations"]["helm.sh/hook"].split(",")
    assert hooks == ["pre-install", "pre-upgrade"]
    [command, _] = container(migrate["spec"]["template"])["command"]
    assert (ROOT / "migrations" / command).exists()
    assert Release({}, render(VALUES["no migrations"])).of("Job") == {}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"image": MINIMAL["image"]}, "DATABASE_URL"),
        ({"secrets": MINIMAL["secrets"]}, "repository"),
        ({**MINIMAL, "service": {"replica": 3}}, "replica"),
        ({**MINIMAL, "service": {"settings": {"GRPC_PORT": 1}}}, "GRPC_PORT"),
        ({**MINIMAL, "settings": {"DATABASE_URL": "postgresql://u:secret@h/d"}}, "DATABASE_URL"),
        ({**MINIMAL, "settings": {"log_level": "debug"}}, "log_level"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(helm_python.HelmError, match=named) as refusal:
        render(values)
    assert "secret@" not in str(refusal.value)
