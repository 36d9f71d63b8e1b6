"""The trainer's end of the pipe: commands in through a thread, messages out through a thread.

Reading in a thread lets a Stop arrive in the middle of training. Writing in a thread keeps a slow
supervisor off the training's critical path.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

from pydantic import ValidationError

from gpu_worker.protocol import (
    MESSAGE_FD_VARIABLE,
    Exit,
    Log,
    Run,
    Stop,
    Turn,
    parse_command,
)


class StopRequested(Exception):  # noqa: N818 - not an error: the supervisor asked for it
    """Raised where the running stage ends because a Stop arrived."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Channel:
    """Commands from the supervisor and messages to it."""

    def __init__(self, commands: BinaryIO, message_fd: int) -> None:
        self._commands = commands
        self._message_fd = message_fd
        self._pending: queue.SimpleQueue[Run | Exit] = queue.SimpleQueue()
        # With the run, counted from 1, that they belong to; None wakes who waits when a Stop comes.
        self._turns: queue.SimpleQueue[tuple[int, Turn | None]] = queue.SimpleQueue()
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stop: tuple[int, str] | None = None  # which run, counted from 1, and why
        self._runs_read = 0
        self._runs_begun = 0
        threading.Thread(target=self._read, name="commands", daemon=True).start()
        self._writer = threading.Thread(target=self._write, name="messages", daemon=True)
        self._writer.start()

    @classmethod
    def from_environment(cls) -> Channel:
        """Take over standard input and the message descriptor, so that no library can touch them.

        A library that asks a question on standard input would otherwise eat a command, and one
        that prints would break the message stream.
        """
        message_fd = int(os.environ.pop(MESSAGE_FD_VARIABLE))
        os.set_inheritable(message_fd, False)  # noqa: FBT003 - the standard library's signature
        commands = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, sys.stdin.fileno())
        os.close(nothing)
        return cls(commands, message_fd)

    def send(self, message: Any) -> None:
        """Queue one message; never blocks."""
        self._outgoing.put(message)

    def log(self, line: str, level: str = "info") -> None:
        self.send(Log.model_validate({"level": level, "line": line}))

    def commands(self) -> Iterator[Run]:
        """Every Run in turn, until Exit. A Stop that came before a Run does not stop it."""
        while not isinstance(command := self._pending.get(), Exit):
            self._runs_begun += 1
            yield command

    def next_turn(self) -> Turn:
        """Wait for what is asked next in the chat in hand. Raises StopRequested."""
        while True:
            self.raise_if_stopped()
            of_run, turn = self._turns.get()
            if turn is not None and of_run == self._runs_begun:
                return turn

    @property
    def waiting(self) -> bool:
        """True when another command has been read already."""
        return not self._pending.empty()

    @property
    def stop_reason(self) -> str | None:
        """Why the stage in hand shall stop; None while it shall go on."""
        stop = self._stop
        return None if stop is None or stop[0] != self._runs_begun else stop[1]

    def raise_if_stopped(self) -> None:
        if (reason := self.stop_reason) is not None:
            raise StopRequested(reason)

    def leave(self, status: int = 0) -> None:
        """Write what is queued, then end the process at once: an orderly exit takes a second."""
        self._outgoing.put(None)
        self._writer.join(timeout=10)
        os._exit(status)

    def _read(self) -> None:
        for line in self._commands:
            try:
                command = parse_command(line)
            except ValidationError as error:  # a newer supervisor; say so and go on
                self.log(f"unknown command ignored: {error.errors()[0]['msg']}", "warn")
                continue
            if isinstance(command, Stop):
                self._stop = (self._runs_read, command.reason)
                self._turns.put((self._runs_read, None))
                continue
            if isinstance(command, Turn):
                self._turns.put((self._runs_read, command))
                continue
            if isinstance(command, Run):
                self._runs_read += 1
                command = command.model_copy(update={"received_at": time.time()})
            self._pending.put(command)
        os._exit(0)  # end of file: the supervisor is gone, nobody wants the work any more

    def _write(self) -> None:
        while (message := self._outgoing.get()) is not None:
            data = memoryview(message.encode())
            try:
                while data:
                    data = data[os.write(self._message_fd, data) :]
            except OSError:  # the reader is gone
                os._exit(1)
