"""/v1/models: what has been fine-tuned, what a job may begin with, and what is served."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from celora.api.caller import Admin, Caller, Reader, no_such
from celora.api.errors import ApiError
from celora.api.job_answers import seconds
from celora.api.job_mapping import aliases
from celora.api.model_names import Named, checkpoint_name, model_name, parse_name
from celora.api.own_models import own_model
from celora.api.serving import served_bases
from models import store
from models.queries import products
from models.queries.fine_tuned import fine_tuned, forget_model
from models.session import transaction
from models.tables import Job

router = APIRouter(prefix="/v1/models", tags=["models"])

ModelName = Annotated[str, Path(max_length=512, description="`ft:base:tenant:suffix:letters`.")]


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class ModelDeleted(BaseModel):
    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True


@router.get("")
async def list_models(request: Request, caller: Reader) -> ModelPage:
    """The tenant's fine-tuned models, aliases of base models, and the bases that vLLM serves."""
    own = await run_in_threadpool(_own, caller)
    served = await served_bases(request.app)
    return ModelPage(data=[*own, *map(_base, [*aliases(), *served])])


@router.get("/{model:path}")
async def retrieve_model(request: Request, caller: Reader, model: ModelName) -> Model:
    """A fine-tuned model of the tenant's own, one of its checkpoints, an alias, a served model."""
    named = parse_name(model)
    if named is None:
        if model in aliases() or model in await served_bases(request.app):
            return _base(model)
        raise no_such("model", model)
    return await run_in_threadpool(_tuned, caller, named, model)


@router.delete("/{model:path}", responses={409: {"description": "Something needs the model."}})
def delete_model(caller: Admin, model: ModelName) -> ModelDeleted:
    """Delete a fine-tuned model's files, with a key of scope `admin`. Its job stays on record."""
    named = parse_name(model)
    if named is None and model in aliases():
        raise ApiError(
            403, "only fine-tuned models can be deleted", code="not_allowed", param="model"
        )
    with transaction() as session:
        if named is None or named.step is not None:
            raise no_such("model", model)
        urls = forget_model(session, own_model(session, caller, model), caller.user)
    for url in urls:
        store.remove(url)  # what is left when this fails, the sweep finds
    return ModelDeleted(id=model)


def _own(caller: Caller) -> list[Model]:
    with transaction() as session:
        return [_model(job, model_name(job)) for job in fine_tuned(session, caller.tenant_id)]


def _tuned(caller: Caller, named: Named, name: str) -> Model:
    with transaction() as session:
        job = own_model(session, caller, name)
        if named.step is None:
            return _model(job, name)
        steps = {one.step for one in products.checkpoints_of(session, job.id)}
        if named.step not in steps:
            raise no_such("model", name)
        return _model(job, checkpoint_name(job, named.step))


def _model(job: Job, name: str) -> Model:
    created = job.finished_at or job.created_at
    return Model(id=name, created=seconds(created), owned_by=job.tenant.name)


def _base(name: str) -> Model:
    return Model(id=name, created=0, owned_by="celora")
