"""`celora demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    home: Annotated[
        Path, typer.Option(help="Folder for all that the demo makes; safe to delete after.")
    ] = Path(".demo"),
    devices: Annotated[
        str | None,
        typer.Option(
            help="As for `celora up`. Default: all CUDA devices, else cpu:1.", show_default=False
        ),
    ] = None,
) -> int:
    """See a tiny model learn: one fine-tuning job from end to end, in a few minutes.

    It makes a tiny base model, starts all of Celora in a folder of its own, fine-tunes the model
    on the example data, and shows what it answered before and after. It stops all it started.
    """
    from celora.demo import run

    return run(home, devices=devices)
