"""A data set from the hub, streamed by the `datasets` library and pinned to one commit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from models.errors import CeloraError, InputError, UnavailableError
from training_data.access import access
from training_data.hub_reach import is_away, limit_waits
from training_data.locations import HubName, first_split
from training_data.problems import Problems
from training_data.watch import PreparationStopped, Watch


class HubData:
    def __init__(self, place: HubName, watch: Watch) -> None:
        self.place = place
        self._watch = watch

    @cached_property
    def commit(self) -> str:
        """The commit that the name means now. Every reading is of this one."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import (
            GatedRepoError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        try:
            token = access().hub_token
            info = HfApi().dataset_info(
                self.place.name, revision=self.place.revision, timeout=30, token=token
            )
            if info.gated or info.private:
                # Its rows may have been prepared before, for somebody who may read them.
                HfApi().auth_check(self.place.name, repo_type="dataset", token=token)
        except GatedRepoError:
            raise InputError(
                "the data set is gated, and the account that asked has no access",
                where=self.place.name,
                remedy="accept its terms on the hub, then give the tenant its token with "
                "`celora tenants token set`, or set HF_TOKEN on the cpu worker",
            ) from None
        except (RepositoryNotFoundError, RevisionNotFoundError):
            at = f" at revision {self.place.revision}" if self.place.revision else ""
            raise InputError(
                f"neither a file here nor a data set on the hub{at}",
                where=self.place.name,
                remedy="check the name; a private data set needs HF_TOKEN on the cpu worker",
            ) from None
        except Exception as error:
            # The hub's client lets its HTTP library's own exceptions through.
            raise _not_given(self.place.name, error) from error
        return str(info.sha)

    @cached_property
    def split(self) -> str:
        """The first of the wanted splits that the data set has."""
        if len(self.place.splits) == 1:
            return self.place.splits[0]
        with _explained(self.place.name):
            there = _library(self.place.name).get_dataset_split_names(
                self.place.name,
                self.place.config,
                revision=self.commit,
                token=access().hub_token,
            )
        return first_split(self.place.splits, there, self.place.name)

    @property
    def digest(self) -> str:
        """A commit stands for its bytes; configuration and split say which of them."""
        return f"hub:{self.place.name}@{self.commit}:{self.place.config or ''}:{self.split}"

    def digest_now(self) -> str:
        return self.digest

    def records(
        self,
        problems: Problems,
        wanted: frozenset[str],
        scratch: Path,  # noqa: ARG002 - as FileData.records
    ) -> Iterator[tuple[int, Any]]:
        """Rows by number. Raises InputError, UnavailableError."""
        del problems  # the library raises on broken data; it knows no single rows to blame
        with _explained(self.place.name):
            stream = _library(self.place.name).load_dataset(
                self.place.name,
                self.place.config,
                split=self.split,
                revision=self.commit,
                streaming=True,
                token=access().hub_token,
            )
            kept = [name for name in stream.column_names or [] if name in wanted]
            rows = stream.select_columns(kept) if kept else stream
            for number, record in enumerate(rows, start=1):
                self._watch.look()
                yield number, record


def _library(name: str) -> Any:
    """The `datasets` package, which a machine without the trainer may lack."""
    try:
        import datasets
    except ImportError:
        raise InputError(
            "reading from the hub needs the `datasets` package",
            where=name,
            remedy="pip install 'celora[train]' on the cpu worker, or give a file",
        ) from None
    limit_waits()
    return datasets


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except (CeloraError, PreparationStopped):
        raise
    except ValueError as error:
        raise InputError(
            f"the hub data set cannot be read so: {error}",
            where=name,
            remedy="name the configuration as owner/name:config, and a split that exists",
        ) from error
    except Exception as error:
        # `datasets` raises whatever its parsers and its HTTP library raise.
        raise _not_given(name, error) from error


def _not_given(name: str, error: Exception) -> CeloraError:
    if is_away(error):
        return UnavailableError(
            f"the hub did not answer: {type(error).__name__}: {error}",
            where=name,
            remedy="check the network and HF_ENDPOINT on the cpu worker, or give a file",
        )
    return InputError(
        f"the hub did not give the data set: {type(error).__name__}: {error}",
        where=name,
        remedy="check that it loads with `datasets.load_dataset`; a private one needs HF_TOKEN on"
        " the cpu worker",
    )
