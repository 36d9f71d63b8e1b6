"""A role of the database that sees schema admin and nothing else, and may log in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import make_url, text

from models.queries.roles import grant_reader
from models.session import transaction
from tests.run_token import run_name


@contextmanager
def reader(database: str) -> Iterator[str]:
    """The database's address for that role; it is dropped after."""
    role = run_name("reader")
    with transaction() as session:
        assert grant_reader(session, role)
        assert not grant_reader(session, role)
        session.execute(text(f"ALTER ROLE \"{role}\" LOGIN PASSWORD 'secret'"))
    yield (
        make_url(database)
        .set(username=role, password="secret")
        .render_as_string(hide_password=False)
    )
    with transaction() as session:
        session.execute(text(f'DROP OWNED BY "{role}"'))
        session.execute(text(f'DROP ROLE "{role}"'))
