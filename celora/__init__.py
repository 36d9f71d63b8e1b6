"""Celora: fine-tuning as a service on your own GPUs.

    import celora

    job = celora.submit(base_model="meta-llama/Llama-3.2-1B", dataset="rows.jsonl", method="lora")
    job = celora.wait(job)
    print(job.state, job.adapter_url)

Everything here is loaded at its first use: the import itself costs next to nothing, so that a web
application or a Celery app can hold it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celora.client import (
        cancel,
        events,
        get,
        jobs,
        metrics,
        pause,
        plan,
        resume,
        retry,
        submit,
        validate,
        why,
    )
    from celora.exports import export
    from celora.follow import wait
    from celora.notify import (
        add_target,
        deliveries,
        notify_of,
        remove_target,
        retry_delivery,
        send_test,
        targets,
    )
    from celora.planning.plan import Plan
    from celora.registry import (
        adapter,
        adapters,
        delete_adapter,
        move_alias,
        register_adapter,
        roll_back_alias,
        win_rate,
    )
    from celora.views import Event, Job, Metric
    from models.errors import CeloraError
    from models.queries.adapter_aliases import AliasMove
    from models.queries.adapter_views import AdapterVersion
    from models.queries.waiting import Why
    from models.spec import JobSpec
    from models.states import JobState, Stage
    from models.win_rate import WinRate
    from training_data.validate import Report

__all__ = [
    "AdapterVersion",
    "AliasMove",
    "CeloraError",
    "Event",
    "Job",
    "JobSpec",
    "JobState",
    "Metric",
    "Plan",
    "Report",
    "Stage",
    "Why",
    "WinRate",
    "adapter",
    "adapters",
    "add_target",
    "cancel",
    "delete_adapter",
    "deliveries",
    "events",
    "export",
    "get",
    "jobs",
    "metrics",
    "move_alias",
    "notify_of",
    "pause",
    "plan",
    "register_adapter",
    "remove_target",
    "resume",
    "retry",
    "retry_delivery",
    "roll_back_alias",
    "send_test",
    "submit",
    "targets",
    "validate",
    "wait",
    "why",
    "win_rate",
]

_ELSEWHERE = {
    "AdapterVersion": "models.queries.adapter_views",
    "AliasMove": "models.queries.adapter_aliases",
    "CeloraError": "models.errors",
    "Event": "celora.views",
    "Job": "celora.views",
    "JobSpec": "models.spec",
    "JobState": "models.states",
    "Metric": "celora.views",
    "Plan": "celora.planning.plan",
    "Report": "training_data.validate",
    "Stage": "models.states",
    "Why": "models.queries.waiting",
    "WinRate": "models.win_rate",
    "adapter": "celora.registry",
    "adapters": "celora.registry",
    "add_target": "celora.notify",
    "delete_adapter": "celora.registry",
    "export": "celora.exports",
    "deliveries": "celora.notify",
    "move_alias": "celora.registry",
    "notify_of": "celora.notify",
    "register_adapter": "celora.registry",
    "remove_target": "celora.notify",
    "retry_delivery": "celora.notify",
    "roll_back_alias": "celora.registry",
    "send_test": "celora.notify",
    "targets": "celora.notify",
    "wait": "celora.follow",
    "win_rate": "celora.registry",
}


if not TYPE_CHECKING:  # a type checker that saw it would take every misspelt name for right

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'celora' has no attribute {name!r}")
        value = getattr(import_module(_ELSEWHERE.get(name, "celora.client")), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
