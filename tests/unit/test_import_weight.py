"""`import celora` is light: a web application that submits jobs must not load a training stack."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "bitsandbytes")

_REPORT = """
import json, resource, sys
{statement}
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({{"cpu": used.ru_utime + used.ru_stime, "loaded": sorted(sys.modules)}}))
"""


def _after(statement: str) -> tuple[float, set[str]]:
    """CPU seconds of a fresh interpreter that runs `statement`, and the modules it has loaded."""
    done = subprocess.run(
        [sys.executable, "-c", _REPORT.format(statement=statement)],
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout)
    return report["cpu"], set(report["loaded"])


def test_neither_the_api_nor_the_tasks_load_a_training_library() -> None:
    _, loaded = _after("import celora, tasks")
    assert not loaded & set(HEAVY)


def test_the_celery_app_loads_no_training_library() -> None:
    _, loaded = _after("import tasks.app; tasks.app.app.loader.import_default_modules()")
    assert not loaded & set(HEAVY)


def test_importing_celora_takes_under_three_tenths_of_a_second_of_cpu() -> None:
    # The best of three: the first may still compile byte code.
    assert min(_after("import celora")[0] for _ in range(3)) < 0.3
