"""An option for every field of JobSpec, made from the model: name, type, help, range, default."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from models.errors import InputError, SpecError
from models.spec import JobSpec

# The first field of each group of models/spec.py, and the group's title in --help.
_PANELS = {
    "version": "The job",
    "base_model": "The base model",
    "dataset": "The data",
    "method": "The method",
    "epochs": "The optimisation",
    "checkpoint_every_steps": "The run",
    "evaluate": "The evaluation",
    "priority": "Placement and records",
}
_OTHER_NAMES = {"columns": ("--map", "--columns")}
_METAVARS = {"columns": "ROLE=COLUMN", "gpu_labels": "KEY=VALUE", "metadata": "KEY=VALUE"}


def with_spec_options(
    fields: Collection[str] = JobSpec.model_fields,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Spell out a command's `**options` as one option for each of `fields`."""

    def spell_out(command: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(command, eval_str=True)
        kept = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        whole = own.replace(parameters=[*kept, *_options(fields)])
        # A function has no such attribute by itself; inspect.signature looks for it first.
        setattr(command, "__signature__", whole)  # noqa: B010 (as an assignment mypy would refuse it)
        return command

    return spell_out


def given_fields(options: dict[str, Any]) -> dict[str, Any]:
    """The fields that were set on the command line, as JobSpec takes them. Raises SpecError."""
    return {
        name: _parsed(name, value)
        for name, value in options.items()
        if value is not None and value not in ([], ())
    }


def in_options(error: SpecError, command: str) -> SpecError:
    """The same error with the option's name instead of the field's."""
    field = (error.where or "").partition(".")[0]
    if field not in JobSpec.model_fields:
        return error
    told = error.remedy or ""
    remedy = f"{command} --help" if not told or "submit --help" in told else told
    what = error.what.replace("Field required", "is required", 1)
    return SpecError(what, where=option_name(field), remedy=remedy)


def option_name(field: str) -> str:
    return _OTHER_NAMES.get(field, (f"--{field.replace('_', '-')}",))[0]


def read_spec_file(path: Path) -> dict[str, Any]:
    """Fields from a .json, .yaml or .toml file; paths in it are relative to its folder.

    Raises InputError.
    """
    try:
        text = path.read_text()
        fields = _PARSERS[path.suffix.lower()](text)
    except KeyError:
        raise InputError(
            "a job file ends in .json, .yaml, .yml or .toml", where=str(path)
        ) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except ValueError as error:  # of the JSON, YAML and TOML parsers alike
        raise InputError(f"is not well-formed: {error}", where=str(path)) from None
    if not isinstance(fields, dict):
        raise InputError("must hold one object with JobSpec's fields", where=str(path))
    return {name: _beside(path.parent, name, value) for name, value in fields.items()}


def _options(fields: Collection[str]) -> list[inspect.Parameter]:
    panel = ""
    made = []
    for name, field in JobSpec.model_fields.items():
        panel = _PANELS.get(name, panel)
        if name not in fields:
            continue
        made.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    _option_type(field.annotation) | None,
                    typer.Option(
                        *_option_names(name, field),
                        help=_help(field, whole="dataset" in fields),
                        metavar=_METAVARS.get(name),
                        rich_help_panel=panel,
                        show_default=False,
                    ),
                ],
            )
        )
    return made


def _option_names(name: str, field: FieldInfo) -> tuple[str, ...]:
    names = _OTHER_NAMES.get(name, (f"--{name.replace('_', '-')}",))
    if field.annotation is bool:
        return (f"{names[0]}/--no-{names[0].removeprefix('--')}",)
    return names


def _option_type(annotation: Any) -> Any:
    """What typer shall read: the same plain type, a list where several values may come."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        # `X | None` is X; `"auto" | tuple` is a list, whose only element may be "auto".
        return _option_type(next(a for a in reversed(arguments) if a is not types.NoneType))
    if origin is Literal:
        return type(arguments[0]) if isinstance(arguments[0], int) else annotation
    if origin in (tuple, dict):
        return list[str]
    return annotation


def _help(field: FieldInfo, *, whole: bool) -> str:
    text = field.description or ""
    if field.is_required():
        # Data can be looked at without a base model.
        return f"{text} \\[required]" if whole else text
    default = field.get_default(call_default_factory=True, validated_data={})
    if default in (None, PydanticUndefined, {}, ()):
        return text
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    if isinstance(default, bool):
        default = "yes" if default else "no"
    return f"{text} \\[default: {default}]"


def _parsed(name: str, value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        return value
    if name in _METAVARS:
        pairs = [item.partition("=") for item in value]
        for key, equals, right in pairs:
            if not (key and equals and right):
                raise SpecError(
                    f"{key or equals}{equals if key else ''}{right} is not {_METAVARS[name]}",
                    where=option_name(name),
                    remedy="write it like --map prompt=question",
                )
        return {key: right for key, _, right in pairs}
    # `--track wandb --track mlflow` and `--track wandb,mlflow` alike
    return [part.strip() for item in value for part in item.split(",")]


def _beside(folder: Path, name: str, value: Any) -> Any:
    """A path that exists beside the file is meant; anything else is left as it was written."""
    if name in {"base_model", "dataset", "eval_dataset"} and isinstance(value, str):
        there = folder / Path(value).expanduser()
        if "://" not in value and there.exists():
            return str(there.absolute())
    return value


def _parse_json(text: str) -> Any:
    import json

    return json.loads(text)


def _parse_yaml(text: str) -> Any:
    import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _parse_toml(text: str) -> Any:
    import tomllib

    return tomllib.loads(text)


_PARSERS: dict[str, Callable[[str], Any]] = {
    ".json": _parse_json,
    ".yaml": _parse_yaml,
    ".yml": _parse_yaml,
    ".toml": _parse_toml,
}
