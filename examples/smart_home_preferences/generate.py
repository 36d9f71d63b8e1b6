"""Writes pairs.jsonl beside itself: python examples/smart_home_preferences/generate.py

The requests are those of examples/smart_home. The preferred answer is the JSON alone; the other one
says the same in a way that no program can read, as a chatty model does, or leaves a value out.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from gpu_worker.smart_home import Row, train_rows
from training_data.templates import instruction_prompt

PAIRS = 300
_CHATTY = (
    "Sure! Here is the JSON you asked for: {output} Let me know if I can help you any further.",
    "I have turned your request into JSON for you. {output}",
    "{output} Is there anything else you would like me to do?",
)


def pairs(seed: int = 1) -> list[dict[str, str]]:
    rng = random.Random(f"pairs {seed}")
    return [_pair(row, rng) for row in train_rows()[:PAIRS]]


def _pair(row: Row, rng: random.Random) -> dict[str, str]:
    values = json.loads(row["output"])
    values.pop(rng.choice(sorted(values)))
    worse = [sentence.format(output=row["output"]) for sentence in _CHATTY]
    return {
        "prompt": instruction_prompt(row["instruction"], row["input"]),
        "chosen": row["output"],
        "rejected": rng.choice([*worse, json.dumps(values)]),
    }


def main(folder: Path) -> None:
    path, rows = folder / "pairs.jsonl", pairs()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{path}: {len(rows)} pairs")


if __name__ == "__main__":
    main(Path(__file__).parent)
