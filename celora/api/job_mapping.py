"""From a request to a JobSpec. Nothing here asks the database: ids of files are resolved before."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from celora.api.errors import ApiError
from celora.api.hyperparameters import DpoHyperparameters, Hyperparameters, spec_fields
from celora.api.job_requests import CreateJob
from celora.api.model_names import shown_suffix
from models.errors import SpecError
from models.settings import settings
from models.spec import JobSpec, parse_spec

_CHECKPOINT_EVERY = JobSpec.model_fields["checkpoint_every_steps"].default
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# Models that nobody has but OpenAI: a hub would only be asked in vain.
_ELSEWHERE = re.compile(r"(gpt-\d|chatgpt-|o\d(-|$)|davinci-002$|babbage-002$).*")


@dataclass(frozen=True, slots=True)
class Files:
    """The data of a request, as JobSpec names it, and how many rows it has where that is known."""

    training: str
    validation: str | None
    rows: int | None


def openai_spec(request: CreateJob, files: Files, *, seed: int) -> JobSpec:
    """Raises ApiError, SpecError."""
    given = _celora_options(request)
    fields = _own_fields(request, files)
    fields |= _method(request, files.rows, given)
    if files.validation is not None and "eval_every_steps" not in given:
        # Whoever brings rows to validate on looks for their loss at each checkpoint.
        fields["eval_every_steps"] = given.get("checkpoint_every_steps") or _CHECKPOINT_EVERY
    if request.seed is not None or "seed" not in given:
        fields["seed"] = seed if request.seed is None else request.seed
    if request.suffix is not None:
        fields["name"] = shown_suffix(request.suffix) or None
        if "adapter_name" not in given:  # its adapter is the next version of that name
            fields["adapter_name"] = fields["name"]
    for name in given:
        if name in fields:
            raise ApiError(
                400,
                f"celora.{name}: the request says this itself already",
                code="given_twice",
                param=f"celora.{name}",
            )
    try:
        return parse_spec({**given, **fields})
    except SpecError as error:
        raise _where_it_was_said(error, given) from None


def short_spec(fields: Mapping[str, Any], files: Files) -> JobSpec:
    """Raises ApiError, SpecError."""
    return parse_spec(
        {
            **fields,
            "base_model": base_model(fields["base_model"], param="base_model"),
            "dataset": files.training,
            "eval_dataset": files.validation,
        }
    )


def base_model(name: str, *, param: str) -> str:
    """The base that a hub name or an alias means. Paths and URLs are the administrator's to name.

    Raises ApiError.
    """
    known = aliases()
    if name in known:
        return known[name]
    if name.startswith("scripted:"):
        return name  # refused later where it is not allowed
    if _ELSEWHERE.fullmatch(name):
        raise ApiError(
            400,
            f"model {name!r} is OpenAI's own; name a model of the hub (owner/model), or have the"
            " administrator set an alias for it (CELORA_MODEL_ALIASES)",
            code="model_not_found",
            param=param,
        )
    if not _HUB_NAME.fullmatch(name) or "://" in name:
        raise ApiError(
            400,
            f"model {name!r} is neither a hub name (owner/model) nor an alias",
            code="model_not_found",
            param=param,
        )
    return name


def aliases() -> dict[str, str]:
    """Alias → base model, from CELORA_MODEL_ALIASES."""
    pairs = (pair.partition("=") for pair in settings().model_aliases.split(",") if "=" in pair)
    return {alias.strip(): base.strip() for alias, _, base in pairs}


def kept(request: CreateJob) -> dict[str, Any]:
    """What the job's answers repeat; it stays with its row."""
    told = request.model_dump(
        include={"model", "training_file", "validation_file", "suffix", "integrations"},
        exclude_none=True,
    )
    return told | {"digest": digest(request)}


def digest(request: BaseModel) -> str:
    """Of what was sent: the same key with another body is no repetition."""
    sent = request.model_dump(mode="json", exclude_unset=True)
    text = json.dumps([type(request).__name__, sent], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _celora_options(request: CreateJob) -> dict[str, Any]:
    if request.celora is None:
        return {}
    options: BaseModel = request.celora
    return options.model_dump(exclude_unset=True)


def _own_fields(request: CreateJob, files: Files) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "base_model": base_model(request.model, param="model"),
        "dataset": files.training,
        "metadata": request.metadata or {},
    }
    if files.validation is not None:
        fields["eval_dataset"] = files.validation
    if request.integrations:
        run = request.integrations[0].wandb
        fields |= {"track": ("wandb",), "track_project": run.project}
        if run.name is not None:
            fields["track_name"] = run.name
        if run.entity is not None:
            fields["track_entity"] = run.entity
        if run.tags:
            fields["track_tags"] = tuple(run.tags)
    return fields


def _method(request: CreateJob, rows: int | None, given: Mapping[str, Any]) -> dict[str, Any]:
    method = request.method
    kind = "supervised" if method is None else method.type
    if kind == "reinforcement":
        raise ApiError(
            400,
            "method 'reinforcement' is not supported: there are no graders here; use 'supervised'"
            " or 'dpo'",
            code="unsupported_method",
            param="method.type",
        )
    asked = _numbers(request, kind)
    if kind == "dpo":
        return {"method": "dpo"} | spec_fields(asked, method="dpo", rows=rows, chosen=set(given))
    named = given.get("method", "lora")
    if named not in ("lora", "qlora", "full"):
        raise ApiError(
            400,
            "celora.method: lora, qlora or full; for preference pairs set method.type to 'dpo'",
            code="invalid_value",
            param="celora.method",
        )
    return spec_fields(asked, method=named, rows=rows, chosen=set(given))


def _numbers(request: CreateJob, kind: str) -> Hyperparameters:
    """Those at the method; what it leaves out, from the older place at the top.

    A block of another method would be passed over in silence: it is refused.
    """
    method = request.method
    for other in ("supervised", "dpo", "reinforcement"):
        if other != kind and getattr(method, other, None) is not None:
            raise ApiError(
                400,
                f"method.{other}: method.type is {kind!r}",
                code="invalid_value",
                param=f"method.{other}",
            )
    within = getattr(method, kind, None)
    newer = (within and within.hyperparameters) or Hyperparameters()
    older = request.hyperparameters or Hyperparameters()
    form = DpoHyperparameters if kind == "dpo" else Hyperparameters
    return form.model_validate(
        older.model_dump(exclude_none=True) | newer.model_dump(exclude_none=True)
    )


_OPENAI_NAMES = {
    "base_model": "model",
    "dataset": "training_file",
    "eval_dataset": "validation_file",
    "learning_rate": "hyperparameters.learning_rate_multiplier",
}


def _where_it_was_said(error: SpecError, given: Mapping[str, Any]) -> SpecError:
    """The error with the field's name as the caller wrote it."""
    field = (error.where or "").partition(".")[0]
    if field in given:
        where: str | None = f"celora.{error.where}"
    else:
        where = _OPENAI_NAMES.get(field, error.where)
    return SpecError(error.what, where=where)
