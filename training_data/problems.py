"""What is wrong with single rows: collected with line numbers up to a limit, counted beyond it."""

from __future__ import annotations

from models.errors import DataError, RowProblem
from models.settings import settings
from training_data.quality.private import masked


class RowError(Exception):
    """One row cannot be used. Never leaves this package: it becomes a RowProblem with its line."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


class Problems:
    """The problems of one reading. `count` is the true total; `listed` stops at the limit."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = settings().max_row_problems if limit is None else limit
        self.listed: list[RowProblem] = []
        self.count = 0
        # Set where a line number alone would not say where: one of several files, or the
        # evaluation data beside the training data.
        self.part = ""
        self.file = ""

    def add(self, line: int, what: str, remedy: str, *, file: str | None = None) -> None:
        self.count += 1
        if len(self.listed) < self.limit:
            named = ": ".join(filter(None, (self.part, self.file if file is None else file, what)))
            # Both may quote the row, and stand in the job's record.
            self.listed.append(RowProblem(line=line, what=masked(named), remedy=masked(remedy)))

    def raise_any(self, where: str) -> None:
        """Raise DataError when something was found."""
        if self.count:
            rows = "1 problem" if self.count == 1 else f"{self.count} problems"
            raise DataError(
                f"the data has {rows}",
                where=where,
                remedy="mend these lines, then `celora validate` the file again",
                problems=self.listed,
                problem_count=self.count,
            )
