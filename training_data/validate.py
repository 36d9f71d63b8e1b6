"""What `prepare` would say about a data set; only temporary files are written."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from models.errors import DataError, RowProblem
from models.spec import JobSpec, parse_spec
from training_data import verdict as verdicts
from training_data.locations import SourceCheck
from training_data.prepare import prepare_rows, writable
from training_data.problems import Problems
from training_data.quality.look import Quality
from training_data.rows import Rows
from training_data.watch import Progress, ShouldStop, Watch


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. `verdict` has the keys of a prepared verdict that are known; its `quality`
    is None where nobody asked for it, or no row was whole.

    Without a tokenizer there are no lengths, tokens or steps in it, and whether a chat template
    fits conversations is not looked at.
    """

    source: str
    verdict: dict[str, Any]
    error: str | None = None
    remedy: str | None = None
    problems: tuple[RowProblem, ...] = field(default=())
    problem_count: int = 0

    @property
    def ok(self) -> bool:
        return self.error is None

    def record(self) -> dict[str, Any]:
        """JSON types only."""
        return {
            "ok": self.ok,
            "source": self.source,
            "error": self.error,
            "remedy": self.remedy,
            "problems": [asdict(problem) for problem in self.problems],
            "problem_count": self.problem_count,
            **self.verdict,
        }


def validate(
    dataset: str,
    *,
    shape: str = "auto",
    columns: dict[str, str] | None = None,
    tokenizer_path: str | None = None,
    quality: bool = False,
    source_check: SourceCheck | None = None,
    on_progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
    **fields: Any,
) -> Report:
    """Check a data set. `fields` are further fields of JobSpec (max_sequence_length, epochs, …).
    With `quality` every row is looked at for what training on it would do, which takes five times
    as long as reading it.

    Wrong rows are in the report. Raises SpecError, InputError for a path, BaseModelError for a
    tokenizer, UnavailableError, PreparationStopped.
    """
    fields = {"base_model": tokenizer_path or "none", **fields}
    spec = parse_spec({**fields, "dataset": dataset, "shape": shape, "columns": columns or {}})
    watch, problems = Watch(on_progress, should_stop), Problems()
    with TemporaryDirectory(prefix="celora-validate-") as folder:
        scratch = Path(folder)
        rows = Rows(
            spec, watch=watch, problems=problems, scratch=scratch, source_check=source_check
        )
        with Quality(rows, scratch, watch) as look:
            looking = look if quality else None
            try:
                if tokenizer_path is None:
                    verdict = _read(spec, rows, problems, looking, scratch)
                else:
                    verdict = prepare_rows(
                        spec,
                        rows,
                        problems,
                        watch,
                        tokenizer_path=tokenizer_path,
                        scratch=scratch,
                        quality=looking,
                    ).verdict
            except DataError as error:
                return Report(
                    dataset,
                    verdicts.counted(rows, None) | _quality(looking, scratch),
                    error=error.what,
                    remedy=error.remedy,
                    problems=error.problems,
                    problem_count=error.problem_count,
                )
    return Report(dataset, verdict)


def _read(
    spec: JobSpec, rows: Rows, problems: Problems, look: Quality | None, scratch: Path
) -> dict[str, Any]:
    trained = held_out = 0
    with writable(scratch), closing(rows.kept()) as kept:
        for row in look.watched(kept) if look else kept:
            held_out += row.held_out
            trained += not row.held_out
    problems.raise_any(spec.dataset)
    verdict = verdicts.counted(rows, None) | {"rows_train": trained, "rows_eval": held_out}
    return verdict | {"warnings": verdicts.warnings(spec, rows, verdict)} | _quality(look, scratch)


def _quality(look: Quality | None, scratch: Path) -> dict[str, Any]:
    with writable(scratch):
        return {"quality": look.record() if look else None}
