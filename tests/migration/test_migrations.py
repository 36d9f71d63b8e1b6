"""The migrations, on the server the tests use and on the embedded one (PostgreSQL 18)."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.pool import NullPool

import migrations
from models.errors import SetupError, UnavailableError
from models.session import transaction
from models.states import Outcome
from models.tables import Base
from tests import records
from tests.environment import variables
from tests.postgres_server import PostgresServer, own_server
from tests.run_token import run_name


@pytest.fixture(scope="module")
def embedded(server_folder: Path) -> Iterator[PostgresServer]:
    """The wheel's server, whatever server the other tests use."""
    folder = server_folder / "embedded"
    folder.mkdir(mode=0o755)
    with own_server(folder) as server:
        yield server


@pytest.fixture(params=["postgres", "embedded"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty database on each server."""
    server: PostgresServer = request.getfixturevalue(request.param)
    name = run_name("migration")
    yield server.create(name)
    server.drop(name)


def tables(url: str) -> set[str]:
    engine = create_engine(url, poolclass=NullPool)
    return set(inspect(engine).get_table_names()) - {"alembic_version"}


def rows(url: str, statement: str) -> list[tuple[object, ...]]:
    with create_engine(url, poolclass=NullPool).begin() as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


def test_the_two_servers_are_of_different_ages(
    postgres: PostgresServer, embedded: PostgresServer
) -> None:
    assert rows(embedded.url, "SHOW server_version_num") >= [("180000",)]
    assert rows(postgres.url, "SHOW server_version_num") >= [("150000",)]


def test_up_down_and_up_again(url: str) -> None:
    assert migrations.current(url) is None
    migrations.upgrade(url)
    assert migrations.current(url) == migrations.head()
    assert tables(url) == set(Base.metadata.tables)
    migrations.upgrade(url)  # nothing to do
    migrations.downgrade(url, "base")
    assert (tables(url), migrations.current(url)) == (set(), None)
    migrations.upgrade(url)
    assert tables(url) == set(Base.metadata.tables)


def test_each_step_goes_up_and_down(url: str) -> None:
    script = ScriptDirectory.from_config(migrations.configuration())
    steps = [one.revision for one in script.walk_revisions()][::-1]
    for step in steps:
        before = migrations.current(url) or "base"
        migrations.upgrade(url, step)
        migrations.downgrade(url, before)
        migrations.upgrade(url, step)
        assert migrations.current(url) == step


def test_models_and_migrations_agree(url: str) -> None:
    migrations.upgrade(url)
    with create_engine(url, poolclass=NullPool).connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, Base.metadata) == []


def test_what_autogenerate_does_not_compare_agrees_too(url: str) -> None:
    """Checks, conditions of indexes, collations, fill factors, against tables the models make."""
    migrations.upgrade(url)
    migrated = catalogue(url)
    migrations.downgrade(url, "base")
    with create_engine(url, poolclass=NullPool).begin() as connection:
        Base.metadata.create_all(connection)
    assert migrated == catalogue(url)


def catalogue(url: str) -> set[tuple[object, ...]]:
    found = (
        rows(url, _CONSTRAINTS) + rows(url, _INDEXES) + rows(url, _COLUMNS) + rows(url, _OPTIONS)
    )
    return {row for row in found if "alembic_version" not in row}


_CONSTRAINTS = """
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
"""
_INDEXES = "SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public'"
_COLUMNS = """
    SELECT attrelid::regclass::text, attname, format_type(atttypid, atttypmod),
           attcollation::regcollation::text, attnotnull, attidentity::text,
           pg_get_expr(adbin, adrelid)
    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0
"""
_OPTIONS = """
    SELECT relname, array_to_string(reloptions, ' ') FROM pg_class
    WHERE relnamespace = 'public'::regnamespace
"""


def test_a_job_runs_through_the_migrated_tables(url: str) -> None:
    migrations.upgrade(url)
    with variables(CELORA_DATABASE_URL=url):
        taken = records.running(evaluate=False)
        done = records.end(taken.job_id, taken.fence, Outcome.COMPLETED)
    assert done.state == "completed"


def test_upgrades_that_meet_take_turns(url: str) -> None:
    together = threading.Barrier(3)

    def upgrade(_: int) -> None:
        together.wait(10)
        migrations.upgrade(url)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(upgrade, range(3)))
    assert migrations.current(url) == migrations.head()


def test_a_migration_does_not_wait_for_a_lock_for_ever(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives up, changes nothing, and says so; what works on meanwhile is not held up."""
    migrations.upgrade(url)
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT", "200ms")
    with (
        variables(CELORA_DATABASE_URL=url),
        transaction() as working,
    ):
        # A table or view of each step: the first to go down has to find its lock taken.
        working.execute(text("SELECT count(*) FROM jobs, tenants, admin.failures"))
        with pytest.raises(UnavailableError, match="lock timeout"):
            migrations.downgrade(url, "base")
    assert migrations.current(url) == migrations.head()
    assert tables(url) == set(Base.metadata.tables)


def test_a_database_of_a_later_version_is_refused(url: str) -> None:
    migrations.upgrade(url)
    rows(url, "UPDATE alembic_version SET version_num = '9999' RETURNING 1")
    with pytest.raises(SetupError, match="9999"):
        migrations.upgrade(url)


def test_it_starts_from_any_folder(url: str, tmp_path: Path) -> None:
    program = "import sys, migrations; migrations.upgrade(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, url], cwd=tmp_path, check=True)
    assert migrations.current(url) == migrations.head()


def test_a_database_without_our_tables_is_explained(url: str) -> None:
    with (
        variables(CELORA_DATABASE_URL=url),
        pytest.raises(SetupError, match="celora db upgrade"),
        transaction() as session,
    ):
        session.execute(text("SELECT * FROM jobs"))


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(UnavailableError):
        migrations.current("postgresql+psycopg://postgres@127.0.0.1:1/none")
