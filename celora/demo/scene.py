"""How the demo speaks: titles, lines and a progress bar, in any terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from celora.cli.output import console, is_poor_terminal

_PLAIN_SECONDS = 10.0


class Scene:
    def __init__(self) -> None:
        self.console = console()
        self._act = 0

    def title(self, text: str) -> None:
        self._act += 1
        self.console.print(f"\n[bold]{self._act}. {text}[/bold]")

    def say(self, line: str) -> None:
        self.console.print(f"   {line}", markup=False, soft_wrap=True)

    @contextmanager
    def progress(self, what: str) -> Iterator[Callable[[int, int, str], None]]:
        """Gives a function of (done, total, note) to call as often as there is news."""
        if is_poor_terminal():
            yield self._plain(what)
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("   {task.description}"),
            BarColumn(complete_style="cyan", finished_style="green"),
            TextColumn("{task.completed:.0f} of {task.total:.0f}  {task.fields[note]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task(what, total=1, note="")

            def tell(done: int, total: int, note: str) -> None:
                bar.update(task, completed=done, total=total, note=note)

            yield tell

    def _plain(self, what: str) -> Callable[[int, int, str], None]:
        told = -_PLAIN_SECONDS

        def tell(done: int, total: int, note: str) -> None:
            nonlocal told
            now = time.monotonic()
            if now - told >= _PLAIN_SECONDS or done == total:
                told = now
                self.say(f"{what}: {done} of {total}  {note}")

        return tell
