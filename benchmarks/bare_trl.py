"""A fine-tuning script as TRL's documentation writes it: what `throughput` measures a job against.

Started by the benchmark, which gives the recipe as JSON on standard input, one line a round, and
reads one line of JSON per round from standard output.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Wait for recipes; nothing is loaded twice but the model, which every round takes anew."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the libraries print as they like
    import trl  # noqa: F401 - outside the measured time

    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(train(**json.loads(line))), file=answers, flush=True)


def train(*, base: str, data: str, output: str, lora: dict[str, Any], sft: dict[str, Any]) -> Any:
    """One run. Seconds from the first step's beginning to the last one's end, tokens, losses."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    class Clock(TrainerCallback):
        began = ended = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = self.began or time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ended = time.perf_counter()

    clock = Clock()
    trainer = SFTTrainer(
        model=base,
        args=SFTConfig(output_dir=output, **sft),
        train_dataset=Dataset.from_file(data),
        peft_config=LoraConfig(**lora),
        callbacks=[clock],
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "seconds": clock.ended - clock.began,
        "tokens": logged[-1]["num_tokens"],
        "losses": [entry["loss"] for entry in logged],
    }


if __name__ == "__main__":
    main()
