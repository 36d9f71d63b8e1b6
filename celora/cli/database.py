"""`celora db`: the database's schema, roles, keys and backups."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from celora.cli import backup
from celora.cli.output import AsJson, print_json

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

Role = Annotated[str, typer.Argument(help="A role of the database; a new one is made.")]

db = typer.Typer(no_args_is_help=True, help="Upgrade, back up and restore the database.")
db.command("backup")(backup.backup)
db.command("restore")(backup.restore)
db.command("after-restore")(backup.after_restore)


@db.command()
def upgrade(
    revision: Annotated[str, typer.Argument(help="Revision to go up to.")] = "head",
) -> None:
    """Bring the database to the newest revision; safe to run at any time, and twice."""
    import migrations
    from models.settings import settings

    migrations.upgrade(settings().resolved_database_url, revision)
    print(f"at revision {migrations.current(settings().resolved_database_url)}")


@db.command()
def current(as_json: AsJson = False) -> None:
    """Show the database's revision, and the one this version of Celora needs.

    Exit code 5 when they differ.
    """
    import migrations
    from models.settings import settings

    found, needed = migrations.current(settings().resolved_database_url), migrations.head()
    if as_json:
        print_json({"current": found, "head": needed})
    else:
        print(f"database: {found or 'empty'}; this version needs: {needed}")
    if found != needed:
        raise typer.Exit(5)


@db.command()
def url() -> None:
    """Print the address for psql and other libpq programs: psql "$(celora db url)"."""
    from sqlalchemy import make_url

    from models.settings import settings

    address = make_url(settings().resolved_database_url).set(drivername="postgresql")
    print(address.render_as_string(hide_password=False))


@db.command("grant-reader")
def grant_reader(role: Role) -> None:
    """Let a role read the views of schema admin, and nothing else.

    A new role cannot log in until it is given a password: ALTER ROLE name LOGIN PASSWORD '…'.
    """
    from models.queries.roles import grant_reader as grant

    _grant(grant, role, "reads schema admin")


@db.command("grant-app")
def grant_app(role: Role) -> None:
    """Let a role run the dispatcher, the API and commands: it writes rows and changes no table.

    Run it as the database's owner, and again after each upgrade.
    """
    from models.queries.roles import grant_app as grant

    _grant(grant, role, "may run the dispatcher, the API and commands")


@db.command("grant-worker")
def grant_worker(role: Role) -> None:
    """Let a role run CPU and GPU workers: it writes what belongs to jobs.

    Run it as the database's owner, and again after each upgrade.
    """
    from models.queries.roles import grant_worker as grant

    _grant(grant, role, "may run workers")


def _grant(grant: Callable[[Session, str], bool], role: str, what: str) -> None:
    from models.session import transaction

    with transaction() as session:
        made = grant(session, role)
    print(f"{role} {'was made and ' if made else ''}{what}")


@db.command("new-key")
def new_key() -> None:
    """Print a key for CELORA_SECRET_KEY, which seals the secrets that are kept.

    To replace a key put the new one in front of the old one, separated by a comma; after
    `celora db reseal` the old one can go.
    """
    from models import secrets

    print(secrets.new_key())


@db.command()
def reseal() -> None:
    """Seal all stored secrets anew with the first key of CELORA_SECRET_KEY."""
    from models.queries.sealed import reseal as reseal_all
    from models.session import transaction

    with transaction() as session:
        count = reseal_all(session)
    print(f"sealed anew: {count}. Keys after the first are not needed any more.")
