"""Migrations since the previous release only expand: its code works on after them.

Its tables are compared as its own migrations make them with what this version's make of them. What
it reads and writes must still be there, and a row as it writes it must still be taken.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

import migrations
from tests.upgrade import previous

# What the previous release used no more, and this one has taken away: the contract step. Rows of
# COLUMNS and of the others below, as they were, each with the reason.
TAKEN_AWAY: dict[tuple[object, ...], str] = {}

# Of tables and views, in both schemas.
COLUMNS = """
    SELECT attrelid::regclass::text, attname, format_type(atttypid, atttypmod)
    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    WHERE relnamespace IN ('public'::regnamespace, 'admin'::regnamespace)
      AND relkind IN ('r', 'v') AND attnum > 0 AND NOT attisdropped
"""
# Columns that an INSERT may leave out: those it left out before, and all that came since.
MAY_BE_LEFT_OUT = """
    SELECT attrelid::regclass::text, attname
    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
      AND attnum > 0 AND NOT attisdropped
      AND (NOT attnotnull OR atthasdef OR attidentity <> '')
"""
MAY_BE_NULL = """
    SELECT attrelid::regclass::text, attname
    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
      AND attnum > 0 AND NOT attisdropped AND NOT attnotnull
"""
# What an ON CONFLICT of its may name.
UNIQUE = """
    SELECT indrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index
    JOIN pg_class ON pg_class.oid = indrelid
    WHERE indisunique AND relnamespace = 'public'::regnamespace
"""
# Rules that a row has to keep.
RULES = """
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace AND contype IN ('c', 'f', 'x')
    UNION ALL
    SELECT indrelid::regclass::text, 'unique', pg_get_indexdef(indexrelid) FROM pg_index
    JOIN pg_class ON pg_class.oid = indrelid
    WHERE indisunique AND relnamespace = 'public'::regnamespace
    UNION ALL
    SELECT tgrelid::regclass::text, 'trigger', pg_get_triggerdef(oid) FROM pg_trigger
    WHERE NOT tgisinternal
"""

# Rules on tables of the previous release that came since, or say something else now: each lets more
# in than before, or is about columns that the previous release leaves to their defaults.
LOOSER = {
    "ck_jobs_purpose_known": "of a column that came since",
    "fk_jobs_source_job": "of a column that came since",
    "ck_jobs_stage_known": "two stages more",
}


def test_the_previous_release_finds_what_it_knows(empty_database: str, tmp_path: Path) -> None:
    old = previous.unpack(tmp_path)
    old.run("import migrations, sys; migrations.upgrade(sys.argv[1])", empty_database)
    looked = (COLUMNS, MAY_BE_LEFT_OUT, MAY_BE_NULL, UNIQUE, RULES)
    before = {statement: ask(empty_database, statement) for statement in looked}
    migrations.upgrade(empty_database)
    now = {statement: ask(empty_database, statement) for statement in looked}
    gone = {row for statement in looked[:-1] for row in before[statement] - now[statement]}
    assert gone == set(TAKEN_AWAY)
    # A row as it writes it: whatever column came to its tables may be left out …
    tables = {row[0] for row in before[MAY_BE_LEFT_OUT]}
    new = {row[:2] for row in now[COLUMNS] - before[COLUMNS] if row[0] in tables}
    assert new, "nothing came since: is this the previous release?"
    assert new - now[MAY_BE_LEFT_OUT] == set()
    # … and no rule came that it may break.
    assert {row[1] for row in now[RULES] - before[RULES] if row[0] in tables} == set(LOOSER)


def ask(url: str, statement: str) -> set[tuple[object, ...]]:
    with create_engine(url, poolclass=NullPool).connect() as connection:
        return {tuple(row) for row in connection.execute(text(statement))}
