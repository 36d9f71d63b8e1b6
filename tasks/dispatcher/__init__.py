"""The dispatcher: places jobs on free GPUs, publishes their tickets, repairs what was lost.

Any number may run: one places at a time (an advisory lock), and every step may be done twice.
All it knows is in Postgres; killing it loses nothing.
"""

from tasks.dispatcher.loop import run

__all__ = ["run"]
