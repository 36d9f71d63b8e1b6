"""`celora guide`: what to set, to what, and why."""

from __future__ import annotations

from typing import Annotated

import typer

from celora.cli.output import AsJson, console, print_json
from models.errors import NotFoundError


def guide(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[TOPIC]",
            help="One topic alone, by its name or by a field: rank, learning_rate, dpo.",
            show_default=False,
        ),
    ] = None,
    *,
    topic: Annotated[str | None, typer.Option(help="The same as an option.")] = None,
    as_json: AsJson = False,
) -> None:
    """Explain the hyper-parameters: what to set, to what, and why.

    celora guide rank
    """
    from celora import guide as source

    chosen: tuple[source.Topic, ...] = source.TOPICS
    topic = name or topic
    if topic is not None:
        found = source.topic(topic)
        if found is None:
            names = ", ".join(one.name for one in source.TOPICS)
            raise NotFoundError(f"there is no topic {topic!r}", remedy=f"topics are {names}")
        chosen = (found,)
    if as_json:
        print_json(source.record(chosen))
        return
    from rich.markdown import Markdown

    out = console()
    out.print(Markdown(source.markdown(chosen)), width=min(out.width, 100))
