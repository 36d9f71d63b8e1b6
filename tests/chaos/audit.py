"""What the database itself writes down during a run, by triggers: every write that was accepted.

The product's tables show the end; a row that a stale worker wrote and a later one replaced would
not be seen there. An aborted transaction leaves no trace here either.
"""

from __future__ import annotations

import psycopg

# `checkpoints` and `artifacts` are also marked deleted later, by another attempt: no write of what
# they hold.
_WATCHED = {
    "metrics": "INSERT OR UPDATE",
    "log_lines": "INSERT",
    "checkpoints": "INSERT OR UPDATE OF url, size_bytes",
    "artifacts": "INSERT OR UPDATE OF url, digest",
    "evaluations": "INSERT OR UPDATE",
}

_TABLES = """
CREATE SCHEMA chaos;
CREATE TABLE chaos.writes (
    id bigint GENERATED ALWAYS AS IDENTITY, at timestamptz DEFAULT clock_timestamp(),
    place text, job_id text, fence bigint);
CREATE TABLE chaos.moves (
    id bigint GENERATED ALWAYS AS IDENTITY, at timestamptz DEFAULT clock_timestamp(),
    job_id text, state_before text, state text, stage_before text, stage text,
    fence_before bigint, fence bigint);
CREATE TABLE chaos.ends (
    id bigint GENERATED ALWAYS AS IDENTITY, at timestamptz DEFAULT clock_timestamp(),
    job_id text, fence bigint, again boolean);
CREATE FUNCTION chaos.note_write() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO chaos.writes (place, job_id, fence) VALUES (TG_TABLE_NAME, NEW.job_id, NEW.fence);
    RETURN NULL; END $$;
CREATE FUNCTION chaos.note_move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO chaos.moves (job_id, state_before, state, stage_before, stage, fence_before, fence)
    VALUES (NEW.id, OLD.state, NEW.state, OLD.stage, NEW.stage, OLD.fence, NEW.fence);
    RETURN NULL; END $$;
CREATE FUNCTION chaos.note_end() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO chaos.ends (job_id, fence, again)
    VALUES (NEW.job_id, NEW.fence, OLD.ended_at IS NOT NULL);
    RETURN NULL; END $$;
CREATE TRIGGER chaos_move AFTER UPDATE ON jobs FOR EACH ROW
    WHEN ((OLD.state, OLD.stage, OLD.fence) IS DISTINCT FROM (NEW.state, NEW.stage, NEW.fence))
    EXECUTE FUNCTION chaos.note_move();
CREATE TRIGGER chaos_end AFTER UPDATE ON attempts FOR EACH ROW
    WHEN ((OLD.ended_at, OLD.outcome) IS DISTINCT FROM (NEW.ended_at, NEW.outcome))
    EXECUTE FUNCTION chaos.note_end();
"""


def install(url: str) -> None:
    """`url` is libpq's."""
    with psycopg.connect(url) as connection:
        connection.execute(_TABLES)
        for table, events in _WATCHED.items():
            connection.execute(
                f"CREATE TRIGGER chaos_write AFTER {events} ON {table}"
                " FOR EACH ROW EXECUTE FUNCTION chaos.note_write()".encode()
            )
