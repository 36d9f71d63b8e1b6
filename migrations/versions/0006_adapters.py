"""Adapters under a name: versions, aliases with gates, what people prefer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TABLES = (
    "adapter_names",
    "adapters",
    "adapter_aliases",
    "adapter_gates",
    "adapter_moves",
    "ratings",
)
PREFERRED = ("preferred_tuned", "preferred_base", "preferred_tie")  # of table evaluations


def upgrade() -> None:
    _versions()
    _aliases()
    _ratings()
    for column in PREFERRED:
        op.add_column(
            "evaluations", sa.Column(column, sa.Integer(), server_default="0", nullable=False)
        )
    op.execute(_KEEP_AS_IT_IS)
    op.execute(
        "CREATE TRIGGER adapters_keep BEFORE UPDATE ON adapters"
        " FOR EACH ROW EXECUTE FUNCTION adapters_keep()"
    )
    _view("evaluations", EVALUATIONS.format(more=_MORE, tally=_TALLY), WIN_RATE_COMMENTS)
    _view("adapters", ADAPTERS, ADAPTER_COMMENTS)
    op.execute(
        "COMMENT ON VIEW admin.adapters IS"
        " 'Adapters under a name, one version a row; those that were deleted are left out.'"
    )


def downgrade() -> None:
    op.execute("DROP VIEW admin.adapters")
    # Columns cannot be taken from a view: it is made anew, with its comments and for its readers.
    op.execute(_REMEMBER)
    op.execute("DROP VIEW admin.evaluations")
    _view("evaluations", EVALUATIONS.format(more="", tally=""), {})
    op.execute(_PUT_BACK)
    for column in PREFERRED:
        op.drop_column("evaluations", column)
    for table in reversed(TABLES):
        op.drop_table(table)
    op.execute("DROP FUNCTION adapters_keep()")


def _view(name: str, body: str, comments: dict[str, str]) -> None:
    op.execute(f"CREATE OR REPLACE VIEW admin.{name} AS {body}")
    for column, comment in comments.items():
        quoted = comment.replace("'", "''")
        op.execute(f"COMMENT ON COLUMN admin.{name}.{column} IS '{quoted}'")


# A version is what it was made as: all that may change is that it is deleted, once.
_KEEP_AS_IT_IS = """
    CREATE FUNCTION adapters_keep() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF OLD.deleted_at IS NOT NULL
           OR to_jsonb(NEW) - 'deleted_at' - 'deleted_by'
              IS DISTINCT FROM to_jsonb(OLD) - 'deleted_at' - 'deleted_by' THEN
            RAISE EXCEPTION 'version % of adapter name % never changes', OLD.version, OLD.name_id
                USING ERRCODE = 'integrity_constraint_violation';
        END IF;
        RETURN NEW;
    END $$
"""


def _row_id() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False)


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=nullable)


def _job_id() -> sa.Column[str]:
    return sa.Column("job_id", sa.Text(collation="C"), nullable=False)


def _moment(name: str) -> sa.Column[object]:
    return sa.Column(
        name, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
    )


def _name_id() -> sa.Column[int]:
    return sa.Column("name_id", sa.BigInteger(), nullable=False)


def _of_name(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["name_id"], ["adapter_names.id"], name=f"fk_{table}_name_id", ondelete="CASCADE"
    )


def _of_adapter(table: str, column: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], ["adapters.id"], name=f"fk_{table}_{column}")


def _versions() -> None:
    op.create_table(
        "adapter_names",
        _row_id(),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        _text("name"),
        sa.Column("versions", sa.Integer(), nullable=False),
        _moment("created_at"),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name="fk_adapter_names_tenant_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_adapter_names"),
        sa.UniqueConstraint("tenant_id", "name", name="uq_adapter_names_tenant_id_name"),
    )
    op.create_table(
        "adapters",
        _row_id(),
        _name_id(),
        sa.Column("version", sa.Integer(), nullable=False),
        _job_id(),
        sa.Column("artifact_id", sa.BigInteger(), nullable=False),
        _text("kind"),
        _text("url"),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        _text("digest", nullable=True),
        _text("data_digest", nullable=True),
        _text("base_model"),
        _text("base_revision", nullable=True),
        _text("method"),
        sa.Column("rank", sa.Integer()),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("spec", postgresql.JSONB(), nullable=False),
        sa.Column("code_versions", postgresql.JSONB(), nullable=False),
        _text("registered_by"),
        _moment("registered_at"),
        sa.Column("deleted_at", sa.DateTime(timezone=True)),
        _text("deleted_by", nullable=True),
        sa.CheckConstraint("kind IN ('adapter', 'model')", name=op.f("ck_adapters_kind_known")),
        _of_name("adapters"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_adapters_job_id"),
        sa.ForeignKeyConstraint(["artifact_id"], ["artifacts.id"], name="fk_adapters_artifact_id"),
        sa.PrimaryKeyConstraint("id", name="pk_adapters"),
        sa.UniqueConstraint("name_id", "version", name="uq_adapters_name_id_version"),
    )
    op.create_index(
        "uq_adapters_name_id_job_id",
        "adapters",
        ["name_id", "job_id"],
        unique=True,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    for column in ("job_id", "artifact_id"):
        op.create_index(f"ix_adapters_{column}", "adapters", [column])


def _aliases() -> None:
    op.create_table(
        "adapter_aliases",
        _name_id(),
        _text("alias"),
        sa.Column("adapter_id", sa.BigInteger(), nullable=False),
        _of_name("adapter_aliases"),
        _of_adapter("adapter_aliases", "adapter_id"),
        sa.PrimaryKeyConstraint("name_id", "alias", name="pk_adapter_aliases"),
    )
    op.create_table(
        "adapter_gates",
        _name_id(),
        _text("alias"),
        _text("metric"),
        _text("against"),
        sa.Column("least", sa.Double(), nullable=False),
        _text("set_by"),
        _moment("set_at"),
        sa.CheckConstraint(
            "against IN ('base', 'holder')", name=op.f("ck_adapter_gates_against_known")
        ),
        sa.CheckConstraint("least >= 0", name=op.f("ck_adapter_gates_least_not_negative")),
        _of_name("adapter_gates"),
        sa.PrimaryKeyConstraint("name_id", "alias", "metric", "against", name="pk_adapter_gates"),
    )
    op.create_table(
        "adapter_moves",
        _row_id(),
        _name_id(),
        _text("alias"),
        _text("kind"),
        sa.Column("from_id", sa.BigInteger()),
        sa.Column("to_id", sa.BigInteger()),
        sa.Column("figures", postgresql.JSONB(), nullable=False),
        _text("reason", nullable=True),
        _text("moved_by"),
        _moment("moved_at"),
        sa.CheckConstraint(
            "kind IN ('moved', 'forced', 'rolled_back', 'removed')",
            name=op.f("ck_adapter_moves_kind_known"),
        ),
        _of_name("adapter_moves"),
        _of_adapter("adapter_moves", "from_id"),
        _of_adapter("adapter_moves", "to_id"),
        sa.PrimaryKeyConstraint("id", name="pk_adapter_moves"),
    )
    op.create_index(
        "ix_adapter_moves_name_id_alias_id", "adapter_moves", ["name_id", "alias", "id"]
    )


def _ratings() -> None:
    op.create_table(
        "ratings",
        _job_id(),
        sa.Column("position", sa.Integer(), nullable=False),
        _text("person"),
        _text("preferred"),
        sa.Column("tuned_left", sa.Boolean(), nullable=False),
        _moment("rated_at"),
        sa.CheckConstraint(
            "preferred IN ('tuned', 'base', 'tie', 'skip')",
            name=op.f("ck_ratings_preferred_known"),
        ),
        sa.ForeignKeyConstraint(
            ["job_id", "position"],
            ["samples.job_id", "samples.position"],
            name="fk_ratings_job_id_position",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("job_id", "position", "person", name="pk_ratings"),
    )


# As in 0004, with room for more columns at the end.
EVALUATIONS = """
    SELECT jobs.id AS job, jobs.name, tenants.name AS tenant, jobs.base_model, jobs.method,
           jobs.data_digest, tuned.rows, base.loss AS base_loss, tuned.loss AS tuned_loss,
           base.perplexity AS base_perplexity, tuned.perplexity AS tuned_perplexity,
           base.token_accuracy AS base_token_accuracy,
           tuned.token_accuracy AS tuned_token_accuracy,
           base.exact_match AS base_exact_match, tuned.exact_match AS tuned_exact_match,
           base.bleu AS base_bleu, tuned.bleu AS tuned_bleu,
           base.rouge_l AS base_rouge_l, tuned.rouge_l AS tuned_rouge_l,
           coalesce(lowest.job_id = jobs.id, false) AS best, tuned.created_at AS evaluated_at
           {more}
    FROM evaluations AS tuned
    JOIN jobs ON jobs.id = tuned.job_id
    JOIN tenants ON tenants.id = jobs.tenant_id
    LEFT JOIN evaluations AS base ON base.job_id = tuned.job_id AND base.subject = 'base'
    LEFT JOIN best_evaluations AS lowest ON lowest.base_model = jobs.base_model
                                        AND lowest.data_digest = jobs.data_digest
    {tally}
    WHERE tuned.subject = 'tuned'
"""

# The formula of models/win_rate.py: Wilson's score interval, z = 1.959963984540054. Few jobs are
# rated: the CASE spares the others all of it.
_MORE = """,
           counted.n AS ratings,
           CASE WHEN counted.n > 0 THEN rated.rate END AS win_rate,
           CASE WHEN counted.n > 0 THEN greatest(0, around.centre - around.half) END
               AS win_rate_low,
           CASE WHEN counted.n > 0 THEN least(1, around.centre + around.half) END
               AS win_rate_high
"""
_TALLY = """
    CROSS JOIN LATERAL (
        SELECT tuned.preferred_tuned + tuned.preferred_base + tuned.preferred_tie AS n
    ) AS counted
    CROSS JOIN LATERAL (
        SELECT (tuned.preferred_tuned + tuned.preferred_tie / 2.0::float8) / counted.n AS rate
    ) AS rated
    CROSS JOIN LATERAL (
        SELECT (rate + 3.8414588206941245::float8 / (2 * n))
                   / (1 + 3.8414588206941245::float8 / n) AS centre,
               1.959963984540054::float8 / (1 + 3.8414588206941245::float8 / n)
                   * sqrt(rate * (1 - rate) / n
                          + 3.8414588206941245::float8 / (4 * n::float8 * n)) AS half
    ) AS around
"""
WIN_RATE_COMMENTS = {
    "ratings": "Pairs of answers that people have rated, blind; those skipped are left out.",
    "win_rate": "Part of them, 0 to 1, for the tuned model; a tie is half. NULL: not rated.",
    "win_rate_low": "Lower end of its 95 % confidence interval (Wilson).",
    "win_rate_high": "Upper end of its 95 % confidence interval (Wilson).",
}

ADAPTERS = """
    SELECT tenants.name AS tenant, adapter_names.name, adapters.version,
           ARRAY(SELECT alias FROM adapter_aliases
                 WHERE adapter_aliases.name_id = adapters.name_id
                   AND adapter_aliases.adapter_id = adapters.id ORDER BY alias) AS aliases,
           adapters.job_id AS job, adapters.base_model, adapters.base_revision, adapters.method,
           adapters.rank, adapters.seed, adapters.data_digest,
           adapters.code_versions ->> 'celora' AS celora_version, adapters.url,
           adapters.size_bytes, adapters.digest, adapters.registered_by, adapters.registered_at
    FROM adapters
    JOIN adapter_names ON adapter_names.id = adapters.name_id
    JOIN tenants ON tenants.id = adapter_names.tenant_id
    WHERE adapters.deleted_at IS NULL
"""
ADAPTER_COMMENTS = {
    "tenant": "Tenant that the name belongs to.",
    "name": "Name of the line of adapters.",
    "version": "Number of the version, from 1.",
    "aliases": "Aliases that point at it now.",
    "job": "Id of the job that trained it.",
    "base_model": "Base model that it belongs to.",
    "base_revision": "Commit on the hub, or digest of the folder, of the base model.",
    "method": "lora, qlora or full.",
    "rank": "LoRA rank. NULL for method full.",
    "seed": "Seed that it was trained with.",
    "data_digest": "Digest of the prepared data that it was trained on.",
    "celora_version": "Version of Celora that trained it.",
    "url": "Where its files lie.",
    "size_bytes": "Size of its files.",
    "digest": "sha256 of its weights files.",
    "registered_by": "Who gave it its name.",
    "registered_at": "When it got its name.",
}

# Who may read the view, and what its columns mean, across a making anew.
_REMEMBER = """
    CREATE TEMPORARY TABLE evaluations_remembered ON COMMIT DROP AS
    SELECT NULL::name AS column_name, obj_description(oid) AS comment, NULL::text AS reader
    FROM pg_class WHERE oid = 'admin.evaluations'::regclass
    UNION ALL
    SELECT attname, col_description(attrelid, attnum), NULL FROM pg_attribute
    WHERE attrelid = 'admin.evaluations'::regclass AND attnum > 0
    UNION ALL
    SELECT NULL, NULL, grantee FROM information_schema.role_table_grants
    WHERE table_schema = 'admin' AND table_name = 'evaluations' AND privilege_type = 'SELECT'
      AND grantee <> current_user
"""
_PUT_BACK = """
    DO $$
    DECLARE kept record;
    BEGIN
        FOR kept IN SELECT * FROM evaluations_remembered LOOP
            IF kept.reader IS NOT NULL THEN
                EXECUTE format('GRANT SELECT ON admin.evaluations TO %I', kept.reader);
            ELSIF kept.column_name IS NULL THEN
                EXECUTE format('COMMENT ON VIEW admin.evaluations IS %L', kept.comment);
            ELSIF EXISTS (SELECT FROM pg_attribute
                          WHERE attrelid = 'admin.evaluations'::regclass
                            AND attname = kept.column_name) THEN
                EXECUTE format('COMMENT ON COLUMN admin.evaluations.%I IS %L',
                               kept.column_name, kept.comment);
            END IF;
        END LOOP;
    END $$
"""
