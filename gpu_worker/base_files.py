"""What a base model's folder must and must not hold, and a digest of its content.

The same rules for a local folder and for a URL, where each byte read costs time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO

from models.errors import BaseModelError

SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.tiktoken", "vocab.txt", "merges.txt")
WEIGHT_FILES = ("*.safetensors",)
CODE_FILES = ("*.py",)
# Folders hold other formats of the same weights; so does Mistral's consolidated file.
NEVER = ("*/*", "consolidated*.safetensors", "training_args*", "trainer_state.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5")
_TOKENIZERS = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "*.tiktoken")
_INDEX = "model.safetensors.index.json"
_BLOCKS, _BLOCK_BYTES = 16, 64 * 1024


@dataclass(frozen=True)
class ModelFile:
    """One file of a model, wherever it lies."""

    name: str
    size: int  # bytes
    open: Callable[[], AbstractContextManager[BinaryIO]]

    def read(self) -> bytes:
        with self.open() as stream:
            return stream.read()


Files = Mapping[str, ModelFile]


def patterns(*, weights: bool, code: bool) -> list[str]:
    """Names of the files that are fetched; `code` only for a model on the allow-list."""
    return [*SMALL_FILES, *(WEIGHT_FILES if weights else ()), *(CODE_FILES if code else ())]


def local_files(folder: Path, *, code: bool = False) -> Files:
    """The model's files in a folder, those that are refused among them."""
    known = [*patterns(weights=True, code=code), *_PICKLES]
    return {
        path.name: ModelFile(path.name, path.stat().st_size, _opener(path))
        for path in sorted(folder.iterdir())
        if path.is_file() and matches(path.name, known) and not matches(path.name, NEVER)
    }


def check(files: Files, *, where: str) -> None:
    """Refuse what cannot be a base model. Raises BaseModelError."""
    check_names(files, where=where)
    check_config(files["config.json"].read(), where=where)
    for file in files.values():
        if matches(file.name, WEIGHT_FILES):
            _check_whole(file, where=where)
    if _INDEX in files:
        _check_index(files, where=where)


def check_names(names: Collection[str], *, where: str) -> None:
    """The rules that can be held against a listing alone. Raises BaseModelError."""
    if "config.json" not in names:
        if "adapter_config.json" in names:
            raise BaseModelError(
                "this is an adapter, not a base model",
                where=where,
                remedy="name the base it was trained on, which its adapter_config.json tells",
            )
        raise BaseModelError(
            "there is no config.json: this is not a model",
            where=where,
            remedy="name the folder that save_pretrained wrote",
        )
    if not any(matches(name, WEIGHT_FILES) for name in names):
        pickled = next((name for name in sorted(names) if matches(name, _PICKLES)), None)
        if pickled is not None:
            raise BaseModelError(
                f"the weights are pickled ({pickled}), and loading a pickle runs whatever it holds",
                where=where,
                remedy="take a revision with safetensors, or convert it once with "
                "save_pretrained(…) on a machine that may run it",
            )
        raise BaseModelError(
            "there are no safetensors weights",
            where=where,
            remedy="name a model whose weights stand beside its config.json",
        )
    if not any(matches(name, _TOKENIZERS) for name in names):
        raise BaseModelError(
            "there is no tokenizer",
            where=where,
            remedy="save the model's tokenizer into the same place (tokenizer.save_pretrained)",
        )


def check_config(content: bytes, *, where: str) -> None:
    """Raises BaseModelError for a config.json that names no kind of model."""
    config = _json(content)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise BaseModelError(
            "config.json is broken: it is not a JSON object with a model_type",
            where=where,
            remedy="fetch or save the model anew",
        )


def content_digest(files: Files) -> str:
    """ "sha256:…" over names, sizes and content; of large files 16 blocks spread over them.

    Training changes all of a file, so samples tell it apart; reading 140 GB to start a job would
    not do. The same for a folder and for its copy at a URL.
    """
    total = hashlib.sha256()
    for name in sorted(files):
        if matches(name, _PICKLES):
            continue
        file = files[name]
        total.update(f"{name}\0{file.size}\0".encode())
        with file.open() as stream:
            for start in _samples(file.size):
                stream.seek(start)
                total.update(stream.read(_BLOCK_BYTES))
    return f"sha256:{total.hexdigest()}"


def matches(name: str, known: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in known)


def _opener(path: Path) -> Callable[[], BinaryIO]:
    return lambda: path.open("rb")


def _samples(size: int) -> list[int]:
    """Where blocks begin: all of a small file, else the first block, the last, and between."""
    if size <= _BLOCKS * _BLOCK_BYTES:
        return list(range(0, size, _BLOCK_BYTES))
    return [i * (size - _BLOCK_BYTES) // (_BLOCKS - 1) for i in range(_BLOCKS)]


def _check_whole(file: ModelFile, *, where: str) -> None:
    """A safetensors file says in its header how long it is."""
    with file.open() as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = _json(stream.read(length)) if length < file.size else None
    if isinstance(header, dict):
        tensors = [value for key, value in header.items() if key != "__metadata__"]
        if 8 + length + max((t["data_offsets"][1] for t in tensors), default=0) == file.size:
            return
    raise BaseModelError(
        f"{file.name} is torn: it is not as long as its header says",
        where=where,
        remedy="copy or download the file again",
    )


def _check_index(files: Files, *, where: str) -> None:
    index = _json(files[_INDEX].read())
    parts = index.get("weight_map") if isinstance(index, dict) else None
    missing = sorted(set(parts.values()) - set(files)) if isinstance(parts, dict) else [_INDEX]
    if missing:
        raise BaseModelError(
            f"{len(missing)} of the weight files are missing, {missing[0]} among them",
            where=where,
            remedy="copy or download the model again",
        )


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None
