"""Fine-tune on your own GPUs with OpenAI's Python client, unmodified.

    pip install 'openai>=3.57,<4'
    CELORA_API_KEY=sk-celora-… python examples/openai_client.py

CELORA_API_URL is where `celora api` serves (default http://127.0.0.1:8000/v1), CELORA_API_MODEL a
hub name or an alias (default gpt-4o-mini, which CELORA_MODEL_ALIASES has to know). The rows are
those of examples/smart_home, as chats.
"""

from __future__ import annotations

import csv
import json
import os
import time
from pathlib import Path

from openai import OpenAI

ROWS = Path(__file__).parent / "smart_home" / "train.jsonl"
MODEL = os.environ.get("CELORA_API_MODEL", "gpt-4o-mini")


def chats() -> bytes:
    """Instruction rows as OpenAI's chat rows."""
    rows = map(json.loads, ROWS.read_text().splitlines())
    lines = (
        {
            "messages": [
                {"role": "user", "content": f"{row['instruction']} {row['input']}"},
                {"role": "assistant", "content": row["output"]},
            ]
        }
        for row in rows
    )
    return "\n".join(map(json.dumps, lines)).encode()


def main() -> None:
    client = OpenAI(
        base_url=os.environ.get("CELORA_API_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ["CELORA_API_KEY"],
    )
    file = client.files.create(file=("smart_home.jsonl", chats()), purpose="fine-tune")
    print(f"uploaded {file.filename}: {file.bytes:,} bytes as {file.id}")

    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=file.id,
        suffix="smart-home",
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 16}},
        },
        extra_body={"celora": {"max_sequence_length": 256, "eval_generate_rows": 20}},
    )
    print(f"created {job.id}: {job.status}")

    told: set[str] = set()
    while True:
        job = client.fine_tuning.jobs.retrieve(job.id)
        events = client.fine_tuning.jobs.list_events(job.id, limit=20).data
        for event in reversed(events):
            if event.id not in told:
                told.add(event.id)
                print(f"  {event.message}")
        if job.status in ("succeeded", "failed", "cancelled"):
            break
        time.sleep(2)

    if job.status != "succeeded":
        raise SystemExit(f"{job.status}: {job.error.message if job.error else ''}")
    print(f"{job.fine_tuned_model}: trained on {job.trained_tokens:,} tokens")
    steps = list(csv.DictReader(client.files.content(job.result_files[0]).text.splitlines()))
    print(f"{len(steps)} steps; loss from {steps[0]['train_loss']} to {steps[-1]['train_loss']}")


if __name__ == "__main__":
    main()
