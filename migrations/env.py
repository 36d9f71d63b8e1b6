"""Run by Alembic for every command; the connection comes from `migrations._run`."""

from __future__ import annotations

from alembic import context

from models.tables import Base

# One transaction a step: a step that fails leaves the ones before it in place and itself not begun.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
