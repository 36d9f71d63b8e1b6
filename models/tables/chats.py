"""What is said in a chat: the user's turns, and the answers as they grow. Deleted soon after."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, func
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, Created, Instant, JobId


class Chat(Base):
    """Of each chat: whether somebody still sits at it."""

    __tablename__ = "chats"

    job_id: Mapped[JobId] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    seen_at: Mapped[Instant] = mapped_column(server_default=func.now())  # the client said it lives
    closed_at: Mapped[Instant | None]  # the client has left in good order


class ChatTurn(Base):
    __tablename__ = "chat_turns"
    __table_args__ = (CheckConstraint("subject IN ('tuned', 'base')", name="subject_known"),)

    job_id: Mapped[JobId] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(primary_key=True)  # from 1
    subject: Mapped[str]  # who is asked: the tuned model, or its base
    prompt: Mapped[str]
    answer: Mapped[str] = mapped_column(server_default="")  # grows; whole when `answered_at` is set
    tokens: Mapped[int] = mapped_column(server_default="0")
    error: Mapped[str | None]  # why there is no (whole) answer
    asked_at: Mapped[Created]
    answered_at: Mapped[Instant | None]
