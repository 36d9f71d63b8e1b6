"""The Celery application: every setting with its reason.

The message is only a nudge; the row in Postgres decides (docs/decisions). So a message may be lost,
doubled or late, and nothing here tries to make the broker keep a promise for a day.
"""

from __future__ import annotations

from celery import Celery
from kombu import Queue

from gpu_worker.devices import own_device
from models.settings import settings
from tasks.broker import broker_settings
from tasks.names import CPU_QUEUE, CPU_QUEUES, DEFAULT_QUEUE, NOTIFY, PREPROCESS, SUBMIT

# Several workers write into one log: each line says whose it is.
_device = own_device()
_who = "cpu" if _device is None else f"gpu{_device.index}"

app = Celery("celora")

app.conf.update(
    broker_settings(settings().resolved_broker_url),
    include=[
        "tasks.submit",
        "tasks.preprocess",
        "tasks.train",
        "tasks.evaluate",
        "tasks.export",
        "tasks.generate",
        "tasks.notify",
        "tasks.signals",
    ],
    # Acknowledged on receipt: with late acknowledgement RabbitMQ's delivery timeout makes a long
    # job run twice. Only `celora.submit`, which takes milliseconds, acknowledges late.
    task_acks_late=False,
    # At most one ticket waits in a worker: the others can be placed elsewhere.
    worker_prefetch_multiplier=1,
    # solo starves the heartbeats while a task runs, threads cannot be terminated.
    worker_pool="prefork",
    # Durable classic queues without arguments: a client that declares them otherwise is refused,
    # and quorum queues add nothing where the row is the truth. Queues of GPUs are made when a
    # worker consumes from one or a ticket is sent to one.
    task_default_queue=DEFAULT_QUEUE,
    task_queues=tuple(Queue(name, routing_key=name) for name in (*CPU_QUEUES, DEFAULT_QUEUE)),
    task_create_missing_queues=True,
    task_routes={name: {"queue": CPU_QUEUE} for name in (SUBMIT, PREPROCESS, NOTIFY)},
    # JSON alone, in every direction: a pickle would run its sender's code.
    task_serializer="json",
    accept_content=["json"],
    result_serializer="json",
    result_accept_content=["json"],
    event_serializer="json",
    # Results live in Postgres. STARTED would stay for ever after a loss.
    task_ignore_result=True,
    task_track_started=False,
    result_persistent=False,
    # Flower shows tasks from these events; they cost nothing when nobody listens.
    worker_send_task_events=True,
    # A broker that is away is waited for, for ever: what runs goes on without it.
    broker_connection_retry=True,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_connection_timeout=4.0,
    # A ticket that lies in a busy worker for longer than RabbitMQ's delivery timeout closes the
    # channel: connected to anew, or the worker would leave and take its running job along.
    broker_channel_error_retry=True,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_enable_prefetch_count_reduction=False,  # tickets are acknowledged when they arrive
    # A chain's tail that cannot be sent is given up soon: the dispatcher sends it again.
    task_publish_retry_policy={
        "max_retries": 3,
        "interval_start": 0,
        "interval_step": 0.2,
        "interval_max": 1,
    },
    # A child has to be up within this; it registers its device in a thread, but imports first.
    worker_proc_alive_timeout=60.0,
    worker_disable_rate_limits=True,
    worker_redirect_stdouts=False,
    worker_log_format=f"%(asctime)s {_who} %(levelname)s %(name)s: %(message)s",
    worker_task_log_format=f"%(asctime)s {_who} %(levelname)s %(task_name)s: %(message)s",
)
