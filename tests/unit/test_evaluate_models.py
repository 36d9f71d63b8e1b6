"""Base and tuned model are measured right, side by side, and left as they were."""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, LlamaForCausalLM

from gpu_worker.protocol import Evaluated, Run
from gpu_worker.trainer import measure as measuring
from gpu_worker.trainer.answers import answer
from gpu_worker.trainer.evaluate import evaluate, held_out_figures
from gpu_worker.trainer.measure import measure, read_held_out
from gpu_worker.trainer.tiny_base import random_base
from models.errors import DataError, NonFiniteLossError

pytestmark = [
    pytest.mark.torch,
    # PEFT 0.21 asks transformers 5.23 by a name that is on its way out.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

_PAIRS = [
    ("Say one.", "1 is one"),
    ("Say the second number, please, and take your time over it.", "2"),
    ("Three?", "3 it is, and nothing but 3"),
    ("four", "4!"),
]


@dataclass
class Tuned:
    """A base with an adapter that learnt `_PAIRS` by heart."""

    base: Path
    model: Any
    tokenizer: Any
    prepared: Path

    @property
    def rows(self) -> pa.Table:
        return read_held_out(self.prepared / "eval.arrow")

    def run(self, **fields: Any) -> Run:
        spec = {"base_model": "b", "dataset": "d", "eval_max_new_tokens": 24}
        return Run(
            job_id="ftjob-x",
            fence=1,
            stage="evaluate",
            spec=spec | fields.pop("spec", {}),
            batch_size=2,
            gradient_accumulation=1,
            base_path=str(self.base),
            base_name="b",
            base_revision="r",
            prepared_path=str(self.prepared),
            output_path="",
            **fields,
        )

    @contextmanager
    def without_adapter(self) -> Iterator[Any]:
        with self.model.disable_adapter():
            yield self.model

    def evaluate(self, run: Run, report: Any = lambda *_: None) -> Evaluated:
        return evaluate(
            tuned=self.model,
            base_context=self.without_adapter,
            tokenizer=self.tokenizer,
            run=run,
            report=report,
        )


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    base = random_base(tmp_path_factory.mktemp("base"), hidden=32, vocab=400, initializer_range=0.2)
    tokenizer = AutoTokenizer.from_pretrained(base)
    prepared = tmp_path_factory.mktemp("prepared")
    _write_rows(prepared, tokenizer)
    torch.manual_seed(0)
    loaded: Any = LlamaForCausalLM.from_pretrained(base)
    config = LoraConfig(r=8, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(loaded, config)
    ids, labels, mask = measuring.padded(read_held_out(prepared / "eval.arrow"))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(80):
        loss = model(input_ids=ids, labels=labels, attention_mask=mask).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Tuned(base, model, tokenizer, prepared)


def _write_rows(folder: Path, tokenizer: Any) -> None:
    rows = []
    for prompt, expected in _PAIRS:
        start = tokenizer(prompt).input_ids
        end = [*tokenizer(expected).input_ids, tokenizer.eos_token_id]
        rows.append(
            {
                "input_ids": start + end,
                "labels": [-100] * len(start) + end,
                "prompt_ids": start,
                "prompt": prompt,
                "answer": expected,
            }
        )
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(folder / "eval.arrow", table.schema) as stream:
        stream.write_table(table)


def _row_by_row(model: Any, rows: pa.Table) -> tuple[float, float]:
    """Loss per token and accuracy in the plainest way there is."""
    model.eval()
    losses, correct = [], []
    for row in rows.to_pylist():
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        keep = labels[1:] != -100
        wanted = labels[1:][keep]
        losses += cross_entropy(logits[keep], wanted, reduction="none").tolist()
        correct += (logits[keep].argmax(-1) == wanted).tolist()
    return sum(losses) / len(losses), sum(correct) / len(correct)


def _greedy(model: Any, tokenizer: Any, prompt: list[int], most: int) -> str:
    """Greedy decoding without cache, padding or batch."""
    model.eval()
    ids, new = list(prompt), list[int]()
    while len(new) < most:
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
        new.append(token)
    return str(tokenizer.decode(new, skip_special_tokens=True)).strip()


def test_the_loss_is_the_mean_over_all_labelled_tokens(tuned: Tuned) -> None:
    with tuned.without_adapter() as base:
        loss, accuracy = _row_by_row(base, tuned.rows)
        measured = measure(base, tuned.rows)

    assert measured.loss == pytest.approx(loss, rel=1e-5)
    assert measured.token_accuracy == pytest.approx(accuracy)
    assert measured.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    assert measured.rows == len(_PAIRS)
    assert measured.tokens == sum(
        label != -100 for row in tuned.rows["labels"].to_pylist() for label in row
    )


@pytest.mark.parametrize(("batch_tokens", "chunk"), [(1, 1024), (40, 3), (8192, 5)])
def test_it_does_not_depend_on_batches(
    tuned: Tuned, monkeypatch: pytest.MonkeyPatch, batch_tokens: int, chunk: int
) -> None:
    whole = measure(tuned.model, tuned.rows)
    monkeypatch.setattr(measuring, "_BATCH_TOKENS", batch_tokens)
    monkeypatch.setattr(measuring, "_CHUNK", chunk)

    cut = measure(tuned.model, tuned.rows)

    assert cut.loss == pytest.approx(whole.loss, rel=1e-5)
    assert (cut.tokens, cut.token_accuracy) == (whole.tokens, whole.token_accuracy)


def test_labels_in_the_middle_count_and_the_first_token_cannot(tuned: Tuned) -> None:
    """A chat row: two answers, and a label on the first token, which nothing foretells."""
    ids = [5, 6, 7, 8, 9, 10, 11]
    rows = pa.Table.from_pylist([{"input_ids": ids, "labels": [5, -100, 7, -100, -100, 10, 11]}])

    measured = measure(tuned.model, rows)

    assert measured.tokens == 3
    assert measured.loss == pytest.approx(_row_by_row(tuned.model, rows)[0], rel=1e-5)


def test_answers_are_greedy_and_end_where_the_model_ends(tuned: Tuned) -> None:
    prompts = tuned.rows["prompt_ids"].to_pylist()

    answers = answer(tuned.model, tuned.tokenizer, prompts, max_new_tokens=24)

    assert answers == [expected for _, expected in _PAIRS]  # learnt by heart, ended by EOS
    with tuned.without_adapter() as base:
        plain = [_greedy(base, tuned.tokenizer, prompt, 6) for prompt in prompts]
        assert answer(base, tuned.tokenizer, prompts, max_new_tokens=6) == plain


def test_the_models_own_sampling_settings_are_not_used(tuned: Tuned) -> None:
    prompts = tuned.rows["prompt_ids"].to_pylist()
    config = tuned.model.get_base_model().generation_config
    config.update(do_sample=True, temperature=5.0, repetition_penalty=9.0)
    before = config.to_dict()
    try:
        answers = answer(tuned.model, tuned.tokenizer, prompts, max_new_tokens=24)
        assert config.to_dict() == before
    finally:
        config.update(do_sample=None, temperature=None, repetition_penalty=None)

    assert answers == [expected for _, expected in _PAIRS]


def test_base_and_tuned_stand_side_by_side(tuned: Tuned) -> None:
    seen: list[tuple[str, int, int]] = []

    result = tuned.evaluate(tuned.run(), lambda *told: seen.append(told))

    fresh: Any = LlamaForCausalLM.from_pretrained(tuned.base)
    assert result.base.loss == pytest.approx(_row_by_row(fresh, tuned.rows)[0], rel=1e-5)
    assert result.base.exact_match == 0
    assert result.tuned.exact_match == 1
    assert result.tuned.loss < result.base.loss
    assert result.tuned.rouge_l == pytest.approx(1)
    assert not result.base_cached
    assert [(s.prompt, s.expected) for s in result.samples] == _PAIRS
    assert [s.tuned_answer for s in result.samples] == result.tuned.answers
    assert [s.base_answer for s in result.samples] == result.base.answers
    assert seen[0] == ("tuned model: reading held-out rows", 4, 4)
    assert seen[-1] == ("base model: answering held-out rows", 4, 4)
    assert Evaluated.model_validate_json(result.encode()) == result


def test_a_base_on_record_is_not_measured_again(tuned: Tuned) -> None:
    first = tuned.evaluate(tuned.run())
    entered = []

    again = evaluate(
        tuned=tuned.model,
        base_context=lambda: entered.append(1),  # type: ignore[arg-type, return-value]  # must not be called
        tokenizer=tuned.tokenizer,
        run=tuned.run(base_evaluation=first.base.model_dump()),
        report=lambda *_: None,
    )

    assert not entered
    assert again.base_cached
    assert again.base == first.base
    assert again.samples == first.samples


def test_only_as_many_rows_are_answered_as_asked(tuned: Tuned) -> None:
    two = tuned.evaluate(tuned.run(spec={"eval_generate_rows": 2}))
    none = tuned.evaluate(tuned.run(spec={"eval_generate_rows": 0}))

    assert (two.tuned.rows, two.tuned.generated_rows, len(two.samples)) == (4, 2, 2)
    assert (none.tuned.generated_rows, none.tuned.exact_match, none.samples) == (0, None, [])
    assert none.tuned.loss == two.tuned.loss


def test_evaluation_leaves_no_trace(tuned: Tuned) -> None:
    model, inner = tuned.model, tuned.model.get_base_model()
    model.train()
    inner.model.layers[0].eval()  # somebody put one part to sleep
    inner.config.use_cache = False
    inner.activation_checkpointing_enable()
    before, randomness = _traces(tuned), _randomness()

    tuned.evaluate(tuned.run())

    assert _traces(tuned) == before
    assert _randomness() == randomness
    inner.activation_checkpointing_disable()
    inner.config.use_cache = True


def test_a_stop_in_the_middle_leaves_no_trace(tuned: Tuned) -> None:
    class Stop(Exception):  # noqa: N818  as the trainer's own
        pass

    def stop_in_base(what: str, *_: int) -> None:
        if what.startswith("base model: answering"):
            raise Stop

    tuned.model.train()
    before, randomness = _traces(tuned), _randomness()
    with pytest.raises(Stop):
        tuned.evaluate(tuned.run(), stop_in_base)

    assert _traces(tuned) == before
    assert _randomness() == randomness
    assert tuned.evaluate(tuned.run()).tuned.exact_match == 1  # the adapter is on again


def _traces(tuned: Tuned) -> dict[str, Any]:
    model, inner = tuned.model, tuned.model.get_base_model()
    return {
        "training": [module.training for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "config": inner.config.to_dict(),
        "generation": inner.generation_config.to_dict(),
        "padding_side": tuned.tokenizer.padding_side,
    }


def _randomness() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate()


def test_a_run_trains_the_same_with_and_without_held_out_figureses(tuned: Tuned) -> None:
    def losses(*, evaluating: bool) -> list[float]:
        torch.manual_seed(3)
        base: Any = LlamaForCausalLM.from_pretrained(tuned.base)
        model = get_peft_model(base, LoraConfig(r=4, lora_dropout=0.3, task_type="CAUSAL_LM"))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        ids, labels, mask = measuring.padded(tuned.rows)
        model.train()
        seen = []
        for _ in range(4):
            loss = model(input_ids=ids, labels=labels, attention_mask=mask).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
            if evaluating:
                assert held_out_figures(model, tuned.prepared / "eval.arrow")
        return seen

    assert losses(evaluating=True) == losses(evaluating=False)


def test_no_held_out_rows_is_said_and_not_scored(tuned: Tuned, tmp_path: Path) -> None:
    run = tuned.run().model_copy(update={"prepared_path": str(tmp_path)})

    assert held_out_figures(tuned.model, tmp_path / "eval.arrow") == {}
    with pytest.raises(DataError, match="no held-out rows"):
        tuned.evaluate(run)


def test_a_broken_model_is_an_error_not_a_figure(tuned: Tuned) -> None:
    broken: Any = LlamaForCausalLM.from_pretrained(tuned.base)
    broken.model.norm.weight.data.fill_(float("nan"))

    with pytest.raises(NonFiniteLossError):
        measure(broken, tuned.rows)
