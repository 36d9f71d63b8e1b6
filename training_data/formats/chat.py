"""Conversations: OpenAI's `messages` (role, content, weight) and ShareGPT's `conversations`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from training_data.formats.rows import Chat
from training_data.formats.values import kind, missing, text
from training_data.problems import RowError

_ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
# What a chat template may read beside role and content; anything else is left out, `weight` too.
_PASSED_ON = ("name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning", "thinking")
_ROLE_NAMES = "system, user, assistant, tool (ShareGPT: human, gpt)"


def messages(record: dict[str, Any], columns: Mapping[str, str]) -> Chat:
    return _column(record, columns, "messages")


def conversations(record: dict[str, Any], columns: Mapping[str, str]) -> Chat:
    return _column(record, columns, "conversations")


def _column(record: dict[str, Any], columns: Mapping[str, str], role: str) -> Chat:
    name = columns[role]
    if name not in record:
        raise missing(record, name)
    turns = record[name]
    if not isinstance(turns, list) or not turns:
        found = "empty" if turns == [] else kind(turns)
        raise RowError(
            f"`{name}` is {found}, not a list of messages",
            'write [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]',
        )
    return conversation(turns, record, columns, learn_from=0, name=name)


def conversation(
    turns: list[Any],
    record: dict[str, Any],
    columns: Mapping[str, str],
    *,
    learn_from: int,
    name: str,
) -> Chat:
    """A checked conversation. Assistant turns from `learn_from` on carry loss, but for weight 0.

    Turns after the last answer are left off: nothing in them is learnt. Raises RowError.
    """
    read = [_message(turn, f"{name}[{number}]") for number, turn in enumerate(turns)]
    learn = [
        message["role"] == "assistant" and weight != 0 and number >= learn_from
        for number, (message, weight) in enumerate(read)
    ]
    found = [message for message, _ in read]
    for number, message in enumerate(found):
        if learn[number] and not _says_something(message):
            raise RowError(
                f"`{name}[{number}]`: the assistant's answer is empty",
                "fill it in, set its weight to 0, or remove the row",
            )
    last = max((i for i, m in enumerate(found) if m["role"] == "assistant"), default=None)
    if last is None:
        raise RowError(f"`{name}` has no assistant message", "add the answer to be learnt")
    cut = len(found) - last - 1
    found, learn = found[: last + 1], learn[: last + 1]
    system = text(record, columns["system"])
    if system.strip() and found[0]["role"] != "system":
        found.insert(0, {"role": "system", "content": system})
        learn.insert(0, False)
    return Chat(found, learn, _tools(record, columns), cut)


def _message(turn: Any, name: str) -> tuple[dict[str, Any], float]:
    """One message in either style, and its weight."""
    if not isinstance(turn, dict):
        raise RowError(
            f"`{name}` is {kind(turn)}, not a message", 'write {"role": …, "content": …}'
        )
    role_key = "role" if turn.get("role") is not None else "from"
    said = turn.get(role_key)
    role = _ROLES.get(said.lower()) if isinstance(said, str) else None
    if role is None:
        shown = json.dumps(said, ensure_ascii=False, default=str)[:40]
        raise RowError(f"`{name}` has the role {shown}", f"use one of: {_ROLE_NAMES}")
    content = _content(turn.get("content" if role_key == "role" else "value"), name)
    message: dict[str, Any] = {"role": role, "content": content}
    for key in _PASSED_ON:
        if turn.get(key) is not None:
            message[key] = turn[key]
    if "tool_calls" in message:
        message["tool_calls"] = _tool_calls(message["tool_calls"], name)
    weight = turn.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise RowError(f"`{name}.weight` is {weight!r}", "use 0 (no loss) or 1 (loss)")
    return message, 1 if weight is None else weight


def _content(content: Any, name: str) -> str:
    """A message's text. OpenAI also writes a list of parts, of which only text can be used."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if all(isinstance(part, str) for part in parts):
            return "".join(map(str, parts))
        raise RowError(f"`{name}` has a part that is no text", "leave images and sound out")
    raise RowError(f"`{name}`: the content is {kind(content)}, not text", "write it as text")


def _tool_calls(calls: Any, name: str) -> list[dict[str, Any]]:
    """Tool calls as chat templates take them: OpenAI's arguments are JSON in a string."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RowError(f"`{name}.tool_calls` is no list of calls", "write it as OpenAI does")
    read = []
    for call in calls:
        function = call.get("function")
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            try:
                arguments = json.loads(function["arguments"])
            except ValueError:
                raise RowError(
                    f"`{name}.tool_calls`: the arguments are no JSON", "write them as an object"
                ) from None
            call = {**call, "function": {**function, "arguments": arguments}}  # noqa: PLW2901 - a copy, not the user's
        read.append(call)
    return read


def _says_something(message: dict[str, Any]) -> bool:
    return bool(message["content"].strip() or message.get("tool_calls"))


def _tools(record: dict[str, Any], columns: Mapping[str, str]) -> list[Any] | None:
    tools = record.get(columns.get("tools", "tools"))
    if tools is None or tools in ("", []):
        return None
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError:
            tools = None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError("`tools` is no list of tools", "write it as OpenAI does")
    return tools
