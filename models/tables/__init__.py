"""The tables, one subject a file. Units stand in column names; times are timestamptz."""

from models.tables.attempts import Attempt
from models.tables.base import Base
from models.tables.forecasts import Forecast
from models.tables.gpus import Gpu, GpuSample
from models.tables.history import Counter, Event, LogLine, Metric
from models.tables.jobs import Job
from models.tables.lanes import GpuNeed, Lane
from models.tables.outbox import Ticket
from models.tables.products import Artifact, Checkpoint, Evaluation, PreparedData, Sample
from models.tables.rollups import BestEvaluation, GpuPrice, TenantDay, WaitDay
from models.tables.tenants import Tenant, UsageDay, User

__all__ = [
    "Artifact",
    "Attempt",
    "Base",
    "BestEvaluation",
    "Checkpoint",
    "Counter",
    "Evaluation",
    "Event",
    "Forecast",
    "Gpu",
    "GpuNeed",
    "GpuPrice",
    "GpuSample",
    "Job",
    "Lane",
    "LogLine",
    "Metric",
    "PreparedData",
    "Sample",
    "Tenant",
    "TenantDay",
    "Ticket",
    "UsageDay",
    "User",
    "WaitDay",
]
