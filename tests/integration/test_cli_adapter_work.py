"""`celora export` and `celora chat` before anything runs: what they refuse, what they leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import celora as api
from celora.conversation import Conversation
from celora.exports import download
from models.errors import InputError, StateError
from models.queries import adapter_work, products
from models.session import transaction
from models.states import Outcome, Stage
from tests import records
from tests.adapter_work import trained

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _empty(database: str) -> None:  # noqa: ARG001 (it has to be there)
    records.clear()


def test_an_export_is_put_on_record_and_shown_as_one(celora: Command) -> None:
    source = trained()
    code, out, _ = celora("export", "last", "--format", "merged", "--json")
    job = json.loads(out)
    assert (code, job["purpose"], job["source_job"]) == (0, "export", source)
    code, out, _ = celora("jobs")
    assert (code, "export" in out) == (0, True)
    code, out, _ = celora("job", job["id"])
    assert (code, f"export, of {source}" in out) == (0, True)


def test_what_cannot_be_exported_is_refused_with_a_remedy(celora: Command, tmp_path: Path) -> None:
    source, waiting = trained(), records.queued()
    code, _, err = celora("export", waiting)
    assert (code, "has no adapter" in err, "What to do" in err) == (4, True, True)
    (tmp_path / "full").write_text("")
    code, _, err = celora("export", source, "-o", str(tmp_path))
    assert (code, "is not empty" in err) == (2, True)
    assert celora("export", "no-name/1")[0] == 2
    with pytest.raises(InputError, match="gguf-ready"):
        api.export(source, "gguf")  # type: ignore[arg-type]  # what a program may pass


def test_a_result_is_copied_whole_to_a_new_folder(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "model.safetensors").write_bytes(b"weights")
    export = api.export(trained(), "merged")
    with pytest.raises(StateError, match="has no result: it is queued"):
        download(export, tmp_path / "out")
    records.place()
    claim = records.claimed(export.id, Stage.EXPORT)
    with transaction() as session:
        adapter_work.register_export(
            session,
            export.id,
            claim.fence,
            url=str(tmp_path / "store"),
            size_bytes=7,
            digest="d",
            report={"format": "merged", "said": "equal"},
        )
        assert products.artifacts_of(session, export.id)[0].kind == "export"
    records.end(export.id, claim.fence, Outcome.COMPLETED)
    folder = download(export, tmp_path / "out")
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    with pytest.raises(InputError, match="not empty"):
        download(export, folder)


def test_a_chat_wants_a_question_for_json(celora: Command) -> None:
    code, _, err = celora("chat", trained(), "--json")
    assert (code, "--prompt" in err) == (2, True)


def test_leaving_while_it_waits_cancels_the_chat() -> None:
    source = trained()
    with Conversation.begin(source) as talk:
        assert talk.job.stage is Stage.GENERATE
    assert records.job(talk.job.id).state == "cancelled"
    with Conversation.begin(source) as talk:
        api.cancel(talk.job)
        with pytest.raises(StateError, match="is over"):
            talk.ask("hello")
