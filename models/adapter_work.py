"""What an export or a chat is asked to do: the column `jobs.work`, read by any version's worker."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.errors import InputError

Format = Literal["adapter", "merged", "gguf-ready"]
Subject = Literal["tuned", "base"]
# How what is asked becomes a prompt; auto: by the chat template where there is one, else plain.
Layout = Literal["auto", "chat", "instruction", "plain"]


class _Work(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # a later version may say more

    reference: str  # as it was asked for: a job's id, name/version
    url: str  # of the trained adapter, or of the model for method full
    kind: Literal["adapter", "model"]
    digest: str | None = None  # of its weights files

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """Raises InputError for a row that no version of ours has written."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise InputError(
                f"what is asked of the adapter cannot be read: {str(error).partition(chr(10))[0]}",
                where="jobs.work",
                remedy="start it again",
            ) from None


class ExportWork(_Work):
    format: Format


class ChatWork(_Work):
    layout: Layout = "auto"
    max_new_tokens: int = Field(256, ge=1, le=32_768)
    temperature: float = Field(0.0, ge=0, le=5)  # 0: the likeliest token, always


def layout_of(shape: str | None) -> Layout:
    """In what way a model was asked that was trained on data of this shape (see the verdict)."""
    match shape:
        case "instruction":
            return "instruction"
        case "prompt_completion" | "text":
            return "plain"
    return "auto"
