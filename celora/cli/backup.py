"""`celora db backup`, `restore` and `after-restore`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from celora.cli.output import AsJson, print_json, size

if TYPE_CHECKING:
    from celora.restored import Done

WithoutFiles = Annotated[
    bool,
    typer.Option("--without-files", help="Go on although the store holds nothing of the backup."),
]


def backup(
    file: Annotated[Path, typer.Argument(help="File to write: celora.sql.gz.")],
) -> None:
    """Write the database into a file, while all goes on. Copy the artifact store after it."""
    from celora.backup import backup as write
    from models.settings import settings

    size_bytes = write(file)
    print(f"{file}: {size(size_bytes)}")
    print(f"Now copy the artifact store, and not before: {settings().artifacts_url}")


def restore(
    file: Annotated[Path, typer.Argument(help="A file of `celora db backup`.")],
    *,
    without_files: WithoutFiles = False,
    as_json: AsJson = False,
) -> None:
    """Read a backup into an empty database. Copy the artifact store back before.

    Nothing else may run. It does what `celora db after-restore` does, too.
    """
    from celora.backup import restore as read

    _tell(read(file, without_files=without_files), as_json)


def after_restore(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    without_files: WithoutFiles = False,
    as_json: AsJson = False,
) -> None:
    """Once after a restore with tools of your own, before any process starts.

    Ends the attempts that were live, raises fences above those in the store, and forgets what is
    missing there. Run it as the database's owner.
    """
    from celora.restored import after_restore as mend

    _tell(mend(dry_run=dry_run, without_files=without_files), as_json)


def _tell(done: Done, as_json: bool) -> None:
    if as_json:
        print_json(done.record())
        return
    for line in done.lines():
        print(line)
