"""What two versions say to each other while a deploy mixes them: messages, specifications."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

import pytest

from models.abilities import PREFIX, RELEASES, abilities_for
from models.spec import JobSpec
from models.states import Purpose, Stage
from tasks.app import app
from tasks.names import PREPROCESS, SUBMIT
from tasks.pipeline import ticket
from tests.upgrade.previous import Previous

# On the version before: the messages that its dispatcher sends, and which of ours its tasks take.
_ASK = """
import inspect, json, sys
from models.states import Stage
from tasks.app import app
from tasks.pipeline import ticket
app.loader.import_default_modules()

def messages():
    for stage in [one for one in Stage if one != "evaluate"]:
        sent = ticket("ftjob-1", 3, Stage(stage), "q", True)
        for task in getattr(sent, "tasks", [sent]):
            yield task.task, list(task.args), dict(task.kwargs)

def takes(name, args, kwargs):
    if name not in app.tasks:
        return "unknown"
    try:
        inspect.signature(app.tasks[name].run).bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return "yes"

print(json.dumps({
    "messages": list(messages()),
    "takes": [takes(*one) for one in json.loads(sys.argv[1])],
}))
"""
_SCHEMA = """
import json
from models.spec import JobSpec
print(json.dumps(JobSpec.model_json_schema()))
"""

# From applications that know only the broker, in the forms of docs/; no version forgets one.
SUBMITS = (
    [SUBMIT, [{"base_model": "b", "dataset": "d"}], {}],
    [SUBMIT, [{"base_model": "b", "dataset": "d"}, "physics", "ada"], {}],
    [SUBMIT, [{"base_model": "b", "dataset": "d"}], {"tenant": "physics", "user": "ada"}],
)


def messages() -> Iterator[list[Any]]:
    for stage in Stage:
        sent: Any = ticket("ftjob-1", 3, stage, "q", True)  # noqa: FBT003 (a row's column)
        for task in getattr(sent, "tasks", [sent]):
            yield [task.task, list(task.args), dict(task.kwargs)]


def takes(name: str, args: list[Any], kwargs: dict[str, Any]) -> bool:
    app.loader.import_default_modules()
    try:
        inspect.signature(app.tasks[name].run).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def test_each_version_takes_the_messages_of_the_other(old: Previous) -> None:
    ours = list(messages())
    asked = json.loads(old.run(_ASK, json.dumps([*ours, *SUBMITS])))
    theirs = [*asked["messages"], *SUBMITS]
    assert [one[0] for one in asked["messages"]].count(PREPROCESS) == 1
    assert [takes(*one) for one in theirs] == [True] * len(theirs)
    refused = {
        name: said
        for (name, *_), said in zip([*ours, *SUBMITS], asked["takes"], strict=True)
        if said != "yes"
    }
    # Tickets that no dispatcher sends to a worker of the version before: see models/abilities.py.
    assert refused == dict.fromkeys(("celora.export", "celora.generate"), "unknown")


@pytest.mark.parametrize("stage", Stage)
def test_a_message_holds_scalars(stage: Stage) -> None:
    sent: Any = ticket("ftjob-1", 3, stage, "q", True)  # noqa: FBT003 (a row's column)
    for task in getattr(sent, "tasks", [sent]):
        assert all(isinstance(one, str | int) for one in (*task.args, *task.kwargs.values()))


# Of what the specification has got since the version before: an example of each, which must be
# left to workers that know it, or why any worker may have it.
NEW: dict[str, dict[str, Any] | str] = {
    "method=dpo": {"method": "dpo"},
    "dpo_base": "read of method dpo alone",
    "dpo_beta": "read of method dpo alone",
    "shape=preference": {"method": "dpo", "shape": "preference"},
    "shape=openai_preference": {"method": "dpo", "shape": "openai_preference"},
    "adapter_name": {"adapter_name": "bot"},
    "notify": {"notify": ["phone"]},
    "notify_on": "read where `notify` is set",
    "notify_wait_seconds": "read by the dispatcher",
    "track_name": {"track_name": "run"},
    "track_entity": {"track_entity": "team"},
    "track_tags": {"track_tags": ["a"]},
}


def test_what_is_new_in_a_specification_asks_for_workers_that_know_it(old: Previous) -> None:
    earlier = json.loads(old.run(_SCHEMA))
    fields = set(earlier["properties"])
    before, now = told(earlier, fields), told(JobSpec.model_json_schema(), fields)
    assert before - now == set()  # nothing was taken away
    assert now - before == set(NEW)
    ability = {f"{PREFIX}{RELEASES[-1]}": "yes"}
    for example in NEW.values():
        if isinstance(example, dict):
            spec = JobSpec.model_validate({"base_model": "b", "dataset": "d"} | example)
            assert abilities_for(spec, Purpose.TUNE) == ability
    roles = JobSpec(base_model="b", dataset="d", columns={"chosen": "good"})
    assert abilities_for(roles, Purpose.TUNE) == ability
    assert abilities_for(JobSpec(base_model="b", dataset="d"), Purpose.TUNE) == {}


def told(schema: dict[str, Any], choices_of: set[str]) -> set[str]:
    """Its fields, and `field=value` for each value of those fields that have a choice."""
    found = set(schema["properties"])
    for name in choices_of:
        field = schema["properties"].get(name, {})
        for one in (field, *field.get("anyOf", ()), field.get("items", {})):
            found |= {f"{name}={value}" for value in one.get("enum", [])}
    return found
