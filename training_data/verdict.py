"""The verdict: what was found in the data and what a run on it will be, before any GPU is used."""

from __future__ import annotations

from collections import Counter
from typing import Any

from models.spec import JobSpec
from training_data.quality.private import masked_pieces
from training_data.rows import Rows
from training_data.steps import Steps
from training_data.tally import Tally, loss_tokens, segments
from training_data.templates import INSTRUCTION_LAYOUT
from training_data.tokenise import Tokeniser, TokenRow
from training_data.tokenizer import Frozen

FEW_STEPS = 50
FEW_HELD_OUT = 20
MANY_TRUNCATED = 0.05
MARKS = "⟦", "⟧"  # around what carries loss, in text_with_mask
_TEMPLATES = {
    "instruction": INSTRUCTION_LAYOUT,
    "prompt_completion": "prompt, then completion, as they stand",
    "text": "the text as it stands",
    "preference": "the prompt, then either answer; conversations by the tokenizer's chat template",
}


def counted(rows: Rows, tokeniser: Tokeniser | None) -> dict[str, Any]:
    """What is known from reading alone, and why rows were dropped.

    The reasons: duplicate, in_evaluation_data, over_long, answer_cut_off (no token of an answer
    is left within the limit), no_answer_to_learn (every message has weight 0).
    """
    shape = rows.shape
    dropped = rows.dropped + (tokeniser.dropped if tokeniser else Counter[str]())
    name = shape.name if shape else None
    return {
        "shape": name,
        "columns": shape.columns if shape else {},
        "template": _TEMPLATES.get(name or "", "the tokenizer's chat template"),
        "rows_read": rows.read,
        "dropped": dict(dropped),
        "truncated": tokeniser.truncated if tokeniser else 0,
    }


def measured(tally: Tally, tokenizer: Frozen) -> dict[str, Any]:
    """What is known from tokenising, one row shown among it."""
    return {
        "rows_train": tally.rows_train,
        "rows_eval": tally.rows_held_out,
        "tokens_train": tally.tokens_train,
        "lengths": tally.length_summary(),
        "length_histogram": tally.length_histogram(),
        "masked_share": round(tally.masked_share, 4),
        "example": _example(tally, tokenizer),
    }


def planned(tally: Tally, sequences: int, steps: Steps, *, packed: bool) -> dict[str, Any]:
    """What a run will be."""
    return {
        "packed": packed,
        "sequences": sequences,
        "steps_per_epoch": steps.per_epoch,
        "total_steps": steps.total,
        "tokens_per_step": round(tally.tokens_train / steps.per_epoch),
    }


def warnings(spec: JobSpec, rows: Rows, verdict: dict[str, Any]) -> list[str]:
    """What a person should look at before spending GPU time, each with what to do."""
    found = []
    total, trained = verdict.get("total_steps"), verdict["rows_train"]
    if total is not None and total < FEW_STEPS:
        found.append(
            f"only {total} optimizer steps: little is learnt under {FEW_STEPS}; bring more rows,"
            " or raise epochs or lower gradient_accumulation"
        )
    held_out = verdict["rows_eval"]
    if held_out == 0 and (spec.evaluate or spec.eval_every_steps):
        found.append(
            "no row is held out, so the job is not evaluated; raise validation_fraction or"
            " give eval_dataset"
        )
    elif spec.evaluate and held_out < FEW_HELD_OUT:
        found.append(f"only {held_out} rows are held out: the evaluation's figures are rough")
    if verdict["truncated"] > MANY_TRUNCATED * (trained + held_out):
        found.append(
            f"{verdict['truncated']} rows are cut off at {spec.max_sequence_length} tokens and"
            " lose their end; raise max_sequence_length or set over_long=drop"
        )
    if rows.run_together > (trained + held_out) / 2:
        found.append(
            "prompt and completion meet without a space or line break and run into each other;"
            " map the columns to instruction and output for a layout that keeps them apart"
        )
    if rows.cut_turns:
        found.append(f"in {rows.cut_turns} conversations turns after the last answer were left off")
    return found


def _example(tally: Tally, tokenizer: Frozen) -> dict[str, Any] | None:
    row = tally.shown
    if row is None:
        return None
    shown = _shown(row, tokenizer)
    if row.rejected is not None:
        shown["rejected"] = _shown(row.rejected, tokenizer)
    return shown


def _shown(row: TokenRow, tokenizer: Frozen) -> dict[str, Any]:
    """The row in pieces, without what looks private: this stands in the job's record."""
    pieces = segments(row, tokenizer.decode)
    for piece, text in zip(pieces, masked_pieces([p["text"] for p in pieces]), strict=True):
        piece["text"] = text
    opened, closed = MARKS
    marked = (f"{opened}{p['text']}{closed}" if p["loss"] else p["text"] for p in pieces)
    return {
        "text_with_mask": "".join(marked),
        "segments": pieces,
        "tokens": len(row.ids),
        "loss_tokens": loss_tokens(row),
    }
