"""Who may publish: of a version that no trusted publisher signed, nothing is loaded, not even to be tried."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from anyio import to_thread
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from contract.trust import MAX_ENDORSEMENT_BYTES, UntrustedVersion, check_endorsed, publisher_text
from registry.blobs import Blob, BlobStore, BlobTooLarge


class Publishers:
    """The trusted publishers; where there are none, whoever may write to the store is one."""

    def __init__(self, keys: Sequence[Ed25519PublicKey] = ()) -> None:
        self._keys = tuple(keys)
        texts = sorted({publisher_text(key) for key in keys})
        self.mark = sha256("\n".join(texts).encode()).hexdigest() if texts else ""
        """Another for each set of publishers: with it, what was looked at under other ones is looked at again."""

    async def refusal(self, store: BlobStore, endorsement: Blob | None, digest: str) -> str:
        """Why a version of this hex digest is not taken, or nothing where it is.

        `endorsement` is its signature.json.sig, as it was listed. Raises StoreError, BlobChanged among them.
        """
        if not self._keys:
            return ""
        if endorsement is None:
            return "no publisher signed it: there is no signature.json.sig; publish it with --key"
        try:
            raw = await store.read_small(endorsement.name, MAX_ENDORSEMENT_BYTES, if_match=endorsement.etag)
            await to_thread.run_sync(check_endorsed, raw, digest, self._keys)
        except (UntrustedVersion, BlobTooLarge) as error:
            return f"no trusted publisher signed it: {error}"
        return ""
