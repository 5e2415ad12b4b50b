"""The blob store that the settings name."""

from __future__ import annotations

from contract.settings import Settings
from registry.blobs import BlobStore, open_store


def configured_store(settings: Settings) -> BlobStore:
    """The store the settings name; nothing is contacted yet. Raises StoreUrlError."""
    return open_store(
        settings.store_url,
        connection_string=settings.azure_connection_string.get_secret_value() or None,
        account_url=settings.azure_account_url or None,
        account_key=settings.azure_account_key.get_secret_value() or None,
        sas_token=settings.azure_sas_token.get_secret_value() or None,
    )
