"""The digest that prepared data is kept under: of the data's bytes, the tokenizer, the settings."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version

from models.spec import JobSpec
from training_data.locations import SourceCheck
from training_data.rows import open_sources
from training_data.tokenizer import tokenizer_digest
from training_data.watch import ShouldStop, Watch

# Raised by one whenever the same input would be prepared differently, or its verdict say more.
FORMAT = 2
# Everything that changes the prepared files or what their verdict says. The names of the data
# sets are among it because the verdict shows them: another user's path must not be in it.
_SETTINGS = (
    "dataset",
    "eval_dataset",
    "dataset_split",
    "shape",
    "columns",
    "validation_fraction",
    "max_sequence_length",
    "over_long",
    "loss_on",
    "packing",
    "batch_size",
    "gradient_accumulation",
    "epochs",
    "max_steps",
    "evaluate",
    "trust_remote_code",
)


def input_digest(
    spec: JobSpec,
    tokenizer_path: str,
    *,
    source_check: SourceCheck | None = None,
    should_stop: ShouldStop | None = None,
) -> str:
    """What `prepare` will return as its digest if the bytes stay as they are.

    Reads all data once, without parsing it (a hub data set costs one request). Raises InputError,
    BaseModelError, UnavailableError, PreparationStopped.
    """
    train, held_out = open_sources(spec, Watch(should_stop=should_stop), source_check)
    digests = digest_parts(
        spec,
        data=train.digest_now(),
        held_out=held_out.digest_now() if held_out else None,
        tokenizer=tokenizer_digest(tokenizer_path),
    )
    return combined(digests)


def digest_parts(
    spec: JobSpec, *, data: str, held_out: str | None, tokenizer: str
) -> dict[str, str]:
    """The digests one by one, as the verdict shows them."""
    chosen = spec.model_dump(mode="json", include=set(_SETTINGS))
    chosen |= {"format": FORMAT}
    if spec.method == "dpo":  # the other methods share their tokens
        chosen |= {"pairs": True}
    chosen |= {name: version(name) for name in ("tokenizers", "transformers")}
    settings = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()
    parts = {"data": data, "tokenizer": tokenizer, "settings": settings}
    return parts if held_out is None else parts | {"eval_data": held_out}


def combined(parts: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
