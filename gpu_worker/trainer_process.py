"""A trainer process as its supervisor sees it: commands in, messages and log lines out, its death.

It is started by the main thread (gpu_worker/tether.py tells why), in a session of its own, so that
killing it also ends the processes it forked. One thread reads all it says and hands it on at once:
a trainer never waits for our database.
"""

from __future__ import annotations

import os
import queue
import selectors
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from gpu_worker import processes, tether
from gpu_worker.devices import Device
from gpu_worker.protocol import Message, Ready, Run, Stop, Turn, parse_message
from gpu_worker.trainer_environment import trainer_environment

TRAINER_MODULE = "gpu_worker.trainer"
SCRIPTED_MODULE = "gpu_worker.scripted"

_CHUNK = 1 << 16
_LONGEST_LINE = 8192  # of printed text; a message may be longer
_KILL_SECONDS = 10.0


@dataclass(frozen=True)
class Line:
    """A line the process printed."""

    stream: Literal["stdout", "stderr"]
    text: str


@dataclass(frozen=True)
class Died:
    """The process is gone, with all it had forked."""

    code: int  # as subprocess has it: -9 for SIGKILL
    killed: bool  # by us
    empty: bool  # False: something it forked does not die (a driver call that never returns)


Listener = Callable[["Message | Line | Died"], None]


class TrainerProcess:
    """A trainer, living or just deceased. `listener` is called in the reader's thread: be quick."""

    def __init__(self, module: str, device: Device, *, lock_fd: int | None = None) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("a trainer started outside the main thread dies with that thread")
        self.module = module
        self.listener: Listener | None = None
        self.started_at = time.monotonic()
        self.ready: Ready | None = None
        self.used = False
        self._killed = False
        self._empty = True
        self._dead = threading.Event()
        self._ending = threading.Lock()
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        reading, writing = os.pipe()
        try:
            self._process = subprocess.Popen(
                tether.command(module),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=trainer_environment(device, writing),
                pass_fds=(writing,) if lock_fd is None else (writing, lock_fd),
                start_new_session=True,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._messages = reading
        self._reader = threading.Thread(target=self._read, name="trainer-reader", daemon=True)
        self._reader.start()
        threading.Thread(target=self._write, name="trainer-writer", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return not self._dead.is_set()

    def send(self, command: Run | Stop | Turn) -> None:
        """Hand over one command; never blocks, though a process that still imports reads nothing.

        A process that is gone says so through its death, not here.
        """
        if isinstance(command, Run):
            self.used = True
        self._outgoing.put(command.encode())

    def kill(self) -> bool:
        """End the whole session now, and wait until it is empty. False: something still lives."""
        self._killed = True
        with self._ending:
            if not self._dead.is_set():
                processes.end_session(self.pid, seconds=_KILL_SECONDS)
        return self._dead.wait(_KILL_SECONDS) and self._empty

    def leave(self, seconds: float = 5.0) -> None:
        """Let an idle process end by itself: the end of its standard input says so. Then kill."""
        self._outgoing.put(None)
        if not self._dead.wait(seconds):
            self.kill()

    def _write(self) -> None:
        """The writer's thread: until there is nothing more to say, or nobody to hear it."""
        stdin = self._process.stdin
        if stdin is None:
            raise RuntimeError("the trainer was started without pipes")
        with suppress(OSError), stdin:
            while (line := self._outgoing.get()) is not None:
                stdin.write(line)
                stdin.flush()

    def _read(self) -> None:
        """The reader's thread: until the process is dead, and all it said is handed on."""
        stdout, stderr = self._process.stdout, self._process.stderr
        if stdout is None or stderr is None:
            raise RuntimeError("the trainer was started without pipes")
        # The pidfd and not the end of the pipes tells of the death: forked children inherit those.
        death = os.pidfd_open(self.pid)
        buffers = {self._messages: b"", stdout.fileno(): b"", stderr.fileno(): b""}
        with selectors.DefaultSelector() as selector:
            for descriptor in (death, *buffers):
                os.set_blocking(descriptor, False)
                selector.register(descriptor, selectors.EVENT_READ)
            dead = False
            while not dead:
                ready = [key.fd for key, _ in selector.select()]
                dead = death in ready
                for descriptor in buffers if dead else [fd for fd in ready if fd != death]:
                    if not self._drain(descriptor, buffers, to_end=dead):
                        with suppress(KeyError):
                            selector.unregister(descriptor)
        os.close(death)
        self._bury()

    def _drain(self, descriptor: int, buffers: dict[int, bytes], *, to_end: bool) -> bool:
        """Hand on what can be read: one chunk, or all there is. False: the other end is closed."""
        while True:
            try:
                chunk = os.read(descriptor, _CHUNK)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            if descriptor == self._messages:
                buffers[descriptor] = self._hand_on_messages(buffers[descriptor] + chunk)
            else:
                buffers[descriptor] = self._hand_on_lines(descriptor, buffers[descriptor] + chunk)
            if not to_end:
                return True

    def _hand_on_messages(self, data: bytes) -> bytes:
        *lines, rest = data.split(b"\n")
        for line in lines:
            try:
                message = parse_message(line)
            except ValidationError:
                text = line[:_LONGEST_LINE].decode(errors="replace")
                self._tell(Line("stderr", f"not a message: {text}"))
                continue
            if isinstance(message, Ready):
                self.ready = message
            self._tell(message)
        return rest

    def _hand_on_lines(self, descriptor: int, data: bytes) -> bytes:
        # A progress bar rewrites its line with carriage returns: each is a line to us.
        *lines, rest = data.replace(b"\r", b"\n").split(b"\n")
        if len(rest) > _LONGEST_LINE:
            lines, rest = [*lines, rest], b""
        stdout = self._process.stdout
        stream: Literal["stdout", "stderr"] = (
            "stdout" if stdout is not None and descriptor == stdout.fileno() else "stderr"
        )
        for line in lines:
            if text := line[:_LONGEST_LINE].decode(errors="replace").rstrip():
                self._tell(Line(stream, text))
        return rest

    def _bury(self) -> None:
        """End what the process forked, reap it, and tell of the death: nothing of it lives then."""
        with self._ending:
            self._empty = processes.end_session(self.pid, seconds=_KILL_SECONDS)
            code = self._process.wait()
            self._dead.set()
        self._outgoing.put(None)
        os.close(self._messages)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._tell(Died(code, self._killed, self._empty))

    def _tell(self, said: Message | Line | Died) -> None:
        listener = self.listener
        if listener is not None:
            listener(said)
