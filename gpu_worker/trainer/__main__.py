"""`python -m gpu_worker.trainer`: start at once, so that nothing is lost while libraries load."""

from __future__ import annotations

import logging
import os
import signal
import warnings


def main() -> None:
    # The supervisor stops a trainer through the pipe or kills it. A terminal's Ctrl-C or a service
    # manager's SIGTERM reaches the whole group and must not tear a checkpoint.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ |= {
        "HF_HUB_OFFLINE": "1",  # everything is local; a look at the hub would only cost time
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    }
    warnings.filterwarnings("ignore", category=FutureWarning)  # the libraries warn each other
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses an optional package

    from gpu_worker.trainer.channel import Channel

    channel = Channel.from_environment()
    from gpu_worker.trainer.main import run

    run(channel)


if __name__ == "__main__":
    main()
