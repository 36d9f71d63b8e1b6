"""Rows of text: instruction/input/output, prompt/completion, and plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training_data.formats import chat
from training_data.formats.rows import Plain, Row
from training_data.formats.values import missing, required_text, text
from training_data.templates import instruction_prompt


def instruction(record: dict[str, Any], columns: Mapping[str, str]) -> Row:
    return Plain(
        instruction_prompt(
            required_text(record, columns["instruction"]),
            text(record, columns["input"]),
            text(record, columns["system"]),
        ),
        required_text(record, columns["output"]),
    )


def prompt_completion(record: dict[str, Any], columns: Mapping[str, str]) -> Row:
    """Prompt and completion as they stand, nothing put between; TRL does the same.

    Both may also be lists of messages, which TRL allows too: then it is a conversation whose
    completion carries the loss.
    """
    prompt, completion = record.get(columns["prompt"]), record.get(columns["completion"])
    if isinstance(prompt, list) and isinstance(completion, list):
        return chat.conversation(
            [*prompt, *completion], record, columns, learn_from=len(prompt), name=columns["prompt"]
        )
    if columns["prompt"] not in record:
        raise missing(record, columns["prompt"])
    system = text(record, columns["system"])
    before = text(record, columns["prompt"])
    if system.strip():
        before = f"{system}\n\n{before}"
    return Plain(before, required_text(record, columns["completion"]))


def text_only(record: dict[str, Any], columns: Mapping[str, str]) -> Row:
    return Plain("", required_text(record, columns["text"]))
