"""A disk that is full: told apart from other errors, and said with the path that hit it."""

from __future__ import annotations

import errno

from models.errors import SetupError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# Libraries that write in native code tell it in words alone.
_WORDS = (
    "no space left on device",
    "disk quota exceeded",
    "pytorchstreamwriter failed",
    "database or disk is full",  # SQLite
)


def is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    text = str(error).lower()  # of shutil.copytree, too, which gathers the errors of many files
    return any(words in text for words in _WORDS)


def full(error: BaseException, where: object) -> SetupError:
    """The error to tell people; `where` unless the error knows the file itself."""
    named = getattr(error, "filename", None)
    return SetupError(
        "the disk is full",
        where=str(named or where),
        remedy="free space there (`celora storage` shows what uses it), then `celora retry`",
    )
