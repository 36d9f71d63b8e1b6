"""A base model's tokenizer: frozen once per set of files and library versions, loaded light."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from models.errors import BaseModelError
from models.settings import settings
from training_data.files import CHUNK_BYTES
from training_data.watch import Watch

# Files that decide what tokens a text becomes. `config.json` is one: its model type picks the
# tokenizer's class.
_FILES = (
    "*token*.json",
    "*token*.jinja",
    "*token*.py",
    "config.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template*",
    "additional_chat_templates/*",
)
_LONGEST_FREEZE_SECONDS = 300
_KEPT_UNUSED_SECONDS = 30 * 86_400
_FACTS = 1  # raised by one whenever other facts are written down
# What the freezing process may know: no database or broker URL, no key. A model's own code may
# run in it where an administrator allowed that.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "HF_HOME")


@dataclass(frozen=True)
class Frozen:
    """A tokenizer as facts: how to tokenise, which tokens are special, how a chat is written."""

    path: str  # of the `tokenizers` JSON file
    eos: str
    eos_id: int
    byte_level: bool  # a token stands for as many bytes as it has letters …
    nfc: bool  # … of the text in Unicode's composed form
    special: Sequence[str]
    names: dict[str, str]  # bos_token, eos_token, …: what chat templates may refer to
    template: str | None
    tool_template: str | None
    digest: str
    embeddings: int | None = None  # rows of the model's embedding matrix, where its config says

    @cached_property
    def backend(self) -> Any:
        """The `tokenizers.Tokenizer`."""
        from tokenizers import Tokenizer

        return Tokenizer.from_file(self.path)

    @cached_property
    def opening_ids(self) -> list[int]:
        """What this tokenizer puts before a text: a beginning-of-sequence token, or nothing."""
        bare = self.backend.encode("a", add_special_tokens=False).ids
        full = self.backend.encode("a").ids
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return list(full[:start])
        return []

    @cached_property
    def longest_token(self) -> int:
        """Characters in the longest token, at least; bounds how much text some tokens can cover."""
        return max(map(len, self.backend.get_vocab()), default=1)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.backend.decode(list(ids), skip_special_tokens=False))


def load(folder: str, *, trust_remote_code: bool = False, watch: Watch | None = None) -> Frozen:
    """The tokenizer of a local folder. Raises BaseModelError."""
    digest = tokenizer_digest(folder)
    versions = f"{version('transformers')}-{version('tokenizers')}-{_FACTS}"
    key = f"{digest}-{trust_remote_code}-{versions}"
    cache = settings().at_home("tokenizers")
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    frozen = cache / hashlib.sha256(key.encode()).hexdigest()
    known, tokenizer = frozen.with_suffix(".json"), frozen.with_suffix(".tokenizer.json")
    if not _mark_used(known, tokenizer):
        _freeze(folder, frozen, trust_remote_code=trust_remote_code, watch=watch or Watch())
        _forget_unused(cache)
    facts = json.loads(known.read_text(encoding="utf-8"))
    if "error" in facts:
        known.unlink(missing_ok=True)
        raise BaseModelError(
            f"the tokenizer cannot be used: {facts['error']}",
            where=folder,
            remedy="use a base model with a tokenizer.json, or save one there with transformers",
        )
    return Frozen(
        path=str(tokenizer),
        **facts,
        digest=digest,
        embeddings=_embeddings(Path(folder) / "config.json"),
    )


def _mark_used(*files: Path) -> bool:
    """True where all are there; their times then say when they were last used."""
    try:
        for path in files:
            os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _forget_unused(cache: Path) -> None:
    """Remove what no job has used for long: tokenizers of models that came and went."""
    oldest = time.time() - _KEPT_UNUSED_SECONDS
    for path in cache.iterdir():
        with suppress(FileNotFoundError):  # another process tidies too
            if path.stat().st_mtime < oldest:
                path.unlink()


def _embeddings(config: Path) -> int | None:
    try:
        content = json.loads(config.read_bytes())
    except (OSError, ValueError):
        return None
    # Models of text and images keep the text model's settings in a part of their own.
    part = content.get("text_config") if isinstance(content, dict) else None
    size = (part if isinstance(part, dict) else content).get("vocab_size")
    return size if isinstance(size, int) else None


def tokenizer_digest(folder: str) -> str:
    """sha256 over the names and contents of a tokenizer's files. Raises BaseModelError."""
    root = Path(folder)
    files = sorted({path for pattern in _FILES for path in root.glob(pattern) if path.is_file()})
    if not files:
        raise BaseModelError(
            "there is no tokenizer in the base model's folder",
            where=folder,
            remedy="put tokenizer.json and tokenizer_config.json beside the weights",
        )
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as stream:
            while data := stream.read(CHUNK_BYTES):
                digest.update(data)
    return digest.hexdigest()


def _freeze(folder: str, target: Path, *, trust_remote_code: bool, watch: Watch) -> None:
    # -P: whatever lies in the worker's current folder is not imported.
    command = [sys.executable, "-P", "-m", "training_data.freeze_tokenizer", folder, str(target)]
    if trust_remote_code:
        command.append("--trust-remote-code")
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            said = _wait(process, watch)
        finally:
            process.kill()
    if not target.with_suffix(".json").exists():
        raise BaseModelError(
            f"the tokenizer could not be loaded: {said[-300:].strip() or 'no reason given'}",
            where=folder,
            remedy="try transformers.AutoTokenizer.from_pretrained on the folder",
        )


def _wait(process: subprocess.Popen[bytes], watch: Watch) -> str:
    """Wait for the end while looking for a stop request; what it said on standard error."""
    waited = 0.0
    while True:
        try:
            return process.communicate(timeout=0.25)[1].decode(errors="replace")
        except subprocess.TimeoutExpired:
            watch.look()
            waited += 0.25
            if waited > _LONGEST_FREEZE_SECONDS:
                return f"it took longer than {_LONGEST_FREEZE_SECONDS} s"
