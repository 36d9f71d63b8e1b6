"""The device of a pod that runs one job: reported like any other, and kept from the pool."""

from __future__ import annotations

from sqlalchemy.orm import Session

from gpu_worker.devices import Device
from gpu_worker.gpu_session import GpuSession, Report
from gpu_worker.held import foreign_use
from gpu_worker.lease import now
from models.errors import SetupError, UnavailableError
from models.queries import own_pod

_READY_SECONDS = 60.0
_LOOK_SECONDS = 0.5
_KEPT = Report("unknown", "kept for the one job of its pod")


class PodSession(GpuSession):
    def __init__(self, worker: str, device: Device) -> None:
        super().__init__(worker, device, queue=worker)  # nothing is sent there

    def registered_as(self) -> int:
        """The id of the device's row. Raises UnavailableError when it gets none for a while."""
        if not self._registered.wait(_READY_SECONDS) or self.gpu_id is None:
            raise UnavailableError(
                "the device could not be registered", remedy="does the database answer?"
            )
        return self.gpu_id

    def require_free(self) -> None:
        """Raises SetupError when somebody else uses the device's memory, and does not leave."""
        patience = now() + _READY_SECONDS
        while (who := foreign_use(self.device, self._own_pids())) is not None:
            if now() > patience or self.draining.wait(_LOOK_SECONDS):
                raise SetupError(
                    who,
                    where=self.device.uuid,
                    remedy="give the pod a device of its own (nvidia.com/gpu: 1)",
                )

    def _take_row(self, session: Session) -> int:
        return own_pod.register_device(session, queue=self.queue, **self._facts())

    def _report(self, *, attempt_ends: bool = False) -> Report:
        """Never idle: a dispatcher that places by that would send a ticket that nobody reads."""
        report = super()._report(attempt_ends=attempt_ends)
        return _KEPT if report.reported == "idle" else report
