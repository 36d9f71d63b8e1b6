"""Registers the checkpoints of a stage, in a thread: upload, then the row, then the old ones go.

In this order a row never promises files that are not there, and training never waits for a store.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sqlalchemy.orm import Session

from gpu_worker.lease import Lease, LeaseLostError
from gpu_worker.patience import patiently
from gpu_worker.protocol import CheckpointSaved
from models import store
from models.errors import CeloraError, StaleFenceError, UnavailableError
from models.queries import history, products
from models.tables import Checkpoint

_log = logging.getLogger(__name__)


class CheckpointKeeper:
    """`flush` writes what the trainer said before: a resume begins after the checkpoint's step and
    says none of it again, so a row must not come before the curve that led to it."""

    def __init__(self, job_id: str, fence: int, lease: Lease, flush: Callable[[], None]) -> None:
        self._job_id, self._fence, self._lease = job_id, fence, lease
        self._flush = flush
        self._saved: queue.SimpleQueue[CheckpointSaved | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._away = False
        self.registered_step: int | None = None

    def add(self, saved: CheckpointSaved) -> None:
        """From the trainer's reader: returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
            self._thread.start()
        self._saved.put(saved)

    def then(self, call: Callable[[], None]) -> bool:
        """Call once all that was added is registered or given up; False: nothing to wait for.

        The thread ends with it.
        """
        if self._thread is None:
            return False
        self._saved.put(None)
        thread = self._thread

        def wait() -> None:
            thread.join()
            call()

        threading.Thread(target=wait, name="checkpoints-end", daemon=True).start()
        return True

    def _run(self) -> None:
        while (saved := self._saved.get()) is not None:
            try:
                self._register(saved)
            except (StaleFenceError, LeaseLostError):
                return  # the attempt is over: these files are the reaper's
            except (CeloraError, OSError) as error:  # a full disk, a store that is away
                self._warn(f"the checkpoint of step {saved.step} was not kept: {error}")
            except Exception:  # noqa: BLE001 (the next checkpoint may fare better)
                _log.exception("job %s: checkpoint of step %s", self._job_id, saved.step)

    def _register(self, saved: CheckpointSaved) -> None:
        url = store.checkpoint_url(self._job_id, self._fence, saved.step)
        self._upload(Path(saved.path), url)

        def write(session: Session) -> list[Checkpoint]:
            return products.register_checkpoint(
                session,
                self._job_id,
                self._fence,
                step=saved.step,
                url=url,
                size_bytes=saved.size_bytes,
                trained_tokens=saved.trained_tokens,
                metrics=saved.metrics,
            )

        self._flush()
        older = self._lease.insist(write)
        self.registered_step = saved.step
        for checkpoint in older:
            self._delete(checkpoint)

    def _upload(self, folder: Path, url: str) -> None:
        """A store that is away is asked again, once for all the checkpoints that it does not take:
        the end of a stage waits for each of them."""
        upload = partial(store.upload, folder, url)
        try:
            if self._away:
                upload()
            else:
                patiently(upload, say=self._log, wait=self._lease.over)
        except UnavailableError:
            self._away = True
            raise
        self._away = False

    def _delete(self, checkpoint: Checkpoint) -> None:
        try:
            store.remove(checkpoint.url)
            local = store.work_folder(self._job_id, checkpoint.fence) / "checkpoints"
            store.remove(str(local / f"step-{checkpoint.step}"))
        except CeloraError as error:  # the sweep finds it again: its row says that it is deleted
            _log.warning("%s was not removed: %s", checkpoint.url, error)

    def _log(self, what: str) -> None:
        _log.warning("job %s: %s", self._job_id, what)

    def _warn(self, what: str) -> None:
        self._log(what)

        def write(session: Session) -> None:
            history.add_event(session, self._job_id, "checkpoint_failed", what, level="warn")

        self._lease.insist(write)
