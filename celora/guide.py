"""The guide to hyper-parameters: what to set, to what, and why.

`celora guide` and docs/guide.md are both made from it.
Defaults are read from JobSpec, memory from the planner and thresholds from preprocessing: none of
these is written twice. Every other figure has its source beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from celora.planning.known import LLAMA_8B, ROW_TOKENS, planned
from models.spec import DEFAULT_LEARNING_RATES, PROJECTION_LAYERS, JobSpec
from training_data.prepare import FEWEST_PACKED_STEPS
from training_data.verdict import FEW_HELD_OUT, FEW_STEPS

LORA = "Hu et al. 2021, LoRA, arXiv:2106.09685"
QLORA = "Dettmers et al. 2023, QLoRA, arXiv:2305.14314"
LEARNS_LESS = "Biderman et al. 2024, LoRA Learns Less and Forgets Less, arXiv:2405.09673"
RSLORA = "Kalajdzievski 2023, rank-stabilised LoRA (rsLoRA), arXiv:2312.03732"
DPO = "Rafailov et al. 2023, Direct Preference Optimization, arXiv:2305.18290"
LIMA = "Zhou et al. 2023, LIMA, arXiv:2305.11206"
ALPACA = "Taori et al. 2023, Stanford Alpaca, its training recipe"
TRL = "TRL 1.16: DPOConfig's defaults and the documentation of its PEFT integration"
OPENAI = "OpenAI, guide to fine-tuning"


@dataclass(frozen=True, slots=True)
class Setting:
    """A field of JobSpec; `alternatives` are values worth trying, `when` says when."""

    field: str
    alternatives: tuple[Any, ...]
    when: str
    default: str = ""  # in words, where it depends on something

    @property
    def default_text(self) -> str:
        return self.default or _said(JobSpec.model_fields[self.field].default)


@dataclass(frozen=True, slots=True)
class Topic:
    name: str
    title: str
    text: str
    settings: tuple[Setting, ...] = ()
    sources: tuple[str, ...] = ()


def _said(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _gigabytes(method: str) -> str:
    return f"{planned(LLAMA_8B, method=method).expected / 1e9:.0f} GB"


_RATES = ", ".join(f"{rate:g} {method}" for method, rate in DEFAULT_LEARNING_RATES.items())
_BATCH = JobSpec(base_model="m", dataset="d").effective_batch_size

TOPICS = (
    Topic(
        "method",
        "lora, qlora, full or dpo",
        "Begin with lora: it trains a small adapter, forgets less of what the base could do, and"
        " the adapter of one job is small enough to keep many. Take qlora when the base does not"
        " fit: it holds the base in four bits, trains about as well, and is slower, because weights"
        " are unpacked at every use. Take full when lora has stopped getting better with more data"
        " and a higher rank: new knowledge in large amounts (code, mathematics, a new language) is"
        " where low-rank adapters fall behind. Take dpo after one of these, when it is easier to"
        " say which of two answers is better than to write the right one.\n\n"
        f"Llama-3.1-8B, micro-batch 4 of {ROW_TOKENS:,} tokens, is expected to take"
        f" {_gigabytes('qlora')} with qlora, {_gigabytes('lora')} with lora and"
        f" {_gigabytes('full')} with full. `celora plan` says it for your model and your GPUs.",
        (
            Setting("method", ("qlora", "full", "dpo"), "as above"),
            Setting("bf16_pure", (True,), "full alone: half the memory, coarser updates"),
        ),
        (QLORA, LEARNS_LESS),
    ),
    Topic(
        "rank",
        "Rank and alpha",
        "The rank is how much an adapter can change. For a style, a format or a narrow task the"
        " default is plenty: the LoRA paper found ranks of 1 to 8 enough on its tasks, and with"
        " adapters on all layers the QLoRA paper found that the rank hardly mattered. For a lot of"
        " new knowledge a higher one comes nearer to full training (256 is what Biderman et al."
        " recommend where memory allows). Memory and adapter size grow with it in proportion.\n\n"
        "Alpha scales what the adapter adds: by alpha / rank, so that alpha = 2 × rank keeps the"
        " factor 2 whatever the rank. Changing it is much like changing the learning rate: leave it"
        " and tune that. Above rank 64 the factor alpha / rank slows learning down; `use_rslora`"
        " divides by √rank instead. The default alpha at the default rank then scales by 8, not 2:"
        " lower alpha, or the learning rate, with it.",
        (
            Setting("rank", (8, 32, 64, 256), "8 to save memory, 32 to 256 for much new knowledge"),
            Setting("alpha", (16, 64, 128, 512), "2 × rank"),
            Setting("use_rslora", (True,), "from rank 64 on"),
            Setting("dropout", (0, 0.1), "0.1 for a small data set; dpo uses none"),
        ),
        (LORA, QLORA, LEARNS_LESS, RSLORA),
    ),
    Topic(
        "target-modules",
        "Which layers",
        f"All {len(PROJECTION_LAYERS)} projections of attention and feed-forward, which is the"
        " default: adapters on attention alone do not reach full training however high their rank,"
        " and the choice of layers matters more than the rank. `auto` finds the linear layers of a"
        " model whose layers have other names. The output head is never adapted.",
        (Setting("target_modules", ("auto",), "the model's layers have other names"),),
        (QLORA, LEARNS_LESS),
    ),
    Topic(
        "learning-rate",
        "Learning rate",
        f"By default {_RATES}. An adapter wants about ten times the rate of full training. Where"
        " anything is tuned at all, tune this: try a third of it and three times as much, on the"
        " same seed, and keep the highest that trains without the loss jumping. A larger base wants"
        " less: the QLoRA paper trained 7B and 13B at 2e-4, 33B and 65B at 1e-4. A loss that jumps"
        " or turns NaN: lower it. A loss that hardly falls in the first hundred steps: raise"
        " it.\n\n"
        "The gradient's norm is clipped at the QLoRA paper's value. The warm-up is never longer"
        " than a tenth of the run.",
        (
            Setting(
                "learning_rate",
                (3e-5, 3e-4),
                "a third and three times the default of the method",
                default=_RATES,
            ),
            Setting("schedule", ("linear", "constant"), "constant: the end is not known yet"),
            Setting("warmup_steps", (0, 20), "fewer when a run is only some hundred steps"),
            Setting("gradient_clip", (1.0,), "the loss is calm and falls slowly"),
            Setting("weight_decay", (0.01, 0.1), "full on little data; an adapter needs none"),
        ),
        (QLORA, LEARNS_LESS, TRL),
    ),
    Topic(
        "data",
        "How much data, for what",
        "Quality before quantity: 1,000 carefully chosen answers taught a 65B model its style"
        " (LIMA), and 9,000 rows of one chat data set beat 450,000 of another (QLoRA paper).\n\n"
        "- a tone, a format, a fixed structure: tens to hundreds of rows. OpenAI takes 10 at least"
        " and names 50 to 100 as where improvements show;\n"
        "- answering like an assistant: about 1,000 good ones (LIMA);\n"
        "- a task with reasoning: thousands (GSM8K trains on 7,473 worked problems);\n"
        "- knowledge of a field, a programming language: a hundred thousand pairs and more, where"
        " full training is ahead of lora (Biderman et al.);\n"
        "- dpo: two answers to each prompt, like those the model gives itself. Pairs that differ in"
        " one thing teach that thing; where the better answer is always the longer one, length is"
        " what is learnt.\n\n"
        "To know whether more would help, train once on half of it: if the held-out loss is clearly"
        " better on all of it, bring more. `celora validate` finds duplicates, leaks and rows that"
        " are cut off before any of this.",
        (
            Setting(
                "validation_fraction", (0.1, 0.2), "little data: figures on few rows are rough"
            ),
            Setting("eval_dataset", (), "rows that were written for it say more than a split"),
            Setting("loss_on", ("all",), "the prompt is worth learning too, as in plain text"),
        ),
        (LIMA, QLORA, OPENAI, LEARNS_LESS),
    ),
    Topic(
        "epochs",
        "Epochs and steps",
        "Three passes, as Stanford Alpaca had it. Watch the held-out loss (`eval_every_steps`):"
        " when it rises while the training loss falls, the rest is learning by heart; fewer epochs"
        " then, or more data. A few rows take more passes, a hundred thousand one or two."
        f" A run of under {FEW_STEPS} optimizer steps learns little: the data's verdict warns.",
        (
            Setting("epochs", (1, 2, 5), "1 to 2 for very much data, 5 for a few hundred rows"),
            Setting("max_steps", (20,), "a trial of what fits and how fast it is"),
            Setting("eval_every_steps", (50, 100), "whenever a run takes longer than a coffee"),
        ),
        (ALPACA,),
    ),
    Topic(
        "batch",
        "Batch size",
        f"What counts is rows per optimizer step, `batch_size` × `gradient_accumulation`: {_BATCH}"
        " by default, as the QLoRA paper had for its 7B and 13B models. More rows a step are calmer"
        " and fewer steps; with twice as many the learning rate may be half as much again to twice"
        " as high. The micro-batch alone decides about memory, and its size changes nothing in the"
        " result: `celora plan` names the largest that fits. When memory runs out all the same, the"
        " job goes on with half of it and twice the accumulation.",
        (
            Setting("batch_size", (1, 2, 8), "as large as fits"),
            Setting("gradient_accumulation", (1, 2, 16), "what keeps the product"),
            Setting("gradient_checkpointing", ("off",), "memory to spare: faster without"),
        ),
        (QLORA,),
    ),
    Topic(
        "packing",
        "Packing",
        "Rows are much shorter than the longest, and padding costs as much as text. Packed, several"
        " rows share a sequence, kept apart by attention. It makes fewer steps of more rows each:"
        f" `auto` leaves it off where fewer than {FEWEST_PACKED_STEPS} steps would be left."
        " Preference pairs are not packed.",
        (Setting("packing", ("on", "off"), "off to compare with a run elsewhere, step by step"),),
    ),
    Topic(
        "length",
        "Sequence length",
        "Long enough that answers are whole: a row that is cut loses its end, and with it the"
        " lesson where to stop. `celora validate` says how long rows are; take their 99th"
        " percentile, rounded up, and drop the rest. Activations grow with it in proportion,"
        " attention's time with its square.",
        (
            Setting("max_sequence_length", (512, 1024, 4096), "the 99th percentile of your rows"),
            Setting("over_long", ("drop",), "an answer without its end teaches the wrong thing"),
        ),
    ),
    Topic(
        "dpo",
        "Preference pairs",
        "First supervised training, then dpo from its adapter (`after` and `start_from_adapter`):"
        " the paper's reference is the supervised model, and so it is here. `dpo_beta` is how hard"
        " the model is held to that reference: the paper has 0.1, and 0.5 for summaries. Lower lets"
        " it go further, and sooner into nonsense. The rate is low: the paper and TRL have 1e-6 for"
        " a whole model, an adapter takes more.\n\n"
        "Watch `rewards/margins` and `rewards/accuracies`, on held-out pairs too: they should rise"
        " and level off. An accuracy near 1 within a few steps means that the pairs differ in"
        " something trivial, such as length. When `rewards/chosen` falls steadily as well, answers"
        " of both kinds are getting less probable: a higher beta, a lower rate, or fewer epochs.",
        (
            Setting("dpo_beta", (0.05, 0.3, 0.5), "higher: nearer to the reference"),
            Setting("dpo_base", ("qlora",), "the base does not fit"),
            Setting("epochs", (1, 2), "as soon as the held-out accuracy stops rising"),
        ),
        (DPO, TRL),
    ),
    Topic(
        "evaluation",
        "Knowing whether it worked",
        "Every job compares base and tuned model on held-out rows. The loss says whether the"
        " answers became more probable; exact match (with `eval_answer_pattern`) whether they are"
        " right; `celora rate` whether people like them. Under"
        f" {FEW_HELD_OUT} held-out rows all of that is rough. Compare two settings on the same seed"
        " and the same held-out rows, and believe a difference when another seed shows it too.",
        (
            Setting("eval_generate_rows", (50, 1000), "answers are what takes the time"),
            Setting("seed", (1, 2), "to see how much of a difference is chance"),
        ),
    ),
)


def topic(name: str) -> Topic | None:
    """By name or by a field it speaks of."""
    named = next((one for one in TOPICS if one.name == name.replace("_", "-")), None)
    field = name.removeprefix("--").replace("-", "_")
    spoken = (one for one in TOPICS if any(s.field == field for s in one.settings))
    return named or next(spoken, None)


def markdown(topics: Iterable[Topic] = TOPICS) -> str:
    return "\n\n".join("\n".join(_lines(one)) for one in topics)


def record(topics: Iterable[Topic] = TOPICS) -> list[dict[str, Any]]:
    """JSON types only."""
    return [
        asdict(one) | {"settings": [asdict(s) | {"default": s.default_text} for s in one.settings]}
        for one in topics
    ]


def _lines(one: Topic) -> Iterable[str]:
    yield f"## {one.title}\n"
    yield f"{one.text}\n"
    if one.settings:
        yield "| field | default | try | when |"
        yield "| --- | --- | --- | --- |"
        for setting in one.settings:
            tried = ", ".join(map(_said, setting.alternatives)) or "your own"
            yield f"| `{setting.field}` | {setting.default_text} | {tried} | {setting.when} |"
    if one.sources:
        yield f"\nSources: {'; '.join(one.sources)}."
