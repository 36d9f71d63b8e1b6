"""The pipe between the supervisor and the trainer: JSON lines, one message a line.

Commands go to the trainer's standard input. Messages come back on the descriptor named by
CELORA_MESSAGE_FD, so that a library that prints to standard output cannot break the stream;
standard output and error are captured as log lines. Fields are only ever added, with defaults.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

MESSAGE_FD_VARIABLE = "CELORA_MESSAGE_FD"


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # a newer peer may say more

    def encode(self) -> bytes:
        return self.model_dump_json().encode() + b"\n"


# Commands: supervisor → trainer


class Run(_Line):
    """Run one stage of one attempt. All paths are local folders; the trainer has no credentials."""

    type: Literal["run"] = "run"
    job_id: str
    fence: int
    stage: Literal["train", "evaluate", "export", "generate"]
    spec: dict[str, Any]  # JobSpec as JSON
    batch_size: int  # micro-batch; may be smaller than the spec's after out-of-memory
    gradient_accumulation: int
    base_path: str
    base_name: str  # hub name or folder as the user gave it, for the model card
    base_revision: str
    prepared_path: str  # train.arrow, eval.arrow, verdict.json
    output_path: str  # the attempt's own folder; checkpoints/ and adapter/ go below it
    resume_from: str | None = None  # a registered checkpoint's folder
    # The adapter to begin with. A dpo job needs it beside a checkpoint as well: its reference.
    start_adapter_path: str | None = None
    # The adapter (for method full the model) to evaluate on a process that did not train it, to
    # export or to talk to.
    adapter_path: str | None = None
    work: dict[str, Any] = Field(default_factory=dict)  # models/adapter_work.py
    base_evaluation: dict[str, Any] | None = None  # the base's result on record, with its answers
    facts: dict[str, Any] = Field(default_factory=dict)  # for the model card: data digest, counts
    received_at: float | None = None  # set by the trainer: seconds since the epoch


class Stop(_Line):
    """Stop at the next step; write a checkpoint first unless the job is cancelled."""

    type: Literal["stop"] = "stop"
    reason: Literal["cancel", "pause", "preempt", "drain"]


class Turn(_Line):
    """Generate stage: answer this. Turns are answered one after the other, until a Stop."""

    type: Literal["turn"] = "turn"
    position: int
    subject: Literal["tuned", "base"]
    prompt: str


class Exit(_Line):
    """Leave when idle."""

    type: Literal["exit"] = "exit"


# Messages: trainer → supervisor


class Ready(_Line):
    """Imports are done; the process waits for a command."""

    type: Literal["ready"] = "ready"
    pid: int
    versions: dict[str, str]
    device: str


class Activity(_Line):
    """What the trainer does now, in words, with a count where there is one."""

    type: Literal["activity"] = "activity"
    what: str
    done: int | None = None
    total: int | None = None


class BaseChecked(_Line):
    """The warm base was compared with its snapshot before a job; clean: no `differences`."""

    type: Literal["base_checked"] = "base_checked"
    warm: bool  # False: freshly loaded for this job
    differences: list[str] = []
    seconds: float


class Started(_Line):
    """Training begins (or resumes) at `start_step`, the number of steps already done."""

    type: Literal["started"] = "started"
    start_step: int
    total_steps: int
    trainable_parameters: int
    total_parameters: int
    precision: str
    attention: str
    optimizer: str


class Point(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    step: int
    value: float


class Metrics(_Line):
    """Values per optimizer step, a batch of them. `trained_tokens` is cumulative over resumes."""

    type: Literal["metrics"] = "metrics"
    points: list[Point]
    step: int
    epoch: float
    trained_tokens: int


class Log(_Line):
    type: Literal["log"] = "log"
    level: Literal["debug", "info", "warn", "error"]
    line: str


class CheckpointSaved(_Line):
    """A whole, synced checkpoint stands at `path`. The supervisor registers it and rotates."""

    type: Literal["checkpoint_saved"] = "checkpoint_saved"
    step: int
    path: str
    size_bytes: int
    trained_tokens: int
    metrics: dict[str, float] = {}


class Trained(_Line):
    """The train stage is done; the adapter (or model) is whole and synced at `path`."""

    type: Literal["trained"] = "trained"
    path: str
    kind: Literal["adapter", "model"]
    size_bytes: int
    digest: str  # sha256 of the weights file(s)
    step: int
    trained_tokens: int
    result: dict[str, Any]  # final losses, seconds, peak memory, versions, seeds


class EvaluationResult(BaseModel):
    model_config = ConfigDict(frozen=True)

    rows: int
    generated_rows: int
    loss: float
    perplexity: float
    token_accuracy: float
    exact_match: float | None = None
    bleu: float | None = None
    rouge_l: float | None = None
    seconds: float
    answers: list[str] = []  # generated, in row order


class SampleAnswer(BaseModel):
    model_config = ConfigDict(frozen=True)

    prompt: str
    expected: str
    base_answer: str
    tuned_answer: str


class Ranking(BaseModel):
    """How one model ranks the two answers of held-out preference pairs."""

    model_config = ConfigDict(frozen=True)

    accuracy: float  # share of pairs whose chosen answer is the more probable one, 0–1
    reward_margin: float  # mean of beta × how far it moved the two answers apart
    reward_accuracy: float | None = None  # share with a margin above 0; none for the reference


class Preferences(BaseModel):
    model_config = ConfigDict(frozen=True)

    pairs: int
    base: Ranking
    tuned: Ranking


class Evaluated(_Line):
    type: Literal["evaluated"] = "evaluated"
    base: EvaluationResult
    tuned: EvaluationResult
    base_cached: bool
    samples: list[SampleAnswer]
    preferences: Preferences | None = None  # of a dpo job


class Exported(_Line):
    """The export stands, whole, synced and compared, at `path`."""

    type: Literal["exported"] = "exported"
    path: str
    size_bytes: int
    digest: str  # sha256 of the weights file(s)
    report: dict[str, Any]  # what was compared with what, and what loads it


class AnswerPart(_Line):
    """More of the answer to one turn, or its end."""

    type: Literal["answer_part"] = "answer_part"
    position: int
    text: str  # what has come since the last part
    tokens: int  # so far
    whole: bool = False
    error: str | None = None  # why this turn gets no (whole) answer; the chat goes on


class Stopped(_Line):
    """Stopped as asked; `checkpoint_step` is set when a checkpoint was written for it."""

    type: Literal["stopped"] = "stopped"
    reason: str
    step: int
    checkpoint_step: int | None = None


class Failed(_Line):
    """The stage failed. `error` is CeloraError.record(); `out_of_memory` allows a smaller retry."""

    type: Literal["failed"] = "failed"
    error: dict[str, Any]
    step: int | None = None
    out_of_memory: bool = False
    traceback: str | None = None  # for the log, never for a user


class Replace(_Line):
    """This process is not fit for the command (unclean base, another base, a full job on a used
    process): it leaves at once; start a fresh one and send the same command again."""

    type: Literal["replace"] = "replace"
    why: str


Command = Annotated[Run | Stop | Turn | Exit, Field(discriminator="type")]
Message = Annotated[
    Ready
    | Activity
    | BaseChecked
    | Started
    | Metrics
    | Log
    | CheckpointSaved
    | Trained
    | Evaluated
    | Exported
    | AnswerPart
    | Stopped
    | Failed
    | Replace,
    Field(discriminator="type"),
]

_COMMANDS: TypeAdapter[Run | Stop | Turn | Exit] = TypeAdapter(Command)
_MESSAGES: TypeAdapter[Any] = TypeAdapter(Message)


def parse_command(line: bytes) -> Run | Stop | Turn | Exit:
    return _COMMANDS.validate_json(line)


def parse_message(line: bytes) -> Message:
    """One message. Raises pydantic.ValidationError on a line that is none."""
    message: Message = _MESSAGES.validate_json(line)
    return message
