"""Every error a user or an operator can meet.

CeloraError                      what happened, where, what to do about it
├── InputError                   the caller's input cannot be used (exit code 2)
│   ├── SpecError                a field of the job specification
│   ├── DataError                rows of the training data; carries the list of problems
│   ├── BaseModelError           the base model cannot be found, read or allowed
│   └── NotFoundError            no such job, GPU, tenant, artifact
├── StateError                   the job's state does not allow it (exit code 4)
│   └── GateError                an alias does not move: its gates do not hold
├── StaleFenceError              this attempt no longer owns the job; it must write nothing
├── UnavailableError             database, broker or artifact store cannot be reached (exit code 3)
│   └── KeyMissingError          a stored secret does not open with this process's keys
├── SetupError                   this machine lacks something or is set up wrongly (exit code 5)
└── TrainingError                the run itself failed (exit code 1)
    ├── NonFiniteLossError       loss became NaN or infinite
    ├── DeviceMemoryError        out of device or host memory in a step
    ├── NothingToTrainError      the model has no trainable parameter
    ├── ExportError              what was exported is not what was trained
    ├── TimeLimitError           the job ran longer than its spec allows
    └── WorkerLostError          workers were lost too often without a new checkpoint
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class RowProblem:
    """One thing wrong with one row: where it is, what is wrong, how to mend it.

    `line` counts from 1 in the file as the user sees it; 0 means the file as a whole.
    """

    line: int
    what: str
    remedy: str


class CeloraError(Exception):
    """Something Celora can explain. `str()` gives one readable paragraph."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        text = self.what if self.where is None else f"{self.where}: {self.what}"
        return text if self.remedy is None else f"{text}\n  What to do: {self.remedy}"

    def record(self) -> dict[str, Any]:
        """The error as it is stored in `jobs.error` and answered over HTTP; JSON types only."""
        return {
            "code": self.code,
            "message": self.what,
            "where": self.where,
            "remedy": self.remedy,
        }


class InputError(CeloraError):
    """The caller's input cannot be used."""

    code = "invalid_input"
    exit_code = 2


class SpecError(InputError):
    """A field of the job specification is wrong; `where` names the field."""

    code = "invalid_spec"


class DataError(InputError):
    """The training data cannot be used; `problems` lists rows, up to a limit.

    `problem_count` is the number found in all, which may be more than are listed.
    """

    code = "invalid_data"

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        remedy: str | None = None,
        problems: Sequence[RowProblem] = (),
        problem_count: int | None = None,
    ) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.problems = tuple(problems)
        self.problem_count = len(self.problems) if problem_count is None else problem_count

    def __str__(self) -> str:
        lines = [super().__str__()]
        lines += [f"  line {p.line}: {p.what} ({p.remedy})" for p in self.problems]
        hidden = self.problem_count - len(self.problems)
        if hidden > 0:
            lines.append(f"  … and {hidden} more")
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        return super().record() | {
            "problems": [asdict(problem) for problem in self.problems],
            "problem_count": self.problem_count,
        }


class BaseModelError(InputError):
    """The base model cannot be found, read or allowed."""

    code = "invalid_base_model"


class NotFoundError(InputError):
    """There is no such job, GPU, tenant or artifact."""

    code = "not_found"


class StateError(CeloraError):
    """The job's state does not allow what was asked."""

    code = "wrong_state"
    exit_code = 4


class GateError(StateError):
    """A version does not show what the alias's gates ask for."""

    code = "gate_failed"


class StaleFenceError(CeloraError):
    """This attempt no longer owns the job: another has it, or it ended. Write nothing more."""

    code = "stale_fence"


class UnavailableError(CeloraError):
    """The database, the broker or the artifact store cannot be reached."""

    code = "unavailable"
    exit_code = 3


class KeyMissingError(UnavailableError):
    """A stored secret does not open with the keys that this process was given: an operator's slip,
    which costs no job more than time."""

    code = "key_missing"


class SetupError(CeloraError):
    """This machine lacks something, or is set up in a way that cannot work."""

    code = "setup"
    exit_code = 5


class TrainingError(CeloraError):
    """The run failed for a reason that lies in the job or on the device."""

    code = "training_failed"


class NonFiniteLossError(TrainingError):
    """The loss became NaN or infinite; `where` names the step."""

    code = "non_finite_loss"


class DeviceMemoryError(TrainingError):
    """Device or host memory ran out in a step."""

    code = "out_of_memory"


class NothingToTrainError(TrainingError):
    """The model has no trainable parameter: a run would log losses and learn nothing."""

    code = "nothing_to_train"


class ExportError(TrainingError):
    """What was exported, loaded again, is not what was trained; the message holds the figures."""

    code = "export_differs"


class TimeLimitError(TrainingError):
    """The job ran longer than `time_limit_seconds`."""

    code = "time_limit"


class WorkerLostError(TrainingError):
    """The job's workers were lost several times in a row without a new checkpoint."""

    code = "worker_lost"
