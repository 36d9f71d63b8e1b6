"""What a job may reach beyond what everybody may: its tenant's uploads, and the hub as its tenant.

The token is opened here, in the worker that downloads, and handed to the hub's client alone: it is
in no environment, no argument list, no log, and the trainer never sees it.
"""

from __future__ import annotations

from gpu_worker.lease import Lease
from models.errors import KeyMissingError, SetupError
from models.queries.hub_tokens import tenant_with_token
from models.secrets import unseal
from models.settings import settings
from models.store import files_url
from training_data.access import Access


def access_of(lease: Lease, tenant: str) -> Access:
    """Raises KeyMissingError where the tenant's token was sealed with a key that is not here."""
    tenant_id, sealed = lease.insist(lambda session: tenant_with_token(session, tenant))
    return Access(files_url(tenant_id), None if sealed is None else _opened(sealed, tenant))


def _opened(sealed: str, tenant: str) -> str:
    try:
        return unseal(sealed)
    except SetupError as error:
        raise KeyMissingError(
            f"the hub token of tenant {tenant} cannot be opened here: {error.what}",
            where=f"{error.where or 'installation'}, host {settings().resolved_host}",
            remedy="give this worker the same CELORA_SECRET_KEY as all others and start it again;"
            " `celora doctor` checks it",
        ) from error
