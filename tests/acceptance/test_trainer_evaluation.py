"""A real trainer evaluates: where it has trained, elsewhere, and until it is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpu_worker.protocol import Activity, BaseChecked, Evaluated, Stop, Stopped
from tests.trainer_driver import Trainer, make_run, prepared_data, trained

pytestmark = pytest.mark.torch


def test_the_tuned_model_is_evaluated_where_it_was_trained_and_elsewhere(
    warm: Trainer, base: Path, data: Path, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {
        "method": "qlora",
        "evaluate": True,
        "eval_generate_rows": 4,
        "eval_max_new_tokens": 8,
    }
    run = make_run(base, data, tmp_path / "job", **fields)
    result = trained(warm.run(run))
    evaluate = run.model_copy(update={"stage": "evaluate", "adapter_path": result.path})
    here = warm.run(evaluate)
    assert isinstance(here, Evaluated)
    checks = len(warm.all(BaseChecked))
    assert here.tuned.loss != here.base.loss

    trained(warm.run(make_run(base, data, tmp_path / "other", method="qlora")))
    assert warm.checked().differences == []
    elsewhere = warm.run(evaluate.model_copy(update={"fence": 2}))
    assert isinstance(elsewhere, Evaluated)
    assert len(warm.all(BaseChecked)) == checks + 2
    for name in ("base", "tuned"):
        one, two = getattr(here, name), getattr(elsewhere, name)
        assert one.model_copy(update={"seconds": 0}) == two.model_copy(update={"seconds": 0})
    again = trained(warm.run(make_run(base, data, tmp_path / "again", **fields)))
    assert warm.checked().differences == []
    assert again.digest == result.digest


def test_an_evaluation_stops_in_the_middle(warm: Trainer, base: Path, tmp_path: Path) -> None:
    data = prepared_data(tmp_path / "data", eval_rows=300)
    fields: dict[str, Any] = {"evaluate": True, "eval_generate_rows": 300}
    run = make_run(base, data, tmp_path / "job", **fields, eval_max_new_tokens=400)
    trained(warm.run(run))
    warm.send(run.model_copy(update={"stage": "evaluate"}))
    warm.wait_for(Activity)
    warm.send(Stop(reason="cancel"))
    assert isinstance(warm.wait_for(Stopped, Evaluated), Stopped)
    trained(warm.run(make_run(base, data, tmp_path / "next")))
    assert warm.checked().warm
    assert warm.checked().differences == []


@pytest.mark.slow
def test_a_full_job_is_evaluated_against_its_base(base: Path, data: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"evaluate": True, "eval_generate_rows": 2, "eval_max_new_tokens": 4}
    run = make_run(base, data, tmp_path, method="full", **fields)
    with Trainer() as trainer:
        result = trained(trainer.run(run))
        evaluate = run.model_copy(update={"stage": "evaluate", "adapter_path": result.path})
        here = trainer.run(evaluate)
        assert isinstance(here, Evaluated)
        assert trainer.process.wait(timeout=30) == 0
    with Trainer() as trainer:
        elsewhere = trainer.run(evaluate)
        assert isinstance(elsewhere, Evaluated)
        assert trainer.process.wait(timeout=30) == 0
    assert here.tuned.loss != here.base.loss
    assert elsewhere.tuned.loss == pytest.approx(here.tuned.loss, abs=1e-6)
    assert elsewhere.base.loss == here.base.loss
