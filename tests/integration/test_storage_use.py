"""What each user has on disk, what `celora storage` says of it, and what gpu hosts keep."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu_worker import leftovers
from models import store
from models.queries import disk_use, products
from models.session import transaction
from models.states import Outcome, Stage
from tasks.dispatcher import loop
from tasks.dispatcher import sweep as sweeping
from tests import records, stored
from tests.environment import variables

Celora = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def artifacts(database: str, tmp_path: Path) -> Iterator[str]:  # noqa: ARG001 (it has to be there)
    with stored.artifacts("local", tmp_path) as url:
        records.clear()
        yield url


def used() -> dict[str, int]:
    return dict(
        stored.sql(
            "SELECT tenants.name, disk_used_bytes FROM users"
            " JOIN tenants ON tenants.id = users.tenant_id"
        )
    )


def recount() -> int:
    with transaction() as session:
        return disk_use.recount(session)


def test_what_is_registered_counts_at_once_and_truly() -> None:
    stored.trained("a", prepared="abc")
    assert used() == {"a": 400}  # two checkpoints, the adapter, the prepared data
    assert recount() == 0
    stored.trained("a", prepared="abc", size_bytes=10)
    assert used() == {"a": 430}  # its data was there
    stored.age(8)
    sweeping.sweep()
    assert used() == {"a": 210}  # the checkpoints have gone


def test_rotated_checkpoints_count_no_more() -> None:
    stored.trained("a", steps=(10, 20, 30, 40, 50), adapter=False, keep_checkpoints=2)
    assert used() == {"a": 200}
    assert recount() == 0


def test_shared_data_is_divided_among_those_who_use_it() -> None:
    stored.trained("a", prepared="abc", steps=(), adapter=False)
    stored.trained("b", prepared="abc", steps=(), adapter=False)
    stored.trained("b", prepared="abc", steps=(), adapter=False)
    recount()
    assert used() == {"a": 50, "b": 50}


def test_a_wrong_count_is_mended_by_the_sweep() -> None:
    stored.trained("a")
    stored.sql("UPDATE users SET disk_used_bytes = 12345")
    sweeping.sweep()
    assert used() == {"a": 300}


def test_a_tenant_over_its_quota_waits_until_the_sweep_has_made_room() -> None:
    stored.trained("a", adapter=False)
    stored.sql("UPDATE tenants SET disk_bytes = 150")
    waits = records.queued("a")
    assert records.place() == []
    stored.age(8)
    sweeping.sweep()
    assert [one.job_id for one in records.place()] == [waits]


def test_the_dispatcher_sweeps_by_itself() -> None:
    stored.trained("a", adapter=False)
    stored.age(8)
    stop = threading.Event()
    with variables(CELORA_SWEEP_SECONDS="0.1"):
        thread = threading.Thread(target=loop.run, args=(stop, lambda _: None))
        thread.start()
        deadline = time.monotonic() + 30
        while used() != {"a": 0}:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        stop.set()
        thread.join()
        others = [one for one in threading.enumerate() if one.name == "sweep"]
        for one in others:
            one.join(10)
    assert stored.sql("SELECT value FROM counters WHERE name = 'swept_checkpoints'") == [(2,)]


def test_storage_says_who_uses_what(celora: Celora) -> None:
    code, out, _ = celora("storage")
    assert (code, "No tenants yet" in out) == (0, True)
    stored.trained("vision", prepared="abc", size_bytes=2048)
    stored.trained("speech", prepared="abc", size_bytes=1024)
    stored.sql("UPDATE tenants SET disk_bytes = 1048576 WHERE name = 'vision'")
    stored.age(8)
    code, out, _ = celora("storage", "--json")
    assert code == 0
    told = json.loads(out)
    assert {(use["tenant"], use["kind"]): use["size_bytes"] for use in told["uses"]} == {
        ("vision", "checkpoints"): 4096,
        ("vision", "adapters"): 2048,
        ("vision", "prepared"): 1024,
        ("speech", "checkpoints"): 2048,
        ("speech", "adapters"): 1024,
        ("speech", "prepared"): 1024,
    }
    assert {
        "tenant": "vision", "user": None, "used_bytes": 8192, "limit_bytes": 1048576
    } in told["quotas"]  # fmt: skip
    assert told["next_sweep"]["counts"] == {"checkpoints": 4}
    code, out, _ = celora("storage")
    vision = next(line for line in out.splitlines() if line.startswith("vision"))
    assert [part for part in ("4.1 kB (2)", "2.0 kB (1)", "1.0 MB") if part not in vision] == []
    assert "the next sweep deletes: 4 checkpoints (6,144 bytes)" in out
    code, out, _ = celora("storage", "--tenant", "speech", "--json")
    assert {use["tenant"] for use in json.loads(out)["uses"]} == {"speech"}
    code, _, error = celora("storage", "--tenant", "nobody")
    assert (code, "no tenant nobody" in error) == (2, True)


def test_storage_sweep_deletes_now_and_dry_run_does_not(celora: Celora) -> None:
    stored.trained()
    stored.age(8)
    for arguments, first_word in ((["--dry-run"], "would delete"), ([], "deleted")):
        code, out, _ = celora("storage", "sweep", *arguments)
        assert (code, out.strip()) == (0, f"{first_word}: 2 checkpoints (200 bytes)")
    code, out, _ = celora("storage", "sweep", "--json")
    assert json.loads(out) == {"counts": {}, "size_bytes": {}, "problems": []}


def test_rules_are_shown_and_set(celora: Celora) -> None:
    records.submit("vision")
    code, out, _ = celora("storage", "rules", "vision")
    assert (code, "adapters      kept for ever" in out) == (0, True)
    rules = '{"adapters": {"keep": 5}}'
    code, out, _ = celora("storage", "rules", "vision", rules, "--json")
    assert (code, json.loads(out)["adapters"]["keep"]) == (0, 5)
    for wrong in ('{"adapters": {"keep": "x"}}', "[1]", "{"):
        code, _, error = celora("storage", "rules", "vision", wrong)
        assert code == 2
        assert "What to do" in error
    assert stored.sql("SELECT retention FROM tenants") == [(json.loads(rules),)]
    code, _, _ = celora("storage", "rules", "nobody", "{}")
    assert code == 2


def test_rules_that_cannot_be_read_are_shown_with_the_reason(celora: Celora) -> None:
    records.submit("vision")
    stored.retention("vision", {"logs": 3})
    code, out, _ = celora("storage", "rules", "vision")
    assert code == 0
    assert "retention.logs" in out
    assert "max_age_days 90" in out


# Copies on gpu hosts, where the store is elsewhere


def copies(home: Path) -> set[str]:
    work = home / "work"
    return {path.parent.relative_to(work).as_posix() for path in work.rglob("content")}


def copy(home: Path, place: str, *, days: float = 0) -> None:
    path = home / "work" / place / "content"
    path.parent.mkdir(parents=True)
    path.write_text("copied")
    if days:
        stored.age_file(path, days)


def test_a_gpu_host_removes_what_its_dead_attempts_left(tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = stored.trained(prepared="done")
    lost = stored.trained(outcome=Outcome.FAILED, steps=(), adapter=False)
    goes_on = stored.trained(outcome=Outcome.LOST, prepared="needed")
    stored.age(2)
    fences = {one: records.job(one).fence for one in (done, goes_on, lost)}
    kept = {
        f"jobs/{goes_on}/{fences[goes_on]}/checkpoints/step-20",  # its next attempt starts there
        "prepared/needed",
        "prepared/fresh",
    }
    copy(home, "prepared/fresh")
    for place in (
        *(kept - {"prepared/fresh"}),
        f"jobs/{done}/{fences[done]}/adapter",
        f"jobs/{lost}/{fences[lost]}/checkpoints/step-5",
        "jobs/ftjob-gone/1/prepare",
        "prepared/done",
    ):
        copy(home, place, days=2)
    removed = leftovers.remove()
    assert len(removed) == 4
    assert copies(home) == kept
    assert leftovers.remove() == []


def test_a_gpu_host_leaves_a_live_attempt_alone(tmp_path: Path) -> None:
    claim = records.running()
    copy(tmp_path / "home", f"jobs/{claim.job_id}/{claim.fence}/checkpoints/step-5", days=50)
    assert leftovers.remove() == []
    records.end(claim.job_id, claim.fence, Outcome.CANCELLED)
    assert leftovers.remove() == [str(tmp_path / "home" / "work" / "jobs" / claim.job_id)]


def test_a_preparation_registers_its_data_with_its_size() -> None:
    job_id = records.submit()
    records.place_preparation()
    fence = records.job(job_id).fence
    records.claimed(job_id, Stage.PREPROCESS, worker_session="cpu")
    url = stored.put(store.prepared_url("abc"), 70)
    with transaction() as session:
        products.set_prepared(
            session,
            job_id,
            fence,
            prepared_url=url,
            data_digest="abc",
            base_revision="r1",
            verdict={},
            prepared_bytes=store.size_bytes(url),
        )
    found: Any = stored.sql("SELECT digest, url, size_bytes FROM prepared_data")
    assert found == [("abc", url, 70)]
    assert used() == {"default": 70}
