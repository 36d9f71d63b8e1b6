"""Names that other systems rely on: tasks, queues, workers. They only grow."""

from __future__ import annotations

from models.abilities import RELEASES, preparation_queue

SUBMIT = "celora.submit"
PREPROCESS = "celora.preprocess"
TRAIN = "celora.train"
EVALUATE = "celora.evaluate"
EXPORT = "celora.export"
GENERATE = "celora.generate"
NOTIFY = "celora.notify"

CPU_QUEUE = "celora.cpu"
# All that a cpu worker of this version consumes for its preparations: one queue for what any worker
# can prepare, one more for each version that brought something which earlier ones cannot.
CPU_QUEUES = (CPU_QUEUE, *(preparation_queue(CPU_QUEUE, one) for one in RELEASES))
# Where a foreign app's `send_task` lands when it sets no queue.
DEFAULT_QUEUE = "celery"


def gpu_queue(host: str, index: int) -> str:
    return f"celora.gpu.{host}.{index}"


def gpu_worker(host: str, index: int) -> str:
    return f"gpu{index}@{host}"


def cpu_worker(host: str) -> str:
    return f"cpu@{host}"
