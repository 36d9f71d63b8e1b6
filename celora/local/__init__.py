"""The whole of Celora on one machine: embedded Postgres, a folder as broker, and all processes."""

from celora.local.postgres import EmbeddedPostgres
from celora.local.stack import Stack

__all__ = ["EmbeddedPostgres", "Stack"]
