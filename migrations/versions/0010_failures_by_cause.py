"""View admin.failures has a row a cause, wherever it struck; comments that leave out no method."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_METHODS = {"jobs": "method", "queue": "method", "evaluations": "method", "adapters": "method"}


def upgrade() -> None:
    op.execute(f"CREATE OR REPLACE VIEW admin.failures AS {_BY_CODE}")
    _comment("failures", "place", "Where the newest one struck: a field, a file, a step.")
    for view, column in _METHODS.items():
        _comment(view, column, "lora, qlora, full or dpo.")


def downgrade() -> None:
    # The same columns of the same types: a view need not be made anew for its readers.
    op.execute(f"CREATE OR REPLACE VIEW admin.failures AS {_BY_CODE_AND_PLACE}")
    where = "Where: a field, a file, a step. NULL: nowhere in particular."
    _comment("failures", "place", where)
    for view, column in _METHODS.items():
        _comment(view, column, "lora, qlora or full.")


def _comment(view: str, column: str, words: str) -> None:
    op.execute(f"COMMENT ON COLUMN admin.{view}.{column} IS '{words}'")


# A place is the step of a loss that is not finite, or the file of bad rows: grouped by it too, a
# cause would have a row for nearly every job.
_BY_CODE = """
    SELECT error ->> 'code' AS code,
           (array_agg(error ->> 'where' ORDER BY finished_at DESC))[1] AS place,
           count(*) AS jobs, count(DISTINCT tenant_id) AS tenants,
           (array_agg(error ->> 'message' ORDER BY finished_at DESC))[1] AS example,
           (array_agg(id ORDER BY finished_at DESC))[1] AS example_job,
           min(finished_at) AS first_at, max(finished_at) AS last_at
    FROM jobs WHERE state = 'failed' AND finished_at IS NOT NULL
    GROUP BY 1
"""
_BY_CODE_AND_PLACE = """
    SELECT error ->> 'code' AS code, error ->> 'where' AS place, count(*) AS jobs,
           count(DISTINCT tenant_id) AS tenants,
           (array_agg(error ->> 'message' ORDER BY finished_at DESC))[1] AS example,
           (array_agg(id ORDER BY finished_at DESC))[1] AS example_job,
           min(finished_at) AS first_at, max(finished_at) AS last_at
    FROM jobs WHERE state = 'failed' AND finished_at IS NOT NULL
    GROUP BY 1, 2
"""
