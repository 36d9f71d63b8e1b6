"""Prepare a job's data: read, check, split, tokenise and pack it, and say what was found."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import disk
from models.errors import BaseModelError, DataError, SetupError
from models.settings import settings
from models.spec import JobSpec
from training_data import verdict as verdicts
from training_data.arrow_files import TokenWriter
from training_data.digests import combined, digest_parts, input_digest
from training_data.locations import SourceCheck
from training_data.packing import pack_file
from training_data.problems import Problems
from training_data.quality.look import Quality
from training_data.rows import Rows
from training_data.steps import Steps, optimizer_steps
from training_data.tally import Tally
from training_data.tokenise import Tokeniser
from training_data.tokenizer import Frozen, load
from training_data.watch import PreparationStopped, Progress, ShouldStop, Watch

__all__ = ["PreparationStopped", "Prepared", "input_digest", "prepare"]

# Packing makes fewer, fuller steps; below this many they are too few to learn in.
FEWEST_PACKED_STEPS = 100
# Less than a second of work; `celora validate` looks at all rows.
MOST_QUALITY_ROWS = 10_000
LANGUAGE_ROWS = 50
_UNPACKED = "rows.arrow"


@dataclass(frozen=True, slots=True)
class Prepared:
    """`folder` holds train.arrow, eval.arrow and verdict.json, which was written last."""

    digest: str
    folder: Path
    verdict: dict[str, Any]


def prepare(
    spec: JobSpec,
    *,
    tokenizer_path: str,
    scratch: Path,
    source_check: SourceCheck | None = None,
    on_progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> Prepared:
    """Prepare the spec's data in `scratch`, an empty local folder that becomes the result.

    `tokenizer_path` is the base model's local folder. `source_check` is told every resolved path
    or URL before it is read and may raise InputError; `on_progress` is told what is being done
    and how many rows are; `should_stop` is asked at least every 0.5 s.

    Raises DataError with the problems of single rows, InputError for a path, BaseModelError for
    a tokenizer, UnavailableError for a store, SetupError for a full disk, PreparationStopped
    when asked to stop.
    """
    watch, problems = Watch(on_progress, should_stop), Problems()
    scratch.mkdir(parents=True, exist_ok=True)
    rows = Rows(spec, watch=watch, problems=problems, scratch=scratch, source_check=source_check)
    with Quality(
        rows, scratch, watch, most_rows=MOST_QUALITY_ROWS, sample=LANGUAGE_ROWS
    ) as quality:
        return prepare_rows(
            spec,
            rows,
            problems,
            watch,
            tokenizer_path=tokenizer_path,
            scratch=scratch,
            quality=quality,
        )


def prepare_rows(
    spec: JobSpec,
    rows: Rows,
    problems: Problems,
    watch: Watch,
    *,
    tokenizer_path: str,
    scratch: Path,
    quality: Quality | None,
) -> Prepared:
    """As `prepare`, for rows that the caller keeps: they know the counts when this raises."""
    started = time.monotonic()
    watch.turn_to("loading the tokenizer")
    tokenizer = _tokenizer(spec, tokenizer_path, watch)
    tokeniser = Tokeniser(spec, tokenizer, problems=problems, watch=watch)

    with writable(scratch):
        watch.turn_to("tokenising")
        tally, highest_id, held_out_digest = _write_tokens(rows, tokeniser, scratch, quality)
        problems.raise_any(spec.dataset)
        _require_embeddings(spec, tokenizer, highest_id)
        if not tally.rows_train:
            raise _nothing_left(spec, rows, tokeniser, tally)
        watch.turn_to("packing", tally.rows_train)
        sequences, packed = _pack(spec, scratch, tally.rows_train, watch)
        found = quality.record() if quality else None

    parts = digest_parts(
        spec,
        data=rows.train.digest,
        held_out=rows.held_out.digest if rows.held_out else None,
        tokenizer=tokenizer.digest,
    )
    verdict = (
        {"source": spec.dataset}
        | verdicts.counted(rows, tokeniser)
        | verdicts.measured(tally, tokenizer)
        | verdicts.planned(tally, sequences, _steps(spec, sequences), packed=packed)
    )
    verdict["warnings"] = verdicts.warnings(spec, rows, verdict)
    verdict["quality"] = found
    verdict["digests"] = parts
    # Of the rows themselves: runs with other settings are compared where they were held out alike.
    verdict["held_out_digest"] = held_out_digest if tally.rows_held_out else None
    verdict["seconds"] = round(time.monotonic() - started, 3)
    with writable(scratch):
        (scratch / "verdict.json").write_text(json.dumps(verdict, ensure_ascii=False), "utf-8")
    return Prepared(combined(parts), scratch, verdict)


def _tokenizer(spec: JobSpec, folder: str, watch: Watch) -> Frozen:
    """The base's tokenizer. Its own code runs only where an administrator named the model."""
    allowed = [name.strip() for name in settings().remote_code_models.split(",")]
    trusted = spec.trust_remote_code and spec.base_model in allowed
    return load(folder, trust_remote_code=trusted, watch=watch)


@contextmanager
def writable(scratch: Path) -> Iterator[None]:
    """Raise SetupError where the scratch disk gives out. What reading raises is ours by now."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        if disk.is_full(error):
            raise disk.full(error, scratch) from error
        raise SetupError(
            f"the prepared data could not be written: {error}",
            where=str(scratch),
            remedy="free space on this disk, or set CELORA_HOME or TMPDIR to a larger one",
        ) from error


def _require_embeddings(spec: JobSpec, tokenizer: Frozen, highest_id: int) -> None:
    """Raise BaseModelError for a token that the model cannot look up.

    On a GPU that would be a device assertion in the first step; embeddings are never resized.
    """
    if tokenizer.embeddings is not None and highest_id >= tokenizer.embeddings:
        raise BaseModelError(
            f"its tokenizer makes token {highest_id} of this data, but the model knows only"
            f" {tokenizer.embeddings}",
            where=spec.base_model,
            remedy="put the tokenizer that belongs to the model into its folder; was a special"
            " token added?",
        )


def _nothing_left(spec: JobSpec, rows: Rows, tokeniser: Tokeniser, tally: Tally) -> DataError:
    dropped = rows.dropped + tokeniser.dropped
    reasons = [f"{count} dropped ({name})" for name, count in dropped.items()]
    return DataError(
        "no row is left to train on: "
        + ", ".join([f"{rows.read} read", f"{tally.rows_held_out} held out", *reasons]),
        where=spec.dataset,
        remedy="raise max_sequence_length if answers are cut off, lower validation_fraction,"
        " or bring more rows",
    )


def _steps(spec: JobSpec, sequences: int) -> Steps:
    return optimizer_steps(
        sequences,
        batch_size=spec.batch_size,
        gradient_accumulation=spec.gradient_accumulation,
        epochs=spec.epochs,
        max_steps=spec.max_steps,
    )


def _write_tokens(
    rows: Rows, tokeniser: Tokeniser, scratch: Path, quality: Quality | None
) -> tuple[Tally, int, str]:
    """Every row tokenised, counted and written; the counts, the highest token there is, and the
    digest of the held-out rows."""
    tally = Tally()
    pairs = tokeniser.pairs
    with (
        # In this thread, whatever becomes of it: its database may be closed in no other one.
        closing(rows.kept()) as kept,
        TokenWriter(scratch / _UNPACKED, held_out=False, pairs=pairs) as train,
        TokenWriter(scratch / "eval.arrow", held_out=True, pairs=pairs) as held_out,
    ):
        for row in tokeniser.tokens(quality.watched(kept) if quality else kept):
            tally.add(row)
            (held_out if row.held_out else train).add(row)
    return tally, max(train.highest_id, held_out.highest_id), held_out.digest


def _pack(spec: JobSpec, scratch: Path, rows: int, watch: Watch) -> tuple[int, bool]:
    """Make the training file; (sequences in it, are they packs)."""
    unpacked, target = scratch / _UNPACKED, scratch / "train.arrow"
    few = _steps(spec, rows).total < FEWEST_PACKED_STEPS
    asked = spec.packing == "on" or (spec.packing == "auto" and not few)
    if asked and spec.method != "dpo":  # pairs are not packed
        packs = pack_file(unpacked, target, spec.max_sequence_length, watch.look)
        if spec.packing == "on" or _steps(spec, packs).total >= FEWEST_PACKED_STEPS:
            unpacked.unlink()
            return packs, True
    unpacked.replace(target)
    return rows, False
