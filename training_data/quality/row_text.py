"""A row as the texts that its quality is told by."""

from __future__ import annotations

import json
from dataclasses import dataclass

from training_data.formats.rows import Chat, Pair, Row


@dataclass(slots=True)
class RowText:
    """`said` is what is compared, where that is not prompt and answer as they stand."""

    prompt: str
    answer: str
    said: str | None = None
    further: str = ""  # that may hold something private, beside prompt and answer

    @property
    def everything(self) -> str:
        return f"{self.prompt}\n{self.answer}\n{self.further}"


def row_text(row: Row) -> RowText:
    """A conversation's answer is its last one; all before it is the prompt. A pair's answer is the
    one preferred."""
    if isinstance(row, Pair):
        text = row_text(row.chosen)
        text.further += f"\n{row_text(row.rejected).answer}"
        return text
    if not isinstance(row, Chat):
        return RowText(row.prompt, row.answer)
    contents = [_content(message) for message in row.messages]
    # A system message says the same in most rows; what the others say makes the row what it is.
    said = [
        content
        for message, content in zip(row.messages, contents, strict=True)
        if message["role"] != "system"
    ]
    further = "" if row.tools is None else json.dumps(row.tools, ensure_ascii=False)
    return RowText("\n".join(contents[:-1]), contents[-1], "\n".join(said), further)


def _content(message: dict[str, object]) -> str:
    """What a message says, and what it calls: an answer that only calls a tool is not empty."""
    content = str(message["content"])
    rest = {key: message[key] for key in message if key not in ("role", "content")}
    if not rest:
        return content
    return f"{content}\n{json.dumps(rest, ensure_ascii=False)}".strip()
