"""The tables, one subject a file. Units stand in column names; times are timestamptz."""

from models.tables.adapters import (
    Adapter,
    AdapterAlias,
    AdapterGate,
    AdapterMove,
    AdapterName,
    Rating,
)
from models.tables.api import ApiKey, ApiRate
from models.tables.attempts import Attempt
from models.tables.base import Base
from models.tables.chats import Chat, ChatTurn
from models.tables.files import StoredFile
from models.tables.forecasts import Forecast
from models.tables.gpus import Gpu, GpuSample
from models.tables.history import Counter, Event, LogLine, Metric
from models.tables.hub_tokens import HubToken
from models.tables.jobs import Job
from models.tables.lanes import GpuNeed, Lane
from models.tables.notifications import Delivery, JobTarget, Target
from models.tables.outbox import Ticket
from models.tables.products import Artifact, Checkpoint, Evaluation, PreparedData, Sample
from models.tables.rollups import BestEvaluation, GpuPrice, TenantDay, WaitDay
from models.tables.tenants import Tenant, UsageDay, User

__all__ = [
    "Adapter",
    "AdapterAlias",
    "AdapterGate",
    "AdapterMove",
    "AdapterName",
    "ApiKey",
    "ApiRate",
    "Artifact",
    "Attempt",
    "Base",
    "BestEvaluation",
    "Chat",
    "ChatTurn",
    "Checkpoint",
    "Counter",
    "Delivery",
    "Evaluation",
    "Event",
    "Forecast",
    "Gpu",
    "GpuNeed",
    "GpuPrice",
    "GpuSample",
    "HubToken",
    "Job",
    "JobTarget",
    "Lane",
    "LogLine",
    "Metric",
    "PreparedData",
    "Rating",
    "Sample",
    "StoredFile",
    "Target",
    "Tenant",
    "TenantDay",
    "Ticket",
    "UsageDay",
    "User",
    "WaitDay",
]
