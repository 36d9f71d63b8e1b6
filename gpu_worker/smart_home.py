"""The example task: a smart-home request in plain words becomes JSON.

Closed lists of values, so that a model small enough for two cores can learn the task and a
held-out row still needs a combination of values that no training row had. The rows under
examples/smart_home/ and the pre-training of the demo's tiny base both come from here.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from typing import NamedTuple

ACTIONS = ("start", "stop", "check", "reset", "boost")
DEVICES = ("lamp", "heater", "fan", "radio", "kettle", "oven", "camera", "sprinkler")
ROOMS = (
    "kitchen",
    "bedroom",
    "office",
    "hall",
    "garage",
    "garden",
    "attic",
    "cellar",
    "bathroom",
    "nursery",
)
HOURS = tuple(range(24))
SENTENCES = (
    "Please {action} the {device} in the {room} at {hour}.",
    "At {hour}, {action} the {room} {device}.",
    "In the {room}, {action} the {device} when it is {hour}.",
    "I want you to {action} the {device} of the {room} at {hour}.",
    "Could you {action} the {room} {device} at {hour}?",
)
INSTRUCTION = "Turn the request into JSON."
TRAIN_ROWS, HELD_OUT_ROWS = 1_200, 100

Row = dict[str, str]


class Request(NamedTuple):
    action: str
    device: str
    room: str
    hour: int


def train_rows(seed: int = 1) -> list[Row]:
    """The training rows, every one with its own combination of values."""
    rng = random.Random(f"train {seed}")  # noqa: S311  data, not a secret
    wanted = _shuffled(seed)[HELD_OUT_ROWS : HELD_OUT_ROWS + TRAIN_ROWS]
    return [_task_row(request, rng) for request in wanted]


def held_out_rows(seed: int = 1) -> list[Row]:
    """Rows whose combinations of values occur in no training or pre-training row."""
    rng = random.Random(f"held out {seed}")  # noqa: S311
    return [_task_row(request, rng) for request in _shuffled(seed)[:HELD_OUT_ROWS]]


def pretraining_rows(count: int, seed: int = 1) -> Iterator[Row]:
    """Rows of neighbouring tasks: they teach a base to copy values, not this task's JSON.

    LoRA on a tiny base learns a new form of answer; copying it does not learn (tried: open names
    and no such pre-training gave the right JSON with wrong values).
    """
    rng = random.Random(f"pretraining {seed}")  # noqa: S311
    requests = _shuffled(seed)[HELD_OUT_ROWS:]
    for _ in range(count):
        request = rng.choice(requests)
        kind = rng.choices((_listing, _question, _other_json), weights=(35, 30, 35))[0]
        instruction, output = kind(request, rng)
        yield {"instruction": instruction, "input": _sentence(request, rng), "output": output}


def _shuffled(seed: int) -> list[Request]:
    everything = [Request(*v) for v in itertools.product(ACTIONS, DEVICES, ROOMS, HOURS)]
    random.Random(f"requests {seed}").shuffle(everything)  # noqa: S311
    return everything


def _sentence(request: Request, rng: random.Random) -> str:
    return rng.choice(SENTENCES).format(**request._asdict())


def _task_row(request: Request, rng: random.Random) -> Row:
    return {
        "instruction": INSTRUCTION,
        "input": _sentence(request, rng),
        "output": json.dumps(request._asdict()),
    }


def _listing(request: Request, _: random.Random) -> tuple[str, str]:
    return "List the values.", ", ".join(str(value) for value in request)


def _question(request: Request, rng: random.Random) -> tuple[str, str]:
    slot = rng.choice(Request._fields)
    return f"Which {slot}?", str(getattr(request, slot))


_OTHER_KEYS = {"action": "do", "device": "what", "room": "where", "hour": "when"}


def _other_json(request: Request, rng: random.Random) -> tuple[str, str]:
    slots = rng.sample(Request._fields, rng.choice((2, 3)))
    values = {_OTHER_KEYS[slot]: getattr(request, slot) for slot in slots}
    return f"Give {' and '.join(values)} as JSON.", json.dumps(values)
