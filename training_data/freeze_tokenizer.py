"""Run as a process of its own: loads a tokenizer as transformers does and writes down what it is.

    python -m training_data.freeze_tokenizer FOLDER TARGET [--trust-remote-code]

Which tokenizer a folder means is decided by several hundred lines of transformers (classes that
rebuild the tokenizer from its vocabulary, BOS and EOS options, known faults of published files),
so `tokenizer.json` alone is not the truth. But AutoTokenizer imports torch where it is installed:
300 MB and 2 s in a process that tokenises text. Here it runs without torch, and the result, a
plain `tokenizers` JSON, is read by the process that does the work.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# Makes `find_spec("torch")` answer None: transformers then works without it, as on a machine
# that has only the control image.
sys.modules["torch"] = None  # type: ignore[assignment]


def freeze(folder: str, target: Path, *, trust_remote_code: bool) -> dict[str, Any]:
    """Write the tokenizer to `target`; what else tokenising needs to know, JSON types only.

    Raises ValueError with the reason where a tokenizer cannot be used.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=trust_remote_code
    )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"{type(tokenizer).__name__} has no fast form (tokenizer.json)")
    if tokenizer.eos_token is None:
        raise ValueError("it names no end-of-sequence token (eos_token)")
    backend.no_truncation()
    backend.no_padding()
    content = json.loads(backend.to_str())
    _keep_spaces_in_offsets(content.get("post_processor"))
    added = backend.get_added_tokens_decoder().values()
    write(target, content)
    return {
        "eos": str(tokenizer.eos_token),
        "eos_id": int(tokenizer.eos_token_id),
        "byte_level": _byte_level(content),
        "nfc": content["normalizer"] is not None,
        "special": [token.content for token in added if token.special],
        "names": {name: str(value) for name, value in tokenizer.special_tokens_map.items()},
        "template": _template(tokenizer, tools=None),
        "tool_template": _template(tokenizer, tools=[{}]),
    }


def _keep_spaces_in_offsets(processor: dict[str, Any] | None) -> None:
    """Offsets that include a token's leading space, so that every character belongs to a token.

    Changes no token, only what `char_to_token` can find.
    """
    if processor is None:
        return
    if "trim_offsets" in processor:
        processor["trim_offsets"] = False
    for part in processor.get("processors", []):
        _keep_spaces_in_offsets(part)


def _byte_level(content: dict[str, Any]) -> bool:
    """Whether each token stands for as many bytes as it has letters; NFC apart, see token_spans."""
    normalizer, splitter = content["normalizer"], content["pre_tokenizer"] or {}
    parts = splitter.get("pretokenizers", [splitter])
    return (
        content["model"].get("type") == "BPE"
        and (normalizer is None or normalizer["type"] == "NFC")
        and any(part.get("type") == "ByteLevel" for part in parts)
    )


def _template(tokenizer: Any, tools: list[Any] | None) -> str | None:
    try:
        return str(tokenizer.get_chat_template(tools=tools))
    except ValueError:
        return None


def write(target: Path, content: dict[str, Any]) -> None:
    """Whole or not at all: another process may freeze the same tokenizer."""
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    partial.rename(target)


def main(folder: str, target: str, *options: str) -> None:
    """Leaves TARGET.tokenizer.json and then TARGET.json, which holds the facts or the error."""
    try:
        facts = freeze(
            folder,
            Path(f"{target}.tokenizer.json"),
            trust_remote_code="--trust-remote-code" in options,
        )
    except Exception as error:  # noqa: BLE001 - whatever a model's files provoke, the reason is told
        facts = {"error": f"{type(error).__name__}: {error}"}
    write(Path(f"{target}.json"), facts)


if __name__ == "__main__":
    main(*sys.argv[1:])
