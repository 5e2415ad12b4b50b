"""Where a container is: the forms in which people write it down."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import SplitResult, unquote, urlsplit

from registry.blobs import StoreUrlError, is_blob_name, redact

_CONTAINER_NAME: Final = re.compile(r"\$root|\$web|(?=.{3,63}$)[a-z0-9]+(?:-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class AzureAddress:
    """A container of an Azure storage account, or the part of it below a prefix."""

    account: str | None
    """The account's URL without a query; None where a connection string names it."""
    container: str
    prefix: str = ""
    """A folder's name, without slashes around it."""
    signature: str | None = field(default=None, repr=False)
    """The shared access signature that came in a URL."""

    @classmethod
    def parse(cls, url: str, account_url: str | None = None) -> Self:
        """From `azure://container[/prefix]` with the account's URL beside it, or `https://account/container[/prefix][?sas]`.

        Raises `StoreUrlError`.
        """
        parts = urlsplit(url)
        account: str | None
        if "@" in parts.netloc:
            raise StoreUrlError("the address of a container holds a user name or password; give credentials apart")
        if parts.scheme == "azure":
            if parts.query or parts.fragment:
                raise StoreUrlError(f"{redact(url)!r} holds more than azure://container/prefix; give credentials apart")
            endpoint = urlsplit(account_url) if account_url else None
            if endpoint and (endpoint.scheme not in ("https", "http") or not endpoint.hostname):
                raise StoreUrlError(
                    f"{redact(str(account_url))!r} is no account URL: expected https://name.blob.core.windows.net"
                )
            account = f"{endpoint.scheme}://{endpoint.netloc}{endpoint.path}".rstrip("/") if endpoint else None
            path, signature = parts.netloc + parts.path, endpoint.query if endpoint else ""
        else:
            account, path = _split_account(parts)
            signature = parts.query
        container, _, prefix = unquote(path).strip("/").partition("/")
        if not _CONTAINER_NAME.fullmatch(container) or (prefix and not is_blob_name(prefix)):
            raise StoreUrlError(
                f"{redact(url)!r} names no container: expected azure://container/prefix or "
                f"https://account.blob.core.windows.net/container/prefix, where the container's name is 3 to 63 "
                f"lower-case letters, digits and single hyphens and the prefix a plain path"
            )
        return cls(account, container, prefix, signature or None)

    @property
    def account_name(self) -> str:
        """What requests are signed with: the host's first label, or the path where an emulator has it."""
        parts = urlsplit(self.account or "")
        return parts.path.strip("/") if _is_emulator(parts) else (parts.hostname or "").partition(".")[0]

    def required_account(self) -> str:
        """The account's URL. Raises `StoreUrlError` where there is none."""
        if self.account:
            return self.account
        raise StoreUrlError(
            f"azure://{self.container} does not say in which account: give a connection string, or an account URL "
            f"(https://name.blob.core.windows.net) with an account key, a shared access signature or a managed identity"
        )

    def refuse_account(self) -> None:
        """Raises `StoreUrlError` where an account is named: a connection string names one of its own."""
        if self.account:
            raise StoreUrlError(
                f"both {self.account} and a connection string name an account: give azure://{self.container} with the "
                f"connection string alone, or the account with a key or a shared access signature"
            )


def _split_account(parts: SplitResult) -> tuple[str, str]:
    """The account's URL and the path below it. Emulators have the account's name in the path, not in the host."""
    root = f"{parts.scheme}://{parts.netloc}"
    path = parts.path.lstrip("/")
    if not _is_emulator(parts):
        return root, path
    account, _, rest = path.partition("/")
    return f"{root}/{account}", rest


def _is_emulator(parts: SplitResult) -> bool:
    host = parts.hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." not in host  # localhost, or a service's name in a compose file
    return True
