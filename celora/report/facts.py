"""What a report shows, read once: the record of each job, and what its devices did meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from celora import record
from celora.record import Record
from celora.views import Evaluation
from models.queries import samples
from models.queries.clock import database_time
from models.session import transaction

_METRICS = (
    ("loss on held-out rows", "loss", "{:.4f}"),
    ("perplexity", "perplexity", "{:.2f}"),
    ("token accuracy", "token_accuracy", "{:.1%}"),
    ("exact match", "exact_match", "{:.1%}"),
    ("BLEU", "bleu", "{:.1f}"),
    ("ROUGE-L", "rouge_l", "{:.3f}"),
    ("preferred answer more probable", "preference_accuracy", "{:.1%}"),
    ("reward margin", "reward_margin", "{:.4f}"),
    ("reward accuracy", "reward_accuracy", "{:.1%}"),
)


@dataclass(frozen=True, slots=True)
class Figures:
    """A table: a title for each column of values, and rows of a metric with its values."""

    titles: list[str]
    rows: list[tuple[str, list[str]]]


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """Samples of the devices that the job ran on; seconds since its first claim."""

    seconds: list[float] = field(default_factory=list)
    utilisation_percent: list[float | None] = field(default_factory=list)
    memory_bytes: list[float | None] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Run:
    record: Record
    device: DeviceUse
    label: str  # its name, or the end of its id

    def curve(self, name: str, stage: str = "train") -> tuple[list[int], list[float]]:
        """Steps and values of one metric."""
        points = [p for p in self.record.metrics if (p.stage, p.name) == (stage, name)]
        return [p.step for p in points], [p.value for p in points]


def read_runs(names: list[str]) -> list[Run]:
    """Raises NotFoundError, InputError, UnavailableError."""
    found = [record.read(name) for name in names]
    labels = [one.job.name or one.job.id[-6:] for one in found]
    if len(set(labels)) < len(labels):  # two runs of one name are told apart by their ids
        labels = [f"{label} ({one.job.id[-6:]})" for label, one in zip(labels, found, strict=True)]
    return [Run(one, _device_use(one), label) for one, label in zip(found, labels, strict=True)]


def spec_differences(runs: list[Run]) -> list[tuple[str, list[Any]]]:
    """Fields whose values are not the same in all specifications, with the value of each run."""
    specs = [run.record.job.spec.model_dump(mode="json") for run in runs]
    return [
        (name, [spec[name] for spec in specs])
        for name in specs[0]
        if any(spec[name] != specs[0][name] for spec in specs)
    ]


def figures_of(runs: list[Run]) -> Figures:
    """Base and tuned models on held-out rows. Runs share a column for their base where all of its
    figures are the same."""
    found = [{one.subject: one for one in run.record.evaluations} for run in runs]
    bases = [_figures(by_subject.get("base")) for by_subject in found]
    columns: list[tuple[str, Evaluation | None, str]] = []
    shared = all(base == bases[0] for base in bases)
    for number, (run, by_subject) in enumerate(zip(runs, found, strict=True)):
        if number == 0 or not shared:
            title = "base" if shared else f"base of {run.label}"
            columns.append((title, by_subject.get("base"), ""))
        rated = str(run.record.win_rate) if run.record.win_rate.ratings else ""
        columns.append((run.label if len(runs) > 1 else "tuned", by_subject.get("tuned"), rated))
    values = zip(*(_figures(evaluation) for _, evaluation, _ in columns), strict=True)
    rows = zip(_METRICS, values, strict=True)
    kept = [(words, list(row)) for (words, _, _), row in rows if any(row)]
    if any(rated for _, _, rated in columns):
        kept.append(("win rate, by people", [rated for _, _, rated in columns]))
    return Figures([title for title, _, _ in columns], kept)


def _figures(evaluation: Evaluation | None) -> list[str]:
    values = [None if evaluation is None else getattr(evaluation, name) for _, name, _ in _METRICS]
    return [
        "" if value is None else form.format(value)
        for value, (_, _, form) in zip(values, _METRICS, strict=True)
    ]


def _device_use(one: Record) -> DeviceUse:
    held = [(a.gpu_id, a.claimed_at, a.ended_at) for a in one.attempts if a.gpu_id is not None]
    use = DeviceUse()
    began = min((claimed for _, claimed, _ in held if claimed is not None), default=None)
    if began is None:
        return use
    with transaction() as session:
        now = database_time(session)
        for gpu_id, claimed, ended in held:
            if gpu_id is None or claimed is None:
                continue
            for sample in samples.samples_between(session, gpu_id, claimed, ended or now):
                use.seconds.append((sample.sampled_at - began).total_seconds())
                use.utilisation_percent.append(sample.utilisation_percent)
                use.memory_bytes.append(sample.memory_used_bytes)
    return use
