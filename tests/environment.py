"""Environment variables for a block of a test, seen by the product's settings in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from models import session, settings


@contextmanager
def variables(**values: str) -> Iterator[None]:
    """Environment variables for the block, with the cached settings and engines renewed."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        forget_settings()
        yield
    forget_settings()


def forget_settings() -> None:
    if settings.settings.cache_info().currsize and session.engine_for.cache_info().currsize:
        session.engine().dispose()
    session.engine_for.cache_clear()
    settings.settings.cache_clear()
