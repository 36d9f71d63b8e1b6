"""What a job may reach beyond what everybody may: its tenant's uploads, and the hub as its tenant.

The token is opened here, in the worker that downloads, and handed to the hub's client alone: it is
in no environment, no argument list, no log, and the trainer never sees it.
"""

from __future__ import annotations

from gpu_worker.lease import Lease
from models.queries.hub_tokens import tenant_with_token
from models.secrets import unseal
from models.store import files_url
from training_data.access import Access


def access_of(lease: Lease, tenant: str) -> Access:
    """Raises SetupError where the tenant's token was sealed with a key that is not set here."""
    tenant_id, sealed = lease.insist(lambda session: tenant_with_token(session, tenant))
    return Access(files_url(tenant_id), None if sealed is None else unseal(sealed))
