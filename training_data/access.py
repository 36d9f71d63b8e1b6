"""What the reader of a data set may reach beyond what everybody may: its tenant's own things.

    with reading_as(Access(files_url=…, hub_token=…)):
        prepare(…)

A context variable and not a parameter: it concerns the two ends, who asks and what is opened, and
none of the ten functions in between. A thread that is started inside begins without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Access:
    files_url: str | None = None  # of the tenant's uploaded files
    hub_token: str | None = field(default=None, repr=False)  # none: the machine's own account


@contextmanager
def reading_as(access: Access) -> Iterator[None]:
    before = _access.set(access)
    try:
        yield
    finally:
        _access.reset(before)


def access() -> Access:
    return _access.get()


_EVERYBODY = Access()
_access: ContextVar[Access] = ContextVar("access", default=_EVERYBODY)
