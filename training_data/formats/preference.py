"""Preference pairs: TRL's prompt/chosen/rejected and OpenAI's input/preferred/non-preferred."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training_data.formats import chat
from training_data.formats.rows import Chat, Pair, Plain
from training_data.formats.values import kind, missing, required_text, text
from training_data.problems import RowError


def preference(record: dict[str, Any], columns: Mapping[str, str]) -> Pair:
    """Text or lists of messages. Without a prompt, it is what both answers begin with."""
    for role in ("chosen", "rejected"):
        if columns[role] not in record:
            raise missing(record, columns[role])
    answers = [record[columns[role]] for role in ("chosen", "rejected")]
    listed = [isinstance(answer, list) for answer in answers]
    if any(listed) and not all(listed):
        raise RowError(
            f"`{columns['chosen']}` is {kind(answers[0])} and `{columns['rejected']}`"
            f" {kind(answers[1])}",
            "write both as text, or both as lists of messages",
        )
    prompt = record.get(columns["prompt"])
    if all(listed):
        return _conversations(record, columns, prompt, *answers)
    if prompt is None:
        pair = _by_common_beginning(record, columns)
    else:
        before = text(record, columns["prompt"])
        system = text(record, columns["system"])
        if system.strip():
            before = f"{system}\n\n{before}"
        pair = Pair(
            Plain(before, required_text(record, columns["chosen"])),
            Plain(before, required_text(record, columns["rejected"])),
        )
    return _unlike(pair, columns["chosen"], columns["rejected"])


def openai_preference(record: dict[str, Any], columns: Mapping[str, str]) -> Pair:
    """OpenAI's rows: `input` has the messages (and tools), each output one assistant message."""
    given = record.get(columns["input"])
    if not isinstance(given, dict):
        raise RowError(
            f"`{columns['input']}` is {kind(given)}, not an object with messages",
            'write {"messages": [{"role": "user", "content": "…"}]}',
        )
    asked = _messages(given, "messages", f"{columns['input']}.messages")
    names = columns["preferred_output"], columns["non_preferred_output"]
    sides = [_side(asked, _messages(record, name, name), given, name) for name in names]
    return _unlike(Pair(*sides), *names)


def _conversations(
    record: dict[str, Any],
    columns: Mapping[str, str],
    prompt: Any,
    chosen: list[Any],
    rejected: list[Any],
) -> Pair:
    names = columns["chosen"], columns["rejected"]
    if isinstance(prompt, list):
        asked, begun = prompt, 0
    else:  # absent, or its text beside conversations that hold it: ultrafeedback's way
        begun = _common(chosen, rejected)
        asked = chosen[:begun]
    outside = {columns.get("tools", "tools"): record.get(columns.get("tools", "tools"))}
    outside[columns["system"]] = record.get(columns["system"])
    sides = [
        _side(asked, answer[begun:], outside, name, columns)
        for answer, name in zip((chosen, rejected), names, strict=True)
    ]
    return _unlike(Pair(*sides), *names)


def _side(
    asked: list[Any],
    answer: list[Any],
    beside: dict[str, Any],
    name: str,
    columns: Mapping[str, str] | None = None,
) -> Chat:
    """The conversation with one of the two answers, which alone counts."""
    if not answer:
        raise RowError(f"`{name}` has no message of its own", "add the assistant's answer")
    roles = {"system": "system"} if columns is None else columns
    found = chat.conversation(
        [*asked, *answer], beside, roles, learn_from=len(asked), name=f"prompt and {name}"
    )
    if not any(found.learn):
        raise RowError(f"`{name}` has no assistant message", "add the answer to be compared")
    return found


def _messages(record: dict[str, Any], key: str, name: str) -> list[Any]:
    found = record.get(key)
    if not isinstance(found, list) or not found:
        raise RowError(
            f"`{name}` is {'empty' if found == [] else kind(found)}, not a list of messages",
            'write [{"role": "assistant", "content": "…"}]',
        )
    return found


def _common(chosen: list[Any], rejected: list[Any]) -> int:
    """How many messages both begin with; the last of each is an answer, whatever it says."""
    most = min(len(chosen), len(rejected)) - 1
    return next((i for i in range(most) if chosen[i] != rejected[i]), max(most, 0))


def _by_common_beginning(record: dict[str, Any], columns: Mapping[str, str]) -> Pair:
    """Texts without a prompt, as TRL takes them apart: where they begin to differ."""
    chosen, rejected = (required_text(record, columns[role]) for role in ("chosen", "rejected"))
    most = min(len(chosen), len(rejected))
    begun = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    if begun and chosen[begun - 1] == " ":  # a word's space belongs to the word
        begun -= 1
    prompt = chosen[:begun]
    return Pair(Plain(prompt, chosen[begun:]), Plain(prompt, rejected[begun:]))


def _unlike(pair: Pair, chosen: str, rejected: str) -> Pair:
    if pair.chosen == pair.rejected:
        raise RowError(
            f"`{chosen}` and `{rejected}` say the same", "give two different answers, or remove it"
        )
    for side, name in ((pair.chosen, chosen), (pair.rejected, rejected)):
        if isinstance(side, Plain) and not side.answer:
            raise RowError(
                f"`{name}` ends where the two begin to differ", "add a `prompt`, or the rest of it"
            )
    return pair
