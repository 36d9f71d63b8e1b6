"""What `celora k8s-job` renders: against Kubernetes' schema, and beside docker/k8s."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it ships no types
import pytest
import yaml  # type: ignore[import-untyped]  # it ships no types

from celora.cli.k8s_job import _read
from celora.k8s_job import Place, render
from gpu_worker import launcher
from models.errors import InputError, SpecError
from models.spec import parse_spec
from tests.compose_file import FOLDER
from tests.unit.test_k8s import SCHEMAS, container, copied, kustomize, matches, parse

BASE = FOLDER / "k8s" / "base"
HUB = {"base_model": "team/base", "dataset": "team/rows"}

PLACES = (
    Place(),
    Place(device="cpu", memory_gib=2),
    Place(shared_volumes=False, node_selector={"nvidia.com/gpu.product": "H100"}),
)


def rendered(place: Place | None = None, name: str | None = None, **fields: Any) -> Any:
    return render(parse_spec(HUB | fields), tenant="research", user="ada", name=name, place=place)


def objects(file: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((BASE / file).read_text()))


@pytest.mark.parametrize("place", PLACES)
def test_it_is_a_valid_job_of_three_tries(place: Place) -> None:
    made = rendered(place)
    kubernetes_validate.validate(made, SCHEMAS, strict=True)
    assert yaml.safe_load(yaml.safe_dump(made)) == made
    spec = made["spec"]
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"]) == (2, 86_400)
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # a failure policy asks for it


@pytest.mark.parametrize("place", PLACES)
def test_it_fits_what_stands_in_its_namespace(place: Place) -> None:
    """Policies, account and claims are there, and it is no pod of the pool's."""
    pod = rendered(place)["spec"]["template"]
    policies = {one["metadata"]["name"]: one["spec"] for one in objects("network.yaml")}
    reach = {name for name, one in policies.items() if matches(one["podSelector"], pod)}
    assert reach == {"nothing", "dns", "postgres", "https"}
    assert pod["spec"]["serviceAccountName"] in {
        one["metadata"]["name"] for one in objects("service-accounts.yaml")
    }
    claims = [volume.get("persistentVolumeClaim") for volume in pod["spec"]["volumes"]]
    there = {one["metadata"]["name"] for one in objects("storage.yaml")}
    assert {claim["claimName"] for claim in claims if claim} == (
        there if place.shared_volumes else set()
    )
    for worker in ("gpu-pods", "gpu-nodes"):
        file = FOLDER / "k8s" / "components" / worker / "gpu-worker.yaml"
        for one in yaml.safe_load_all(file.read_text()):
            selector = one["spec"]["selector"]
            assert not matches(
                selector if "matchLabels" in selector else {"matchLabels": selector}, pod
            )


@pytest.mark.parametrize("place", PLACES)
def test_its_pod_is_as_restricted_as_the_others(place: Place) -> None:
    pod = rendered(place)["spec"]["template"]["spec"]
    kept = yaml.safe_load((BASE.parent / "components" / "pod" / "restricted.yaml").read_text())
    kept = kept["spec"]["template"]["spec"]
    (common,) = kept["containers"]
    for name in ("automountServiceAccountToken", "enableServiceLinks", "securityContext"):
        assert pod[name] == kept[name]
    (own,) = pod["containers"]
    assert own["securityContext"] == common["securityContext"]
    assert own["envFrom"] == common["envFrom"]
    mounts = {mount["name"]: mount for mount in own["volumeMounts"]}
    assert {mount["name"] for mount in common["volumeMounts"]} <= set(mounts)
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert pod["terminationGracePeriodSeconds"] >= 120 + launcher._LEAVE_SECONDS + 30
    assert ("nvidia.com/gpu" in own["resources"]["limits"]) == (place.device == "cuda")


def test_its_command_is_ours_and_its_environment_that_of_a_gpu_worker() -> None:
    made = rendered(name="one")
    own = container(made["spec"]["template"])
    parse(own["args"])
    assert own["args"][2:] == [
        *("--key", "celora/one", "--tenant", "research", "--user", "ada", "--devices", "all")
    ]
    file = FOLDER / "k8s" / "components" / "gpu-pods" / "gpu-worker.yaml"
    worker = container(next(yaml.safe_load_all(file.read_text()))["spec"]["template"])
    of_worker = {each["name"]: each for each in worker["env"] if "RABBIT" not in each["name"]}
    del of_worker["CELORA_BROKER_URL"]
    given = {each["name"]: each for each in own["env"]}
    assert given | of_worker == given
    assert not any("BROKER" in name or "RABBITMQ" in name for name in given)
    spec = json.loads(made["spec"]["template"]["metadata"]["annotations"]["celora/spec"])
    assert parse_spec(spec) == parse_spec(HUB)


def test_kustomize_gives_it_the_names_of_an_overlay(tmp_path: Path) -> None:
    """Written into the overlay's folder: config map and secret have hashes behind their names."""
    example = copied(tmp_path / "k8s")
    (example / "secrets.env").write_text("CELORA_SECRET_KEY=x\n")
    (example / "ca.pem").write_text("a certificate\n")
    (example / "job.yaml").write_text(yaml.safe_dump(rendered(name="one")))
    written = (example / "kustomization.yaml").read_text()
    (example / "kustomization.yaml").write_text(
        written.replace("resources: [../base]", "resources: [../base, job.yaml]")
    )
    made = kustomize(example)
    assert made.returncode == 0, made.stderr
    found = list(yaml.safe_load_all(made.stdout))
    (job,) = (one for one in found if one["metadata"]["name"] == "one")
    kubernetes_validate.validate(job, SCHEMAS, strict=True)
    own = container(job["spec"]["template"])
    assert own["image"].startswith("registry.example.org/celora-gpu:")
    there = {one["metadata"]["name"] for one in found if one["kind"] in ("ConfigMap", "Secret")}
    volumes = job["spec"]["template"]["spec"]["volumes"]
    used = {own["envFrom"][0]["configMapRef"]["name"]}
    used |= {one["configMap"]["name"] for one in volumes if "configMap" in one}
    keys = [each["valueFrom"].get("secretKeyRef") for each in own["env"] if "valueFrom" in each]
    used |= {key["name"] for key in keys if key}
    assert used == there
    assert len({volume["name"] for volume in volumes}) == len(volumes)


def test_each_has_a_name_of_its_own() -> None:
    names = {rendered(name=None)["metadata"]["name"] for _ in range(20)}
    assert len(names) == 20
    spec = parse_spec(HUB | {"name": "My Bot: v2 / " + 40 * "x"})
    made = render(spec, tenant="default", user="ada")
    assert made["metadata"]["name"].startswith("celora-my-bot-v2-xxx")
    for wrong in ("My-Bot", "-a", "a" * 53):
        with pytest.raises(InputError, match="no name in Kubernetes"):
            rendered(name=wrong)


def test_a_dollar_is_no_variable() -> None:
    made = render(parse_spec(HUB), tenant="$(HOME)", user="ada")
    assert "$$(HOME)" in container(made["spec"]["template"])["args"]


def test_what_no_pod_can_see_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "job.json").write_text(json.dumps(HUB | {"dataset": "rows.jsonl"}))
    spec = _read(tmp_path / "job.json")  # a path beside the file
    with pytest.raises(SpecError, match=r"lies on this machine, where no pod can see it") as raised:
        render(spec, tenant="default", user="ada")
    assert raised.value.where == "dataset"
    wrong: Any
    for wrong in (
        ("dataset", "missing.csv"),
        ("dataset", "file:///data/rows.jsonl"),
        ("base_model", "/models/base"),
        ("base_model", str(tmp_path)),
        ("eval_dataset", "~/rows"),
        ("dataset", "/var/lib/celora/artifacts/../../secret"),
    ):
        with pytest.raises(SpecError) as raised:
            rendered(**dict([wrong]))
        assert raised.value.where == wrong[0]
    with pytest.raises(SpecError, match="holds a password"):
        rendered(dataset="https://ada:secret@example.org/rows.jsonl")
    with pytest.raises(SpecError, match="Kubernetes chooses the node"):
        rendered(gpu_labels={"zone": "a"})


@pytest.mark.parametrize(
    "dataset",
    ["hub://team/rows", "s3://bucket/rows.jsonl", "/var/lib/celora/artifacts/data/rows.jsonl"],
)
def test_what_pods_see_is_taken(dataset: str) -> None:
    assert dataset in json.dumps(rendered(dataset=dataset))
