"""What the run was promised: every submit and every cancel that was acknowledged to a caller."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass
class Entry:
    key: str  # the idempotency key it was submitted under; the task's id over the broker
    tenant: str
    expected: str  # the state it has to end in, unless it is cancelled
    over_broker: bool = False
    job_id: str | None = None  # as the submit answered; none over the broker
    cancelled: bool = False  # a cancel was acknowledged while the job was not over


class Ledger:
    """Written at each promise, so that the checker reads it from a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Entry] = []

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.write()

    def write(self) -> None:
        self.path.write_text(json.dumps([asdict(entry) for entry in self.entries], indent=1))


def read(path: Path) -> list[Entry]:
    return [Entry(**fields) for fields in json.loads(path.read_text())]
