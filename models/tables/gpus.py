"""A device (or CPU slot) that trains, as its own worker reports it."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, Created, Instant, Json, RowId


class Gpu(Base):
    __tablename__ = "gpus"
    __table_args__ = (
        UniqueConstraint("host", "index"),
        CheckConstraint("kind IN ('cuda', 'cpu')", name="kind_known"),
        CheckConstraint("reported IN ('idle', 'busy', 'unknown', 'held')", name="reported_known"),
    )

    id: Mapped[RowId]
    host: Mapped[str]
    index: Mapped[int]
    uuid: Mapped[str] = mapped_column(unique=True)  # NVML's UUID; CPU slots: cpu-<host>-<index>
    kind: Mapped[str]
    model: Mapped[str]  # "NVIDIA H100 80GB HBM3", "cpu (4 threads)"
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    queue: Mapped[str]
    worker: Mapped[str]
    worker_session: Mapped[str]  # new for every pool child
    boot_id: Mapped[str]
    # What the worker last said: idle, busy (a trainer works), unknown (after a lost lease, until
    # the worker speaks again), held (a foreign process uses the device's memory).
    reported: Mapped[str]
    reason: Mapped[str | None]
    heartbeat_at: Mapped[Instant]
    stopped_at: Mapped[
        Instant | None
    ]  # its worker left in good order; the next heartbeat clears it
    loaded_base: Mapped[str | None]  # base model the warm trainer has in memory
    trainer_pid: Mapped[int | None]
    cordoned: Mapped[bool] = mapped_column(server_default=text("false"))
    labels: Mapped[Json] = mapped_column(server_default=text("'{}'::jsonb"))
    versions: Mapped[Json] = mapped_column(server_default=text("'{}'::jsonb"))
    first_seen_at: Mapped[Created]


class GpuSample(Base):
    __tablename__ = "gpu_samples"

    gpu_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    sampled_at: Mapped[Instant] = mapped_column(primary_key=True)
    utilisation_percent: Mapped[float | None]
    memory_used_bytes: Mapped[int | None] = mapped_column(BigInteger)
    temperature_celsius: Mapped[float | None]
    power_watts: Mapped[float | None]
