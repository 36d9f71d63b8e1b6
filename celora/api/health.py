"""Whether the server lives, and whether it can work."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from models.queries.clock import database_time
from models.session import transaction

router = APIRouter(tags=["server"])


class Health(BaseModel):
    status: str


@router.get("/healthz")
def healthz() -> Health:
    """The process answers."""
    return Health(status="ok")


@router.get("/readyz")
def readyz() -> Health:
    """The database answers too."""
    with transaction() as session:
        database_time(session)
    return Health(status="ok")
