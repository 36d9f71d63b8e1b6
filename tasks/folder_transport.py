"""kombu's `filesystem://`, whose readers never meet half a message.

kombu's own writes a message under its final name, and its readers take what they find: one that
came in between got an empty text, and its process ended with a JSONDecodeError (seen at the start
of `celora up` on a busy machine), the message lost.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, filesystem
from kombu.utils.json import dumps, loads


class Channel(filesystem.Channel):
    def _put(self, queue: str, payload: Any, **_: Any) -> None:  # type: ignore[override]  # as filesystem's
        # Named as kombu names it; the order of the names is the order of the messages.
        name = f"{round(time.monotonic() * 1000)}_{uuid.uuid4()}.{queue}.msg"
        final = Path(self.data_folder_out, name)
        unseen = final.with_suffix(".part")
        unseen.write_text(dumps(payload))
        unseen.rename(final)

    def _get(self, queue: str, timeout: Any = None) -> Any:  # noqa: ARG002 (kombu's signature)
        for path in sorted(Path(self.data_folder_in).iterdir()):
            if path.name.partition(".")[2] != f"{queue}.msg":
                continue
            try:
                payload = loads(path.read_bytes())
                path.unlink()  # who succeeds has it
            except FileNotFoundError:
                continue  # another reader was quicker
            except ValueError:
                continue  # another app's kombu is just writing it
            return payload
        raise Empty


class Transport(filesystem.Transport):
    Channel = Channel


def install() -> None:
    """Have this process use it for `filesystem://`."""
    TRANSPORT_ALIASES["filesystem"] = f"{__name__}:Transport"
