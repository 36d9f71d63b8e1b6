"""Who may read the views for administrators: a role of the database that sees nothing else."""

from __future__ import annotations

import re

from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from models.errors import InputError, SetupError

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")


def grant_reader(session: Session, role: str) -> bool:
    """Grant the schema's views to `role`; True when it was made. It gets no other right.

    Raises InputError for a name; SetupError when the connection may not make roles.
    """
    if not _NAME.fullmatch(role):
        raise InputError(
            f"{role!r} is no plain name of a role",
            where="role",
            remedy="use lower-case letters, digits and _",
        )
    known = session.scalar(text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role})
    try:
        if known is None:
            session.execute(text(f'CREATE ROLE "{role}" NOLOGIN'))
        session.execute(text(f'GRANT USAGE ON SCHEMA admin TO "{role}"'))
        session.execute(text(f'GRANT SELECT ON ALL TABLES IN SCHEMA admin TO "{role}"'))
        # Views that a later version adds.
        session.execute(
            text(f'ALTER DEFAULT PRIVILEGES IN SCHEMA admin GRANT SELECT ON TABLES TO "{role}"')
        )
    except ProgrammingError as error:
        raise SetupError(
            f"the role could not be granted: {str(error.orig).partition(chr(10))[0]}",
            remedy="let the database's owner run this, or make the role first",
        ) from error
    return known is None
