"""The HTTP API's process, jobs that OpenAI's client started in it, and rows for them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from tests.stack import Stack


@contextmanager
def api(stack: Stack, **settings: str) -> Iterator[str]:
    """The server's process; its address."""
    running = stack.start("api", "--port", "0", **settings)
    found = re.compile(r"http://127\.0\.0\.1:\d+")
    address = stack.wait_until("it serves", lambda: found.search(running.said()))
    yield f"{address.group()}/v1"


def finish(stack: Stack, client: OpenAI, job_id: str, *, seconds: float = 60) -> FineTuningJob:
    def ended() -> FineTuningJob | None:
        job = client.fine_tuning.jobs.retrieve(job_id)
        return job if job.status in ("succeeded", "failed", "cancelled") else None

    return stack.wait_until(f"{job_id} ends", ended, seconds=seconds)


def pairs() -> bytes:
    """The example's preference pairs, as OpenAI writes them."""
    example = Path(__file__).parents[1] / "examples" / "smart_home_preferences" / "pairs.jsonl"
    told = [json.loads(line) for line in example.read_text().splitlines()]
    return "\n".join(
        json.dumps(
            {
                "input": {"messages": [{"role": "user", "content": pair["prompt"]}]},
                "preferred_output": [{"role": "assistant", "content": pair["chosen"]}],
                "non_preferred_output": [{"role": "assistant", "content": pair["rejected"]}],
            }
        )
        for pair in told
    ).encode()
