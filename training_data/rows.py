"""From the data sets a spec names to distinct rows, each on its side of the split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from models.errors import DataError
from models.spec import JobSpec
from training_data.dedupe import Seen, Side
from training_data.formats.rows import Chat, Plain, Row
from training_data.formats.shapes import Shape, shape_of, wanted_columns
from training_data.hub import HubData
from training_data.locations import SourceCheck
from training_data.problems import Problems, RowError
from training_data.sources import FileData, open_data
from training_data.split import split
from training_data.watch import Watch

_LOOK_EVERY = 32  # records between looks at the clock
# Evaluation data that has splits is read from the first of these that it has.
_EVALUATION_SPLITS = ("validation", "valid", "dev", "eval", "test")


@dataclass(slots=True)
class Kept:
    """A row that stays, where it came from, and its side."""

    row: Row
    line: int
    file: str
    held_out: bool


class Rows:
    """Reads the training data, and the evaluation data where the spec names some.

    Nothing is read before `kept` is walked; afterwards the counts, shape and digests are known.
    """

    def __init__(
        self,
        spec: JobSpec,
        *,
        watch: Watch,
        problems: Problems,
        scratch: Path,
        source_check: SourceCheck | None = None,
    ) -> None:
        self._spec = spec
        self._watch = watch
        self._problems = problems
        self._scratch = scratch
        self.train, self.held_out = open_sources(spec, watch, source_check)
        self.shape: Shape | None = None
        self.read = 0
        self.dropped: Counter[str] = Counter()
        self.cut_turns = 0  # rows with turns after the last answer
        self.run_together = 0  # rows whose prompt and answer meet without white space

    def kept(self) -> Generator[Kept]:
        """Every row that is whole, new and right. Raises InputError, DataError, UnavailableError;
        what is wrong with single rows goes to the problems."""
        with Seen(self._scratch) as seen:
            if self.held_out is None:
                fraction = self._spec.validation_fraction
                for kept, held_out in split(self._distinct(self.train, seen, Side.TRAIN), fraction):
                    kept.held_out = held_out
                    yield kept
                return
            # First, so that a training row that equals an evaluation row is known when it comes.
            self._problems.part = "evaluation data"
            for kept, _ in self._distinct(self.held_out, seen, Side.HELD_OUT):
                yield kept
            self._problems.part = ""
            for kept, _ in self._distinct(self.train, seen, Side.TRAIN):
                yield kept

    def _distinct(
        self, data: FileData | HubData, seen: Seen, side: Side
    ) -> Iterator[tuple[Kept, int]]:
        where = self._spec.dataset if side is Side.TRAIN else str(self._spec.eval_dataset)
        problems = self._problems
        shape: Shape | None = None
        records = data.records(problems, wanted_columns(self._spec.columns), self._scratch)
        for line, record in records:
            self.read += 1
            self._watch.rows = self.read
            if self.read % _LOOK_EVERY == 0:
                self._watch.look()
            if shape is None:
                shape = shape_of(
                    record,
                    self._spec.shape,
                    self._spec.columns,
                    pairs=self._spec.method == "dpo",
                    where=where,
                    line=line,
                )
                self.shape = shape
            try:
                row = shape.parse(record)
                fingerprint = row.fingerprint()
            except RowError as error:
                problems.add(line, error.what, error.remedy)
                continue
            earlier = seen.first_side(fingerprint, side)
            if earlier is not None:
                same_side = earlier is side
                self.dropped["duplicate" if same_side else "in_evaluation_data"] += 1
                continue
            self._note(row)
            yield Kept(row, line, problems.file, side is Side.HELD_OUT), fingerprint
        if shape is None and not problems.count:
            raise DataError("the data has no rows", where=where, remedy="give data with rows in it")

    def _note(self, row: Row) -> None:
        if isinstance(row, Chat):
            self.cut_turns += row.cut_turns > 0
        elif isinstance(row, Plain) and row.prompt:
            joint = row.prompt[-1] + row.answer[0]
            self.run_together += not (joint[0].isspace() or joint[1].isspace())


def require_sources(spec: JobSpec, source_check: SourceCheck | None = None) -> None:
    """Raise InputError, UnavailableError for files that are missing or may not be read.

    It takes no time, so it comes before anything that does: a base model may take hours to fetch.
    """
    for data in open_sources(spec, Watch(), source_check):
        if isinstance(data, FileData):
            data.files[0].head(1)


def open_sources(
    spec: JobSpec, watch: Watch, source_check: SourceCheck | None = None
) -> tuple[FileData | HubData, FileData | HubData | None]:
    """The training data and the evaluation data, found but not read."""
    train = open_data(
        spec.dataset,
        splits=(spec.dataset_split,),
        revision=spec.dataset_revision,
        watch=watch,
        source_check=source_check,
    )
    if spec.eval_dataset is None:
        return train, None
    same = spec.eval_dataset == spec.dataset
    held_out = open_data(
        spec.eval_dataset,
        splits=(*_EVALUATION_SPLITS, spec.dataset_split),
        revision=spec.dataset_revision if same else None,
        watch=watch,
        source_check=source_check,
    )
    return train, held_out
