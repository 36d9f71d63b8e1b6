"""What an operator can set, each as the environment variable CELORA_<NAME>.

docs/settings.md is the table of these; a test holds that it names every one.
"""

from __future__ import annotations

import hashlib
import os
import socket
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="CELORA_", frozen=True, extra="ignore")

    database_url: str = Field("", description="Postgres URL; empty: the embedded server in `home`")
    broker_url: str = Field("", description="Celery broker URL; empty: a folder in `home`")
    broker_ca: str = Field(
        "", description="file of the authority that an amqps:// broker's certificate comes from"
    )
    artifacts: str = Field("", description="fsspec URL for checkpoints, prepared data and adapters")
    home: Path = Field(Path("~/.celora"), description="folder for all local state")

    secret_key: SecretStr | None = Field(
        None, description="Fernet keys that seal stored secrets; the first seals, all open"
    )

    host: str = Field("", description="name of this machine in queues and tables; empty: its own")
    lock_folder: str = Field(
        "", description="folder of the GPU locks, one for all users of a machine"
    )

    lease_seconds: float = Field(60, gt=0, description="how long an attempt owns a job unrenewed")
    renew_seconds: float = Field(10, gt=0, description="how often a lease is renewed")
    control_seconds: float = Field(2, gt=0, description="how often a stop request is looked for")
    kill_margin_seconds: float = Field(
        10, gt=0, description="time kept before the lease's end for killing the trainer"
    )
    stop_grace_seconds: float = Field(
        60, gt=0, description="time a stopping trainer has to write its checkpoint"
    )
    cancel_grace_seconds: float = Field(
        5, gt=0, description="time a cancelled trainer has to stop by itself and stay warm"
    )
    trainer_start_seconds: float = Field(
        300, gt=0, description="time a new trainer process has to say that it is ready"
    )
    fetch_patience_seconds: float = Field(
        60, ge=0, description="how long an attempt goes on asking a hub or store that is away"
    )
    hub_away_days: float = Field(
        7,
        ge=0,
        description="while the hub is away: how long its last yes to an account holds for a gated"
        " or private model that is cached",
    )
    poll_seconds: float = Field(5, gt=0, description="dispatcher's pass without a wake-up")
    resend_seconds: float = Field(
        30, gt=0, description="age at which an unclaimed ticket is published again"
    )
    gpu_heartbeat_seconds: float = Field(5, gt=0, description="how often a GPU reports itself")
    gpu_stale_seconds: float = Field(
        30, gt=0, description="age of a heartbeat at which a GPU counts as gone"
    )
    roll_up_seconds: float = Field(
        60, gt=0, description="how often use, waits and costs are counted by day"
    )
    sample_seconds: float = Field(
        5, gt=0, description="how often a device's utilisation and memory are recorded"
    )
    trainer_idle_seconds: float = Field(
        900, gt=0, description="idle time after which the warm trainer leaves"
    )
    max_losses: int = Field(
        3, ge=1, description="losses without a new checkpoint after which a job fails"
    )
    prepare_in_flight: int = Field(
        8, ge=1, description="preprocessing tickets that may wait or run at once"
    )
    usage_half_life_seconds: float = Field(
        86_400, gt=0, description="half-life of a tenant's GPU use in the fair share"
    )
    priority_ageing_seconds: float = Field(
        3_600, gt=0, description="waiting that is worth as much as one step of priority"
    )
    warm_head_start_seconds: float = Field(
        30,
        ge=0,
        description="how much earlier a job may go because its base model is loaded on a free GPU",
    )
    chat_idle_seconds: float = Field(
        300, gt=0, description="a chat in which nothing is asked for so long ends"
    )
    chat_lost_seconds: float = Field(
        30, gt=0, description="a chat whose client has not been heard of for so long ends"
    )
    chat_keep_seconds: float = Field(
        86_400, ge=0, description="how long after its end what was said in a chat is kept"
    )
    sweep_seconds: float = Field(
        600, gt=0, description="how often the dispatcher deletes what retention lets go"
    )
    orphan_seconds: float = Field(
        86_400,
        gt=0,
        description="age at which files that belong to nothing on record are deleted",
    )
    notify_attempts: int = Field(
        11, ge=1, description="tries after which a notification is given up"
    )
    notify_retry_seconds: float = Field(
        5, gt=0, description="pause after a notification's first try; each next one is 4 times that"
    )
    notify_timeout_seconds: float = Field(
        15, gt=0, description="time that one try of a notification may take"
    )
    notify_log_days: float = Field(
        30, ge=0, description="how long deliveries that are over stay on record"
    )
    notify_services: str = Field(
        "mailto,mailtos,slack,workflows,tgram,discord,gchat,mmosts,rockets,matrixs,ntfys,gotifys,"
        "pover,pagerduty,opsgenie,webex,zulip,jsons",
        description="comma-separated Apprise services (URL schemes) that targets may use",
    )
    notify_private_hosts: str = Field(
        "",
        description="comma-separated hosts and networks that notifications may reach although "
        "they are private: chat.corp, 10.1.0.0/16",
    )
    notify_allow_http: bool = Field(
        default=False, description="accept webhooks whose URL is http://, without encryption"
    )
    max_row_problems: int = Field(
        50, ge=1, description="row problems listed before the rest is counted"
    )
    remote_code_models: str = Field(
        "", description="comma-separated base models that may run their own code"
    )
    dataset_roots: str = Field(
        "",
        description="path-separated folders that workers read data sets from, whoever submitted"
        " the job and with links followed; empty: any",
    )
    api_requests_per_minute: int = Field(
        600, ge=0, description="HTTP requests of one API key in a minute; 0: any number"
    )
    api_streams_per_key: int = Field(
        100, ge=0, description="streams of jobs that one API key may have open in one API process"
    )
    api_streams: int = Field(
        1000, ge=0, description="streams of jobs that one API process holds open for all"
    )
    api_metrics_token: SecretStr | None = Field(
        None, description="token that /metrics asks for; empty: it answers on this machine alone"
    )
    api_dataset_schemes: str = Field(
        "https", description="comma-separated: https, http; data URLs that HTTP callers may give"
    )
    api_dataset_roots: str = Field(
        "",
        description="comma-separated folders and URLs (s3://bucket/data) below which HTTP callers"
        " may name data; empty: none",
    )
    api_dataset_networks: str = Field(
        "", description="comma-separated private networks that data URLs of HTTP callers may reach"
    )
    api_file_bytes: int = Field(
        512 * 1024**2, gt=0, description="largest file that may be uploaded over HTTP"
    )
    api_body_bytes: int = Field(1024**2, gt=0, description="largest body of any other HTTP request")
    api_body_seconds: float = Field(
        60, gt=0, description="how long an HTTP request may stand still before it is whole"
    )
    model_aliases: str = Field(
        "",
        description="comma-separated alias=base pairs for HTTP: gpt-4o-mini=owner/model",
    )
    serving_url: str = Field(
        "", description="vLLM server that `/v1/chat/completions` goes to: http://host:8000/v1"
    )
    serving_key: SecretStr | None = Field(None, description="API key of that server")
    allow_scripted: bool = Field(
        default=False, description="accept `scripted:` base models (fault and chaos tests)"
    )

    def at_home(self, *parts: str) -> Path:
        """A path below `home`, which is expanded and absolute."""
        return self.home.expanduser().absolute().joinpath(*parts)

    @property
    def resolved_host(self) -> str:
        return self.host or socket.gethostname()

    @property
    def artifacts_url(self) -> str:
        return self.artifacts or str(self.at_home("artifacts"))

    @property
    def resolved_broker_url(self) -> str:
        return self.broker_url or f"filesystem://{self.at_home('broker')}"

    @property
    def embedded_postgres(self) -> Path:
        """Folder of the embedded server: data, binaries where copied, and its 0700 socket folder.

        PostgreSQL refuses to run as root, and the unprivileged user it then runs under cannot
        look into root's home: root's server lives in /var/lib/celora instead.
        """
        if os.geteuid() != 0:
            return self.at_home("postgres")
        name = hashlib.sha256(str(self.at_home()).encode()).hexdigest()[:12]
        return Path("/var/lib/celora") / name

    @property
    def resolved_database_url(self) -> str:
        if self.database_url:
            return self.database_url
        folder = quote(str(self.embedded_postgres / "socket"))
        return f"postgresql+psycopg://celora@/celora?host={folder}"


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The process's settings, read once. Tests call `settings.cache_clear()`."""
    return Settings()
