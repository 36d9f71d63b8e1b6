"""`celora chat`: talk to what a job has trained, in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from celora.cli.export import Reference, Tenant, User
from celora.cli.failures import say_error
from celora.cli.output import AsJson, print_json
from models.adapter_work import Subject

if TYPE_CHECKING:
    from celora.conversation import Conversation

_HELP = "/base asks the base model, /tuned the tuned one again, /quit leaves"


def chat(
    reference: Reference,
    *,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Ask this alone, print the answer, leave.")
    ] = None,
    base: Annotated[
        bool, typer.Option("--base", help="Ask the base model, without the adapter.")
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=32_768, help="Tokens per answer, at most.")
    ] = 256,
    temperature: Annotated[
        float, typer.Option(min=0, max=5, help="0: always the likeliest token.")
    ] = 0.0,
    tenant: Tenant = None,
    user: User = None,
    as_json: AsJson = False,
) -> int:
    """Talk to what a job has trained, on a free GPU.

    The chat is a job of its own and waits its turn. It ends, and frees the GPU, when you leave or
    say nothing for a while. What is said is deleted a day after.
    """
    from celora.conversation import Conversation
    from models.errors import InputError

    if as_json and prompt is None:
        raise InputError("--json prints one answer", where="--json", remedy="give a --prompt")

    def waiting(sentence: str) -> None:
        print(f"… {sentence}", file=sys.stderr, flush=True)

    subject: Subject = "base" if base else "tuned"
    with Conversation.begin(
        reference,
        tenant=tenant,
        user=user,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        waiting=waiting,
    ) as conversation:
        if prompt is None:
            return _talk(conversation, subject)
        answer = conversation.ask(prompt, subject, each=None if as_json else _print)
        if as_json:
            print_json(
                {
                    "job": conversation.job.id,
                    "reference": conversation.reference,
                    "subject": subject,
                    "prompt": prompt,
                    "answer": answer.text,
                    "tokens": answer.tokens,
                    "seconds": round(answer.seconds, 3),
                }
            )
        else:
            print()
    return 0


def _talk(conversation: Conversation, subject: Subject) -> int:
    """Line after line, until the chat is over on either side."""
    from models.errors import StateError

    print(f"chat {conversation.job.id} with {conversation.reference}: {_HELP}", flush=True)
    while True:
        try:
            line = input(f"{subject}> ").strip()
        except EOFError:
            print()
            return 0
        if line == "/quit":
            return 0
        if line in {"/base", "/tuned"}:
            subject = "base" if line == "/base" else "tuned"
        elif line.startswith("/"):
            print(_HELP)
        elif line:
            try:
                conversation.ask(line, subject, each=_print)
            except StateError as error:
                if error.where is None:  # not of this question alone
                    raise
                say_error(str(error))
            print()


def _print(piece: str) -> None:
    print(piece, end="", flush=True)
