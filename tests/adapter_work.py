"""Exports and chats for tests: a job that has been trained, and work on what it left."""

from __future__ import annotations

from typing import Any

from models.adapter_work import Format, Subject
from models.queries import adapter_work, chats, products
from models.queries.adapters import resolve
from models.session import transaction
from models.states import Outcome
from models.tables import ChatTurn
from tests import records


def trained(kind: str = "adapter", **fields: object) -> str:
    """A job that has completed, with an adapter on record; its GPU is free again."""
    taken = records.running(evaluate=False, **fields)
    with transaction() as session:
        products.register_artifact(
            session, taken.job_id, taken.fence, kind=kind, url="/adapter", size_bytes=10
        )
    records.end(taken.job_id, taken.fence, Outcome.COMPLETED)
    records.add_gpu()
    return taken.job_id


def export(job_id: str, form: Format = "merged") -> str:
    with transaction() as session:
        return adapter_work.insert_export(
            session, resolve(session, None, job_id), form, user="ada"
        ).id


def chat(job_id: str, **options: Any) -> str:
    with transaction() as session:
        return adapter_work.insert_chat(
            session,
            resolve(session, None, job_id),
            user="ada",
            **{"max_new_tokens": 16, "temperature": 0.0} | options,
        ).id


def ask(chat_id: str, prompt: str, subject: Subject = "tuned") -> int:
    with transaction() as session:
        return chats.ask(session, chat_id, prompt, subject)


def turn(chat_id: str, position: int = 1) -> ChatTurn:
    with transaction() as session:
        found = chats.turn(session, chat_id, position)
    assert found is not None
    return found


def leave(chat_id: str) -> None:
    with transaction() as session:
        chats.close(session, chat_id)
