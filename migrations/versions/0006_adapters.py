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


def upgrade() -> None:
    _versions()
    _aliases()
    _ratings()
    op.execute(_KEEP_AS_IT_IS)
    op.execute(
        "CREATE TRIGGER adapters_keep BEFORE UPDATE ON adapters"
        " FOR EACH ROW EXECUTE FUNCTION adapters_keep()"
    )


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)
    op.execute("DROP FUNCTION adapters_keep()")


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
