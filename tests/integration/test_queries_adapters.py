"""Versions under a name: given out as jobs complete, never changed, kept from the sweep."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from models.errors import InputError, NotFoundError, StaleFenceError, StateError
from models.queries import adapter_aliases, adapter_views, adapters, jobs, products, retention
from models.queries.fine_tuned import forget_model
from models.queries.retention_rules import rules_of_tenants
from models.session import transaction
from models.states import Outcome
from tests import records, stored
from tests.versions import trained

pytestmark = pytest.mark.usefixtures("database", "_empty")


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


def register(job_id: str, name: str = "bot") -> adapters.Resolved:
    with transaction() as session:
        return adapters.register(session, job_id, name, "ada")


def version(reference: str, tenant: str | None = None) -> adapter_views.AdapterVersion:
    with transaction() as session:
        return adapter_views.get_version(session, tenant, reference)


def resolved(reference: str, tenant: str | None = None) -> adapters.Resolved:
    with transaction() as session:
        return adapters.resolve(session, tenant, reference)


def sql(statement: str, **values: Any) -> None:
    with transaction() as session:
        session.execute(text(statement), values)


def test_a_job_that_asked_for_a_name_becomes_its_next_version() -> None:
    first, second = (trained(adapter_name="support-bot", seed=seed, rank=8) for seed in (1, 2))
    one = version("support-bot/1")
    assert (one.job_id, one.version, one.seed, one.rank, one.method) == (first, 1, 1, 8, "lora")
    assert (one.data_digest, one.base_revision, one.digest, one.size_bytes) == ("1", "r1", "d", 7)
    assert one.code_versions == {"celora": "0.1.0", "torch": "2"}
    assert one.spec["adapter_name"] == "support-bot"
    assert (one.registered_by, one.aliases) == ("ada", [])
    assert version("support-bot/2").job_id == second
    with transaction() as session:
        kinds = session.scalars(
            text("SELECT kind FROM events WHERE job_id = :job ORDER BY id DESC LIMIT 2"),
            {"job": first},
        ).all()
    assert kinds == ["completed", "adapter"]


def test_a_whole_model_is_a_version_as_well() -> None:
    trained(adapter_name="bot", method="full")
    one = version("bot/1")
    assert (one.kind, one.rank, one.method) == ("model", None, "full")


def test_each_tenant_counts_for_itself() -> None:
    made = {tenant: trained(tenant, adapter_name="bot") for tenant in ("a", "b")}
    for tenant, job_id in made.items():
        assert version("bot/1", tenant).job_id == job_id
    with pytest.raises(InputError, match="several tenants"):
        version("bot/1")


def test_a_job_completes_though_it_left_no_adapter() -> None:
    job_id = trained(adapter=False, adapter_name="bot")
    assert records.state(job_id) == "completed"
    with pytest.raises(NotFoundError):
        version("bot/1")
    with pytest.raises(StateError, match="no adapter"):
        resolved(job_id)


def test_only_a_completed_job_is_registered_and_once() -> None:
    running = records.running()
    with pytest.raises(StateError, match="running"):
        register(running.job_id)
    records.end(running.job_id, running.fence, Outcome.CANCELLED)
    with pytest.raises(StateError, match="cancelled"):
        register(running.job_id)
    job_id = trained()
    assert register(job_id).reference == register(job_id).reference == "bot/1"
    assert register(job_id, "other").reference == "other/1"
    for wrong in ("", "a/b", "a@b", ".hidden", "x" * 65, "a\nb"):
        with pytest.raises(InputError):
            register(job_id, wrong)


def test_versions_are_counted_without_gaps_by_many_at_once() -> None:
    done = [trained() for _ in range(8)]
    together = threading.Barrier(len(done))

    def race(job_id: str) -> str:
        together.wait(30)
        return register(job_id).reference

    def fail() -> None:
        with transaction() as session:
            adapters.register(session, trained(), "bot", "ada")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()  # gives its number back
    with ThreadPoolExecutor(len(done)) as pool:
        made = list(pool.map(race, done))
    assert sorted(made) == [f"bot/{number}" for number in range(1, 9)]


@pytest.mark.parametrize(
    "change",
    ["seed = 7", "url = '/other'", "job_id = 'x'", "spec = '{}'", "version = 9", "digest = NULL"],
)
def test_the_database_refuses_to_change_a_version(change: str) -> None:
    trained(adapter_name="bot")
    with pytest.raises(IntegrityError, match="never changes"):
        sql(f"UPDATE adapters SET {change}")  # noqa: S608 (a test's own words)


def test_a_reference_is_a_job_a_version_or_an_alias() -> None:
    job_id = trained(adapter_name="bot")
    with transaction() as session:
        adapter_aliases.move_alias(session, None, "bot", "production", 1, who="ada")
    for reference, says in ((job_id, job_id), ("bot/1", "bot/1"), ("bot@production", "bot/1")):
        found = resolved(reference)
        assert (found.reference, found.job_id, found.url) == (says, job_id, f"/{job_id}")
        assert (found.kind, found.base_revision, found.spec.method) == ("adapter", "r1", "lora")
    for unknown in ("bot/2", "bot@staging", "robot/1", "ftjob-none"):
        with pytest.raises(NotFoundError):
            resolved(unknown)
    for nonsense in ("bot/", "/1", "bot/one", "bot@", "bot/1/2", "bot/99999999999", "bot/²"):
        with pytest.raises(InputError):
            resolved(nonsense)
    for reference in (job_id, "bot/1"):
        with pytest.raises(NotFoundError):
            resolved(reference, "another tenant")


def test_a_deleted_version_leaves_its_number_used() -> None:
    first = trained(adapter_name="bot")
    with transaction() as session:
        adapter_aliases.move_alias(session, None, "bot", "production", 1, who="ada")
    with pytest.raises(StateError, match="is production"), transaction() as session:
        adapters.delete(session, None, "bot/1", "ada")
    with pytest.raises(InputError), transaction() as session:
        adapters.delete(session, None, "bot@production", "ada")
    with transaction() as session:
        adapter_aliases.move_alias(session, None, "bot", "production", None, who="ada")
        assert adapters.delete(session, None, "bot/1", "ada") == "bot/1"
    with pytest.raises(NotFoundError, match="was deleted"):
        version("bot/1")
    with pytest.raises(IntegrityError, match="never changes"):
        sql("UPDATE adapters SET deleted_at = NULL")
    assert register(first).reference == "bot/2"


def test_a_model_that_is_deleted_takes_its_versions_along_but_for_one_an_alias_holds() -> None:
    job_id = trained(adapter_name="bot")
    register(job_id, "other")
    with transaction() as session:
        adapter_aliases.move_alias(session, None, "bot", "production", 1, who="ada")
    with pytest.raises(StateError, match="bot@production"), transaction() as session:
        forget_model(session, jobs.get_job(session, job_id), "ada")
    assert version("other/1").job_id == job_id
    with transaction() as session:
        adapter_aliases.move_alias(session, None, "bot", "production", None, who="ada")
        assert forget_model(session, jobs.get_job(session, job_id), "ada") == [f"/{job_id}"]
    with pytest.raises(NotFoundError, match="was deleted"):
        version("bot/1")


def test_an_attempt_that_has_lost_its_job_registers_nothing() -> None:
    taken = records.running(adapter_name="bot", evaluate=False)
    who = (taken.job_id, taken.fence)
    with transaction() as session:
        products.register_artifact(session, *who, kind="adapter", url="/a", size_bytes=1)
    records.end(*who, Outcome.LOST)
    with pytest.raises(StaleFenceError):
        records.end(*who, Outcome.COMPLETED)
    with pytest.raises(NotFoundError):
        version("bot/1")


def test_a_job_whose_adapter_has_a_version_is_not_deleted() -> None:
    trained(adapter_name="bot")
    with pytest.raises(IntegrityError):
        sql("DELETE FROM jobs")


def test_the_sweep_leaves_a_version_alone_while_it_stands() -> None:
    plain, named = trained(), trained(adapter_name="bot")
    stored.retention("default", {"adapters": {"max_age_days": 1}})
    stored.age(30)

    def swept() -> list[str]:
        with transaction() as session:
            rules = rules_of_tenants(session)
            found = retention.find_artifacts(session, rules)
            return [gone.url for gone in retention.mark_artifacts(session, found)]

    assert swept() == [f"/{plain}"]
    with transaction() as session:
        adapters.delete(session, None, "bot/1", "ada")
    assert swept() == [f"/{named}"]
    with pytest.raises(StateError, match="no adapter any more"):
        register(plain)
