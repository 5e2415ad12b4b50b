"""What an answer of Azure Blob Storage means, as a sentence that says what to look at."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final, cast

from azure.core.exceptions import ClientAuthenticationError, HttpResponseError

from registry.blobs import (
    BlobChanged,
    BlobExists,
    BlobNotFound,
    ContainerMissing,
    StoreDenied,
    StoreError,
    StoreUnavailable,
    redact,
)

_SHOWN_SKEW: Final = timedelta(minutes=5)  # the service refuses what is signed more than 15 minutes off its own clock
_NO_CREDENTIALS: Final = (
    "no credentials are set: give a connection string, an account key or a SAS token"
    ", or `pip install 'millstream[identity]'` for a managed identity"
)


def refusal_of(error: Exception, action: str, *, anonymous: bool = False) -> StoreError:
    """What an error of the SDK means. `action` is a verb and an address without credentials.

    `anonymous` says that the request carried no credentials: then a refusal says which there could be.
    """
    status = error.status_code if isinstance(error, HttpResponseError) else None
    code = getattr(error, "error_code", None)
    code = str(getattr(code, "value", code) or "")
    if status is None and isinstance(error, ClientAuthenticationError):
        return StoreDenied(
            f"cannot {action}: no valid credentials; check the account key, or whether this machine has a managed "
            f"identity"
        )
    if status is None:
        reason = redact(str(error)).strip().partition("\n")[0] or type(error).__name__
        return StoreUnavailable(f"cannot {action}: {reason}")
    answer = f"the store answered {status} {code}".rstrip()
    # A private container is told as an absent one to who shows no credentials.
    if anonymous and (status in (401, 403) or code in ("ResourceNotFound", "PublicAccessNotPermitted")):
        return StoreDenied(f"cannot {action}: {answer}; {_NO_CREDENTIALS}")
    headers = _headers(error)
    if status in (401, 403):
        return StoreDenied(f"cannot {action}: {answer}; {_remedy(code, headers)}")
    if status in (408, 429) or status >= 500:
        pause = _retry_after(headers)
        asked = f", and asks for a pause of {pause:g} s" if pause else ""
        return StoreUnavailable(f"cannot {action}: {answer}{asked}", pause)
    if code in ("ContainerNotFound", "ContainerBeingDeleted", "ContainerDisabled"):
        return ContainerMissing(f"cannot {action}: there is no such container; create it or correct the address")
    if status == 404:
        return BlobNotFound(f"cannot {action}: there is no such blob")
    if code == "BlobAlreadyExists" or (status == 412 and action.startswith("write")):
        return BlobExists(f"cannot {action}: a blob of that name is there already and was left as it is")
    if status == 412 or code == "InvalidBlockList":  # the blocks of one writer end with another's commit
        return BlobChanged(f"cannot {action}: it was written again or removed meanwhile; list again")
    if code == "BlobArchived":
        return StoreError(f"cannot {action}: it is in the archive tier; move it to hot or cool first")
    return StoreError(f"cannot {action}: {answer}")


def _headers(error: Exception) -> Mapping[str, str]:
    return cast("Mapping[str, str]", getattr(getattr(error, "response", None), "headers", None) or {})


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds, from a header that says seconds; 0 where there is none. A date is not waited for: clocks may differ."""
    text = headers.get("Retry-After", "").strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0.0


def _remedy(code: str, headers: Mapping[str, str]) -> str:
    """What to look at where the store said no."""
    if code == "AuthenticationFailed":
        skew = _clock_skew(headers)
        if abs(skew) >= _SHOWN_SKEW:
            minutes = f"{abs(skew).total_seconds() / 60:,.0f} minutes"
            side = "ahead of" if skew > timedelta() else "behind"
            return (
                f"this machine's clock is {minutes} {side} the store's: set it, since requests are signed with the time"
            )
        return (
            "check that the key is the account's current one and that the signature has not expired; "
            "clocks more than 15 minutes apart give this answer too"
        )
    if code in (
        "AuthorizationPermissionMismatch",
        "AuthorizationResourceTypeMismatch",
        "InsufficientAccountPermissions",
    ):
        return (
            "the credentials are good and do not allow this: reading needs read and list, such as the role Storage "
            "Blob Data Reader; publishing needs write too, as Storage Blob Data Contributor has it"
        )
    if code == "AuthorizationFailure":
        return (
            "check the key, the permissions, the signature's expiry, and whether the account's firewall lets this "
            "machine in"
        )
    return "check the key, the signature's expiry and the permissions"


def _clock_skew(headers: Mapping[str, str]) -> timedelta:
    """How far this machine's clock is ahead of the store's, by the answer's own date."""
    try:
        said = parsedate_to_datetime(headers.get("Date", ""))
    except ValueError:
        return timedelta()
    return datetime.now(UTC) - (said if said.tzinfo else said.replace(tzinfo=UTC))
