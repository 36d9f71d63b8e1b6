"""The `celora` command. Only the module of the command that was asked for is loaded."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any

import typer

# Command → the module and the function (or Typer application) it lives in, and its place in --help.
_COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": ("demo", "demo", "Start here"),
    "up": ("processes", "up", "Start here"),
    "doctor": ("doctor", "doctor", "Start here"),
    "submit": ("submit", "submit", "Jobs"),
    "validate": ("validate", "validate", "Jobs"),
    "plan": ("plan", "plan", "Jobs"),
    "guide": ("guide", "guide", "Jobs"),
    "jobs": ("jobs", "jobs", "Jobs"),
    "job": ("job", "job", "Jobs"),
    "watch": ("watch", "watch", "Jobs"),
    "logs": ("logs", "logs", "Jobs"),
    "report": ("report", "report", "Jobs"),
    "rate": ("rate", "rate", "Jobs"),
    "adapters": ("adapters", "adapters", "Jobs"),
    "export": ("export", "export", "Jobs"),
    "chat": ("chat", "chat", "Jobs"),
    "why": ("jobs", "why", "Jobs"),
    "cancel": ("jobs", "cancel", "Jobs"),
    "pause": ("jobs", "pause", "Jobs"),
    "resume": ("jobs", "resume", "Jobs"),
    "retry": ("jobs", "retry", "Jobs"),
    "gpus": ("machines", "gpus", "Machines"),
    "cordon": ("machines", "cordon", "Machines"),
    "drain": ("machines", "drain", "Machines"),
    "label": ("machines", "label", "Machines"),
    "tenants": ("tenants", "tenants", "Machines"),
    "notify": ("notify", "notify", "Machines"),
    "keys": ("keys", "keys", "Machines"),
    "prices": ("prices", "prices", "Machines"),
    "pull": ("machines", "pull", "Machines"),
    "storage": ("storage", "storage", "Machines"),
    "db": ("database", "db", "Machines"),
    "broker": ("broker", "broker", "Machines"),
    "dispatcher": ("processes", "dispatcher", "Processes"),
    "cpu-worker": ("processes", "cpu_worker", "Processes"),
    "gpu-worker": ("processes", "gpu_worker", "Processes"),
    "api": ("processes", "api", "Processes"),
    "flower": ("processes", "flower", "Processes"),
    "k8s-job": ("k8s_job", "k8s_job", "Processes"),
    "run-job": ("k8s_job", "run_job", "Processes"),
}


def main() -> None:
    """Entry point of the console script and of `python -m celora`."""
    from celora.cli.failures import run

    sys.exit(run(lambda: application(sys.argv[1:2])(prog_name="celora", standalone_mode=False)))


def application(arguments: list[str]) -> typer.Typer:
    """The application with the command that `arguments` begin with, or with all of them."""
    app = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,  # failures.py speaks to the user
        context_settings={"help_option_names": ["-h", "--help"]},
        callback=_options,
    )
    asked = arguments[0] if arguments else ""
    for name in [asked] if asked in _COMMANDS else list(_COMMANDS):
        module, attribute, panel = _COMMANDS[name]
        command: Any = getattr(import_module(f"celora.cli.{module}"), attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, rich_help_panel=panel)
        else:
            app.command(name, rich_help_panel=panel)(command)
    return app


def __getattr__(name: str) -> Any:
    """`celora.cli.app`: the whole application, for documentation and completion tools."""
    if name == "app":
        return application([])
    raise AttributeError(name)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("celora"))
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Fine-tuning as a service on your own GPUs.

    - **celora demo** shows all of it in a few minutes
    - **celora up** starts it on this machine
    - **celora submit** hands it a job
    """
