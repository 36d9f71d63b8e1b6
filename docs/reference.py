"""Writes the tables of docs/jobspec.md, settings.md, commands.md, guide.md and planning.md.

Run `python docs/reference.py` after a change of JobSpec, Settings or the command. Each table stands
between two marker lines; what is around them is written by hand. A test holds them in step.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import typer
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from models.settings import Settings
from models.spec import JobSpec

DOCS = Path(__file__).parent
BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"

# The first field of each group, in the order of the class.
GROUPS = {
    "version": "Name",
    "base_model": "The base model",
    "dataset": "The data",
    "method": "The method",
    "epochs": "The optimisation",
    "checkpoint_every_steps": "The run",
    "evaluate": "The evaluation",
    "priority": "Placement and records",
}


def main() -> None:
    for page, table in pages().items():
        path = DOCS / page
        path.write_text(with_table(path.read_text(), table))
        print(f"wrote {path}")


def pages() -> dict[str, str]:
    """Page name → the table it holds."""
    return {
        "jobspec.md": jobspec_table(),
        "settings.md": settings_table(),
        "commands.md": commands_table(),
        "guide.md": "\n" + guide_text() + "\n",
        "planning.md": planning_table(),
    }


def with_table(page: str, table: str) -> str:
    """The page with `table` between its markers."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def jobspec_table() -> str:
    return "\n".join(_jobspec_lines())


def _jobspec_lines() -> Iterator[str]:
    for name, field in JobSpec.model_fields.items():
        if name in GROUPS:
            yield f"\n## {GROUPS[name]}\n"
            yield "| field | type | default | meaning |"
            yield "| --- | --- | --- | --- |"
        yield _row(f"`{name}`", _type(field.annotation), _default(field), field.description)


def settings_table() -> str:
    lines = ["| variable | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        variable = f"`CELORA_{name.upper()}`"
        lines.append(_row(variable, _type(field.annotation), _default(field), field.description))
    return "\n".join(lines)


def commands_table() -> str:
    """Every command with the first line of its help; a group's commands one by one."""
    from celora.cli import app

    lines = ["| command | what it does |", "| --- | --- |"]
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        parts = dict(getattr(command, "commands", {"": command}))
        if getattr(command, "invoke_without_command", False):
            parts = {"": command} | parts
        for sub, part in parts.items():
            lines.append(_row(f"`{f'celora {name} {sub}'.strip()}`", _first_line(part.help)))
    return "\n".join(lines)


def guide_text() -> str:
    from celora.guide import markdown

    return markdown()


def planning_table() -> str:
    """What is planned for models everybody knows, each method; GB are 10⁹ bytes."""
    from celora.planning.known import DEMO_BASE, LLAMA_8B, LLAMA_70B, planned

    trained_bytes = "adapter, gradients, optimizer"
    titles = ["model", "method", "trained", "weights", trained_bytes]
    titles += ["activations", "casts", "reference", "low / expected / high"]
    lines = [_row(*titles), _row(*["---"] * len(titles))]
    models = {"8B": LLAMA_8B, "70B": LLAMA_70B, "`make demo`'s": DEMO_BASE}
    methods: dict[str, dict[str, Any]] = {
        "lora": {"method": "lora"},
        "qlora": {"method": "qlora"},
        "full": {"method": "full"},
        "full, `bf16_pure`": {"method": "full", "bf16_pure": True},
        "dpo": {"method": "dpo"},
        "dpo on qlora": {"method": "dpo", "dpo_base": "qlora"},
    }
    for name, model in models.items():
        digits = 3 if model is DEMO_BASE else 2
        for method, fields in methods.items():
            memory = planned(model, **fields)
            parts = {part.name: part.expected / 1e9 for part in memory.parts}
            trained = model.parameters if "full" in method else model.trainable
            sums = (
                parts["weights"],
                parts["adapter"] + parts["gradients"] + parts["optimizer"],
                parts["activations"],
                parts.get("casts"),
                parts.get("reference"),
            )
            told = ["—" if value is None else f"{value:,.{digits}f}" for value in sums]
            whole = (memory.low, memory.expected, memory.high)
            span = " / ".join(f"{value / 1e9:,.1f}" for value in whole)
            lines.append(_row(name, method, f"{trained:,}", *told, span))
    return "\n".join(lines)


def _first_line(help_text: str) -> str:
    return help_text.strip().partition("\n")[0].rstrip(".")


def _row(*cells: str | None) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _type(annotation: Any) -> str:
    """An annotation in words a user knows. Raises KeyError for a kind not met before."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in {Union, types.UnionType}:
        return " or ".join(_type(part) for part in arguments if part is not type(None))
    if origin is tuple:
        return "list of " + _type(arguments[0])
    if origin is dict:
        return "map of text to text"
    if origin is not None:  # Annotated
        return _type(arguments[0])
    words: dict[Any, str] = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true or false",
        Path: "path",
        SecretStr: "secret",
    }
    return words[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ("", (), {}):
        return "none"
    if isinstance(value, tuple):
        return ", ".join(f"`{part}`" for part in value)
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    text = str(value).removesuffix(".0")
    return f"`{text}`"


if __name__ == "__main__":
    main()
