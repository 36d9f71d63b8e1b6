"""The HTTP API: keys, rates, uploaded files, tokens for the hub."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _keys()
    _files()
    op.create_table(
        "hub_tokens",
        _tenant(),
        sa.Column("sealed", sa.Text(), nullable=False),
        _created(),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_hub_tokens"),
        _of_tenant("hub_tokens"),
    )
    _jobs()


def downgrade() -> None:
    op.drop_column("events", "written_by")
    op.drop_column("jobs", "request")
    op.drop_table("hub_tokens")
    op.drop_table("files")
    op.drop_table("api_rates")
    op.drop_table("api_keys")


def _keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("name", sa.Text()),
        _tenant(),
        sa.Column("user_name", sa.Text(), nullable=False),
        sa.Column("scopes", ARRAY(sa.Text()), nullable=False),
        sa.Column("requests_per_minute", sa.Integer()),
        _instant("expires_at"),
        _instant("revoked_at"),
        _instant("last_used_at"),
        _created(),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("digest", name="uq_api_keys_digest"),
        _of_tenant("api_keys"),
    )
    op.create_index("ix_api_keys_tenant_id", "api_keys", ["tenant_id"])
    op.create_table(
        "api_rates",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("free_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key_id", name="pk_api_rates"),
        sa.ForeignKeyConstraint(
            ["key_id"], ["api_keys.id"], name="fk_api_rates_key_id", ondelete="CASCADE"
        ),
        prefixes=["UNLOGGED"],
        postgresql_with={"fillfactor": "50"},
    )


def _files() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.Text(), nullable=False),
        _tenant(),
        sa.Column("user_name", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("line_count", sa.BigInteger()),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        _created(),
        _instant("expires_at"),
        _instant("deleted_at"),
        sa.PrimaryKeyConstraint("id", name="pk_files"),
        _of_tenant("files"),
    )
    op.create_index("ix_files_tenant", "files", ["tenant_id", "created_at", "id"])
    op.create_index(
        "ix_files_expires",
        "files",
        ["expires_at"],
        postgresql_where=sa.text("deleted_at IS NULL AND expires_at IS NOT NULL"),
    )


def _jobs() -> None:
    op.add_column("jobs", sa.Column("request", JSONB()))
    # The default comes second: given at once it would be computed for every row there is.
    op.add_column("events", sa.Column("written_by", sa.BigInteger()))
    op.alter_column(
        "events",
        "written_by",
        server_default=sa.text("(pg_current_xact_id())::text::bigint"),
    )


def _tenant() -> sa.Column[int]:
    return sa.Column("tenant_id", sa.BigInteger(), nullable=False)


def _of_tenant(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["tenant_id"], ["tenants.id"], name=f"fk_{table}_tenant_id", ondelete="CASCADE"
    )


def _instant(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True))


def _created() -> sa.Column[object]:
    return sa.Column(
        "created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
    )
