"""One job as a `batch/v1` Job of Kubernetes: its pod runs `celora run-job`, without the broker.

It stands in the namespace of docker/k8s and uses what that has: the config map, the secret, the
volumes, the network policies and the service account of the GPU workers.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

from models.errors import InputError, SpecError
from models.spec import JobSpec
from tasks.run_job import FOR_GOOD
from training_data.locations import COMPRESSIONS, FOLDER_SUFFIXES, HUB_NAME

COMPONENT = "k8s-job"
TRIES_AGAIN = 2
DEADLINE_SECONDS = 86_400
KEPT_SECONDS = 86_400  # after its end, for `kubectl logs`
# Longer than CELORA_STOP_GRACE_SECONDS of docker/k8s (120), and as for the pool's GPU pods.
STOP_SECONDS = 180

_ARTIFACTS, _MODELS = "/var/lib/celora/artifacts", "/var/cache/huggingface"
_SPEC_FOLDER, _SPEC_ANNOTATION = "/etc/celora-job", "celora/spec"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?")  # room for what pods add, up to 63


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where it runs. The names are of objects in the namespace."""

    namespace: str = "celora"
    image: str = field(default_factory=lambda: f"celora-gpu:{version('celora')}")
    device: Literal["cuda", "cpu"] = "cuda"
    memory_gib: int = 32
    node_selector: Mapping[str, str] = field(default_factory=dict)
    config: str = "celora"
    secret: str = "celora"  # noqa: S105 (the name of one)
    authority: str = "celora-authority"
    shared_volumes: bool = True  # the claims of artifacts and models; not with an object store


def render(
    spec: JobSpec, *, tenant: str, user: str, name: str | None = None, place: Place | None = None
) -> dict[str, Any]:
    """The Job. Each call without a name makes a new one.

    Raises SpecError for what a pod cannot see; InputError for a name.
    """
    place = place or Place()
    _require_visible(spec, place)
    name = name or _made_up(spec)
    for one in (name, place.namespace):
        if not _NAME.fullmatch(one):
            raise InputError(
                f"{one!r} is no name in Kubernetes",
                remedy="use at most 52 lower-case letters, digits and -",
            )
    labels = {"app.kubernetes.io/part-of": "celora", "app.kubernetes.io/component": COMPONENT}
    arguments = [
        *("run-job", f"{_SPEC_FOLDER}/job.json", "--key", f"{place.namespace}/{name}"),
        *("--tenant", _literal(tenant), "--user", _literal(user)),
        *("--devices", "all" if place.device == "cuda" else "cpu:1"),
    ]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": place.namespace, "labels": labels},
        "spec": {
            "backoffLimit": TRIES_AGAIN,
            "activeDeadlineSeconds": DEADLINE_SECONDS,
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            # The next pod starts when the one before is gone: one at a time holds the job.
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {
                            "containerName": "celora",
                            "operator": "In",
                            "values": sorted(FOR_GOOD),
                        },
                    },
                    # A node that is emptied is no failure of the job's.
                    {
                        "action": "Ignore",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    },
                ]
            },
            "template": {
                "metadata": {
                    "labels": dict(labels),
                    "annotations": {_SPEC_ANNOTATION: _spec_text(spec)},
                },
                "spec": _pod(place, arguments),
            },
        },
    }


def _pod(place: Place, arguments: list[str]) -> dict[str, Any]:
    cuda = place.device == "cuda"
    limits: dict[str, str] = {"memory": f"{place.memory_gib}Gi"}
    if cuda:
        limits["nvidia.com/gpu"] = "1"
    volumes = _volumes(place)
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "serviceAccountName": "gpu-worker",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": STOP_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "celora",
                "image": place.image,
                "args": arguments,
                "envFrom": [{"configMapRef": {"name": place.config}}],
                "env": _environment(place),
                "resources": {
                    "requests": {"cpu": "2", "memory": f"{max(1, place.memory_gib * 3 // 4)}Gi"},
                    "limits": limits,
                },
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [mount for mount, _ in volumes],
            }
        ],
        "volumes": [volume for _, volume in volumes],
    }
    if cuda:
        pod["tolerations"] = [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        ]
    if place.node_selector:
        pod["nodeSelector"] = dict(place.node_selector)
    return pod


def _environment(place: Place) -> list[dict[str, Any]]:
    def secret(name: str, *, optional: bool = False) -> dict[str, Any]:
        wanted: dict[str, Any] = {"name": place.secret, "key": name}
        return {
            "name": name,
            "valueFrom": {"secretKeyRef": wanted | ({"optional": True} if optional else {})},
        }

    return [
        {"name": "CELORA_HOST", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        secret("POSTGRES_WORKER_PASSWORD"),
        {
            "name": "CELORA_DATABASE_URL",
            "value": "postgresql+psycopg://"
            "celora_worker:$(POSTGRES_WORKER_PASSWORD)@$(POSTGRES_ADDRESS)",
        },
        secret("CELORA_SECRET_KEY"),
        *(secret(n, optional=True) for n in ("HF_TOKEN", "AWS_ACCESS_KEY_ID")),
        secret("AWS_SECRET_ACCESS_KEY", optional=True),
        {"name": "TRITON_CACHE_DIR", "value": "/tmp/triton"},  # noqa: S108 (a volume of the pod's)
    ]


def _volumes(place: Place) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Mounts and their volumes."""
    source = f"metadata.annotations['{_SPEC_ANNOTATION}']"
    job = {"path": "job.json", "fieldRef": {"fieldPath": source}}
    shared = place.shared_volumes
    made: list[tuple[str, str, dict[str, Any]]] = [
        ("job", _SPEC_FOLDER, {"downwardAPI": {"items": [job]}}),
        ("tmp", "/tmp", {"emptyDir": {"sizeLimit": "20Gi"}}),  # noqa: S108 (as above)
        ("home", "/var/lib/celora", {"emptyDir": {"sizeLimit": "100Gi"}}),
        ("authority", "/etc/celora", {"configMap": {"name": place.authority, "optional": True}}),
        (
            "models",
            _MODELS,
            {"persistentVolumeClaim": {"claimName": "models"}}
            if shared
            else {"emptyDir": {"sizeLimit": "500Gi"}},
        ),
        (
            "shm",
            "/dev/shm",  # noqa: S108 (as above)
            {
                "emptyDir": {
                    "medium": "Memory",
                    "sizeLimit": f"{min(8, max(1, place.memory_gib // 4))}Gi",
                }
            },
        ),
    ]
    if shared:
        claim = {"persistentVolumeClaim": {"claimName": "artifacts"}}
        made.append(("artifacts", _ARTIFACTS, claim))
    only_read = {"job", "authority"}
    return [
        (
            {"name": name, "mountPath": path} | ({"readOnly": True} if name in only_read else {}),
            {"name": name} | source,
        )
        for name, path, source in made
    ]


def _spec_text(spec: JobSpec) -> str:
    return json.dumps(spec.model_dump(mode="json", exclude_unset=True), ensure_ascii=False)


def _literal(argument: str) -> str:
    """As Kubernetes leaves it: it reads $(NAME) as a variable."""
    return argument.replace("$", "$$")


def _made_up(spec: JobSpec) -> str:
    """From the job's name, with an end that no other has: each run of the command, another job."""
    words = (
        re.sub(r"[^a-z0-9]+", "-", (spec.name or spec.method).lower()).strip("-")[:30].strip("-")
    )
    end = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(6))
    return "-".join(part for part in ("celora", words, end) if part)


def _require_visible(spec: JobSpec, place: Place) -> None:
    """Raises SpecError for a field that means something here and nothing in a pod."""
    for name in ("base_model", "dataset", "eval_dataset"):
        value = getattr(spec, name)
        if value is not None:
            _require_reach(name, value, place)
    if spec.gpu_labels:
        raise SpecError(
            "these are labels of the pool's GPUs, and Kubernetes chooses the node",
            where="gpu_labels",
            remedy="use --node-selector LABEL=VALUE",
        )


def _require_reach(name: str, value: str, place: Place) -> None:
    if value.startswith("scripted:"):
        return
    scheme, separator, _ = value.partition("://")
    if separator and scheme.lower() not in {"file", "local"}:
        if urlsplit(value).password is not None:
            raise SpecError(
                "holds a password, which everybody who may look at pods would read",
                where=name,
                remedy="leave it out; keys of stores stand in the secret",
            )
        return
    path = PurePosixPath(value.partition("://")[2] if separator else value)
    mounted = (_ARTIFACTS, _MODELS) if place.shared_volumes else ()
    if any(path.is_relative_to(root) for root in mounted) and ".." not in path.parts:
        return
    data = (*FOLDER_SUFFIXES, *COMPRESSIONS) if name != "base_model" else ()
    on_hub = HUB_NAME.fullmatch(value) and not (data and value.endswith(data))
    if separator or not on_hub or Path(value).expanduser().exists():
        raise SpecError(
            f"{value!r} lies on this machine, where no pod can see it",
            where=name,
            remedy="put it on the hub, into an object store (s3://…), or on the volume of the"
            f" artifacts, which pods have at {_ARTIFACTS}; and name it there",
        )
