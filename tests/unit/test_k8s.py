"""docker/k8s: what kubectl makes of it, against Kubernetes' schemas and against Celora itself."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it ships no types
import pytest
import typer
import yaml  # type: ignore[import-untyped]  # it ships no types

from celora.api import metrics
from celora.cli import app
from celora.cli.broker import definitions
from gpu_worker import launcher
from models.settings import Settings
from tests.compose_file import FOLDER
from tests.conftest import ROOT, unavailable
from tests.environment import variables

Object = dict[str, Any]

VARIANTS = ("gpu-nodes", "gpu-pods", "object-store")
SCHEMAS = "1.34"  # Kubernetes' version
COMPONENT = "app.kubernetes.io/component"
# What libraries in our processes read, beside the settings.
_OF_LIBRARIES = {
    *("HF_ENDPOINT", "HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    *("TRITON_CACHE_DIR", "CELORA_FLOWER_USER", "CELORA_FLOWER_PASSWORD"),
}
_KNOWN = {f"CELORA_{name.upper()}" for name in Settings.model_fields} | _OF_LIBRARIES
# Component → who it is on Postgres and on RabbitMQ (docs/deployment.md).
_ROLES = {
    "migrations": ("celora_owner", None),
    "api": ("celora_app", None),
    "dispatcher": ("celora_app", "dispatcher"),
    "cpu-worker": ("celora_worker", "cpu"),
    "gpu-worker": ("celora_worker", "gpu"),
    "flower": (None, "flower"),
}


def secrets() -> dict[str, str]:
    """secrets.env as an operator fills it in."""
    lines = (FOLDER / "k8s" / "example" / "secrets.env.example").read_text().splitlines()
    given = [line.partition("=") for line in lines if line and not line.startswith("#")]
    assert not any(value for _, _, value in given), "an example with a password in it"
    return {name: f"{name.lower()}-of-this-test" for name, _, _ in given}


def kustomize(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["kubectl", "kustomize", str(folder)], check=False, capture_output=True, text=True
    )


def copied(folder: Path) -> Path:
    """The example, as an operator gets it."""
    if shutil.which("kubectl") is None:
        unavailable("kubectl is not installed, which builds docker/k8s")
    shutil.copytree(FOLDER / "k8s", folder, ignore=shutil.ignore_patterns("secrets.env", "ca.pem"))
    return folder / "example"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Object]]:
    """Variant → all its objects."""
    example = copied(tmp_path_factory.mktemp("k8s") / "k8s")
    (example / "secrets.env").write_text(
        "".join(f"{name}={value}\n" for name, value in secrets().items())
    )
    (example / "ca.pem").write_text("a certificate\n")
    written = (example / "kustomization.yaml").read_text()
    texts = {
        "gpu-nodes": written,
        "gpu-pods": written.replace("components/gpu-nodes", "components/gpu-pods"),
        "object-store": written.replace("# - ../components/object", "- ../components/object"),
    }
    assert len(set(texts.values())) == len(VARIANTS)
    found = {}
    for variant in VARIANTS:
        (example / "kustomization.yaml").write_text(texts[variant])
        made = kustomize(example)
        assert made.returncode == 0, made.stderr
        found[variant] = list(yaml.safe_load_all(made.stdout))
    return found


@pytest.fixture(params=VARIANTS)
def objects(request: pytest.FixtureRequest, built: dict[str, list[Object]]) -> list[Object]:
    return built[request.param]


def kinds(objects: list[Object], *names: str) -> Iterator[Object]:
    return (each for each in objects if each["kind"] in names)


def pods(objects: list[Object]) -> dict[str, Object]:
    """Component → its pod template."""
    found = [
        each["spec"]["template"]
        for each in objects
        if "containers" in each.get("spec", {}).get("template", {}).get("spec", {})
    ]
    named = {pod["metadata"]["labels"][COMPONENT]: pod for pod in found}
    assert sorted(named) == sorted(_ROLES)
    assert len(found) == len(named)
    return named


def container(pod: Object) -> Object:
    (only,) = pod["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def setting(objects: list[Object], name: str) -> str:
    return next(
        str(each["data"][name])
        for each in kinds(objects, "ConfigMap")
        if name in each.get("data", {})
    )


def matches(selector: Object, pod: Object) -> bool:
    labels = pod["metadata"]["labels"]
    for each in selector.get("matchExpressions", []):
        assert each["operator"] == "In"
        if labels.get(each["key"]) not in each["values"]:
            return False
    return set(selector.get("matchLabels", {}).items()) <= set(labels.items())


def test_every_object_is_valid(built: dict[str, list[Object]]) -> None:
    different = {json.dumps(each) for objects in built.values() for each in objects}
    for text in sorted(different):
        kubernetes_validate.validate(json.loads(text), SCHEMAS, strict=True)


def test_a_wrong_field_is_found(built: dict[str, list[Object]]) -> None:
    pod = json.loads(json.dumps(next(kinds(built["gpu-nodes"], "DaemonSet"))))
    pod["spec"]["template"]["spec"]["terminationGracePeriod"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, SCHEMAS, strict=True)


def test_nothing_is_made_without_passwords(tmp_path: Path) -> None:
    made = kustomize(copied(tmp_path / "k8s"))
    assert made.returncode != 0
    assert made.stdout == ""


def test_passwords_stand_in_the_secret_alone(objects: list[Object]) -> None:
    (secret,) = kinds(objects, "Secret")
    assert set(secret["data"]) == set(secrets())
    text = json.dumps([each for each in objects if each is not secret])
    assert not any(value in text for value in (*secrets().values(), *secret["data"].values()))


def test_every_command_is_one_of_ours(objects: list[Object]) -> None:
    for name, pod in pods(objects).items():
        given = container(pod)
        if "command" in given:  # a script; else the image's entry point, which is `celora`
            assert given["command"] == ["tini", "--", "sh", "-ec"]
            commands = [line.split() for line in given["args"][0].splitlines()]
        else:
            commands = [["celora", *given["args"]]]
        probe = given.get("readinessProbe", {}).get("exec")
        commands += [probe["command"]] if probe else []
        for program, *arguments in commands:
            assert program == "celora", name
            parse(arguments)


@cache
def commands() -> Any:
    return typer.main.get_command(app)


def parse(arguments: list[str]) -> None:
    """Raises a usage error for what is no command, or not its option."""
    command = commands()
    while hasattr(command, "commands"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context(command.name, list(arguments))


def test_every_variable_is_known_and_every_reference_is_set(objects: list[Object]) -> None:
    maps = {each["metadata"]["name"]: each["data"] for each in kinds(objects, "ConfigMap")}
    (secret,) = kinds(objects, "Secret")
    used, wanted = set(), set()
    for pod in pods(objects).values():
        (source,) = container(pod)["envFrom"]
        names = set(maps[source["configMapRef"]["name"]])
        own = set()
        for each in container(pod)["env"]:
            references = set(re.findall(r"\$\((\w+)\)", each.get("value", "")))
            assert references <= names, each  # Kubernetes leaves what is not set yet as it stands
            used |= references
            names.add(each["name"])
            own.add(each["name"])
            if key := each.get("valueFrom", {}).get("secretKeyRef"):
                assert key["name"] == secret["metadata"]["name"]
                wanted |= set() if key.get("optional") else {key["key"]}
        assert own - used <= _KNOWN
    (settings,) = (data for data in maps.values() if "CELORA_ARTIFACTS" in data)
    assert set(settings) - used <= _KNOWN
    assert wanted == set(secrets())


def test_each_pod_is_who_its_role_says(objects: list[Object]) -> None:
    with_postgres, with_rabbitmq = set(), set()
    for name, pod in pods(objects).items():
        given = {each["name"]: each.get("value", "") for each in container(pod)["env"]}
        database, broker = given.get("CELORA_DATABASE_URL"), given.get("CELORA_BROKER_URL")
        users = (user_of(database), user_of(broker))
        assert users == _ROLES[name]
        with_postgres |= {name} if database else set()
        with_rabbitmq |= {name} if broker else set()
        assert not broker or broker.startswith("amqps://")
        assert pod["spec"]["serviceAccountName"] == name
    # Who has an address may go there, and nobody else.
    policies = {each["metadata"]["name"]: each for each in kinds(objects, "NetworkPolicy")}
    for policy, expected in (("postgres", with_postgres), ("rabbitmq", with_rabbitmq)):
        selector = policies[policy]["spec"]["podSelector"]
        assert {n for n, pod in pods(objects).items() if matches(selector, pod)} == expected


def user_of(url: str | None) -> str | None:
    return url.split("//")[1].split(":")[0] if url else None


def test_rabbitmqs_users_are_those_that_celora_defines(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("DISPATCHER", "CPU", "CLIENT", "FLOWER", "GPU")
    with variables(**{f"CELORA_RABBITMQ_PASSWORD_{name}": "secret" for name in names}):
        definitions(host=None, any_host=True)
    defined = json.loads(capsys.readouterr().out)
    assert {broker for _, broker in _ROLES.values() if broker} <= {
        user["name"] for user in defined["users"]
    }
    (gpu,) = (each for each in defined["permissions"] if each["user"] == "gpu")
    for right in ("configure", "write", "read"):
        for queue in ("celora.gpu.node-1.0", "celora.gpu.ip-10-0-0-1.example.org.17"):
            assert re.search(gpu[right], queue)
        for queue in ("celora.cpu", "celery", "cpu@node-1.celery.pidbox"):
            assert not re.search(gpu[right], queue)
    assert re.search(gpu["read"], "gpu3@ip-10-0-0-1.example.org.celery.pidbox")


def test_images_are_pinned(objects: list[Object]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name, pod in pods(objects).items():
        image = container(pod)["image"]
        assert image.endswith(f":{version}")
        assert ("celora-gpu" in image) == (name == "gpu-worker")


def test_pods_have_no_rights(objects: list[Object]) -> None:
    (namespace,) = kinds(objects, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    accounts = {each["metadata"]["name"]: each for each in kinds(objects, "ServiceAccount")}
    assert all(each["automountServiceAccountToken"] is False for each in accounts.values())
    (user,) = set(
        re.findall(r"^USER (\d+):\d+$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    )
    for pod in pods(objects).values():
        spec, own = pod["spec"], container(pod)["securityContext"]
        assert spec["serviceAccountName"] in accounts
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == int(user)
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert own["allowPrivilegeEscalation"] is False
        assert own["readOnlyRootFilesystem"] is True
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        kinds_of_volume = {kind for volume in spec["volumes"] for kind in volume} - {"name"}
        assert kinds_of_volume <= {"emptyDir", "persistentVolumeClaim", "configMap"}
        claims = {each["metadata"]["name"] for each in kinds(objects, "PersistentVolumeClaim")}
        for volume in spec["volumes"]:
            claim = volume.get("persistentVolumeClaim")
            assert claim is None or claim["claimName"] in claims
        mounted = {mount["name"] for mount in container(pod)["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_probes_ask_what_the_process_answers(objects: list[Object]) -> None:
    from celora.api import health

    routes = {route.path for route in health.router.routes}  # type: ignore[attr-defined]  # FastAPI's have one
    for name, pod in pods(objects).items():
        given = container(pod)
        assert "memory" in given["resources"]["limits"]
        if name == "migrations":
            continue
        assert "readinessProbe" in given, name
        if name == "api":
            probes = [given[f"{kind}Probe"] for kind in ("readiness", "liveness", "startup")]
            assert {probe["httpGet"]["path"] for probe in probes} <= routes
            assert given["livenessProbe"]["httpGet"]["path"] == "/healthz"  # it asks no database
        if "ports" in given:
            assert str(given["ports"][0]["containerPort"]) in given["args"]
        # A database that is away must not end a training, or a dispatcher.
        assert "exec" not in given.get("livenessProbe", {})


def test_gpu_pods_have_time_for_a_checkpoint(objects: list[Object]) -> None:
    pod = pods(objects)["gpu-worker"]
    stop = float(setting(objects, "CELORA_STOP_GRACE_SECONDS"))
    needed = stop + launcher._LEAVE_SECONDS
    assert pod["spec"]["terminationGracePeriodSeconds"] >= needed + 30
    limits = container(pod)["resources"]["limits"]
    memory = int(limits["memory"].removesuffix("Gi"))
    assert memory == 32 * int(limits["nvidia.com/gpu"])
    (shm,) = (each["emptyDir"] for each in pod["spec"]["volumes"] if each["name"] == "shm")
    assert shm["medium"] == "Memory"
    assert int(shm["sizeLimit"].removesuffix("Gi")) < memory


def test_names_of_workers_are_their_own(built: dict[str, list[Object]]) -> None:
    """Queues are named after CELORA_HOST: two pods of one name would take each other's tickets."""
    fields = {}
    for variant, objects in built.items():
        for name, pod in pods(objects).items():
            hosts = [each for each in container(pod)["env"] if each["name"] == "CELORA_HOST"]
            if "worker" in name:
                (host,) = hosts
                fields[variant, name] = host["valueFrom"]["fieldRef"]["fieldPath"]
    assert fields["gpu-nodes", "gpu-worker"] == "spec.nodeName"  # one pod a node, and it stays
    assert fields["gpu-pods", "gpu-worker"] == "metadata.name"
    assert fields["gpu-pods", "cpu-worker"] == "metadata.name"


def test_every_selector_selects(objects: list[Object]) -> None:
    templates = list(pods(objects).values())
    for each in kinds(objects, "NetworkPolicy"):
        assert any(matches(each["spec"]["podSelector"], pod) for pod in templates), each["metadata"]
    for each in kinds(objects, "PodDisruptionBudget"):
        assert sum(matches(each["spec"]["selector"], pod) for pod in templates) == 1
    for each in kinds(objects, "Service"):
        assert (
            sum(matches({"matchLabels": each["spec"]["selector"]}, pod) for pod in templates) == 1
        )
    for each in kinds(objects, "Deployment", "DaemonSet", "StatefulSet"):
        assert matches(each["spec"]["selector"], each["spec"]["template"])
        for spread in each["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
            assert matches(spread["labelSelector"], each["spec"]["template"])
    protected = {each["metadata"]["name"] for each in kinds(objects, "PodDisruptionBudget")}
    assert {"api", "dispatcher", "cpu-worker"} <= protected
    assert {each["metadata"].get("namespace") for each in objects} == {None, "celora"}
    assert [each["kind"] for each in objects if "namespace" not in each["metadata"]] == [
        "Namespace"
    ]
    denied = [each["spec"] for each in kinds(objects, "NetworkPolicy")]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in denied


def test_cpu_workers_grow_with_what_waits(objects: list[Object]) -> None:
    (scaler,) = kinds(objects, "HorizontalPodAutoscaler")
    target = scaler["spec"]["scaleTargetRef"]
    (scaled,) = (
        each
        for each in kinds(objects, target["kind"])
        if each["metadata"]["name"] == target["name"]
    )
    assert "replicas" not in scaled["spec"]  # an apply would set it back
    (metric,) = scaler["spec"]["metrics"]
    name = metric["external"]["metric"]["name"]
    assert f'"{name}"' in inspect.getsource(metrics)
    adapter = FOLDER / "k8s" / "components" / "queue-scaling" / "prometheus-adapter.yaml"
    assert name in yaml.safe_load(adapter.read_text())["rules"]["external"][0]["seriesQuery"]
    arguments = container(scaled["spec"]["template"])["args"]
    at_once = int(arguments[arguments.index("--concurrency") + 1])
    # Else the dispatcher hands out less than the workers could take.
    wanted = at_once * scaler["spec"]["maxReplicas"]
    assert int(setting(objects, "CELORA_PREPARE_IN_FLIGHT")) >= wanted
