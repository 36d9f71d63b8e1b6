"""What the database server says about itself."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session


def database_time(session: Session) -> datetime:
    """The database's clock, which leases go by."""
    now: datetime = session.scalars(select(func.clock_timestamp())).one()
    return now


def server_version(session: Session) -> int:
    """As Postgres counts: 180004 is 18.4."""
    return int(session.scalars(text("SHOW server_version_num")).one())
