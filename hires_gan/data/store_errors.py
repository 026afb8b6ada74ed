"""What a store's errors mean: what may pass, what will not, and how they are told without any secret."""

from __future__ import annotations

import os
import re

from hires_gan.errors import Failure, UsageError

_TOO_MANY, _TIMED_OUT, _TOO_EARLY = 429, 408, 425
_REFUSALS = (401, 403, 407)
_MISSING = (404, 410)
_BUGS = (TypeError, ValueError, LookupError, AttributeError, NotImplementedError, AssertionError)
"""These come from a library or an option that does not fit; another attempt would end alike."""
_CREDENTIAL_ERRORS = re.compile(r"Credential|RefreshError|TokenRetrieval|Unauthorized|ProfileNotFound|SSOToken")
_SECRET_NAMES = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|(ACCESS|API|ACCOUNT|PRIVATE)_?KEY|^FSSPEC_", re.I)
_SECRET_AT_LEAST = 6
"""Characters. A shorter value of such a variable would be found in words that are none."""
_LONGEST = 300

_WHERE_CREDENTIALS_ARE = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (with AWS_SESSION_TOKEN), AWS_PROFILE and ~/.aws, or the "
    "machine's role",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login`, or the machine's service account",
    "https": "~/.netrc (or the file that NETRC names), or headers in FSSPEC_HTTP",
    "abfs": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
}
_SAME = {"s3a": "s3", "gcs": "gs", "http": "https", "az": "abfs", "adl": "abfs"}


class Passing(Exception):  # noqa: N818 - what it is called in a sentence
    """What may pass if it is tried again."""


class Disagrees(Passing):
    """A file that arrived and is not what the manifest says."""


class Missing(Failure):
    """There is no such file in the store."""


def judge(error: BaseException, address: str, protocol: str) -> Exception:
    """What to raise for an error of a store.

    Args:
        error: What its library raised.
        address: Of the file that was read.
        protocol: Of the store, such as `s3`.

    Returns:
        `Missing`, `UsageError` or `Failure` for what another attempt cannot change, `Passing` for all else.
    """
    status = http_status(error)
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError) or status in _MISSING:
        return Missing(f"there is no {address}")
    named = any(_CREDENTIAL_ERRORS.search(type(one).__name__) for one in _chain(error))
    if isinstance(error, PermissionError) or status in _REFUSALS or named:
        return UsageError(
            f"{address} may not be read ({told(error)}); credentials come from {credentials_of(protocol)}, never from "
            "data.shards (a store may also say this of a file that is not there)"
        )
    if isinstance(error, ImportError):
        return UsageError(f"{address} cannot be read, a package is missing: {told(error)}")
    refused = status is not None and 400 <= status < 500 and status not in (_TOO_MANY, _TIMED_OUT, _TOO_EARLY)
    if refused or (isinstance(error, _BUGS) and status is None):
        return Failure(f"{address} cannot be read: {told(error)}")
    return Passing(told(error))


def credentials_of(protocol: str) -> str:
    """Where the libraries for a protocol look for credentials."""
    name = _SAME.get(protocol, protocol)
    known = _WHERE_CREDENTIALS_ARE.get(name, f"what fsspec's file system for {name}:// reads")
    return f"{known}, or fsspec's own configuration (FSSPEC_{name.upper()}_..., ~/.config/fsspec)"


def http_status(error: BaseException) -> int | None:
    """The HTTP status that an error of aiohttp, gcsfs or (behind that of s3fs) botocore tells of, if it does."""
    responses = [found for one in _chain(error) if isinstance(found := getattr(one, "response", None), dict)]
    statuses = [response.get("ResponseMetadata", {}).get("HTTPStatusCode") for response in responses]
    for value in (getattr(error, "status", None), getattr(error, "code", None), *statuses):
        if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()):
            return int(value)
    return None


def told(error: BaseException) -> str:
    """An error in one line, with neither user names, passwords and queries of URLs nor what secret variables hold."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {without_secrets(text)}" if text else type(error).__name__


def without_secrets(text: str) -> str:
    """A text of a foreign program, shortened and without secrets."""
    for name, value in os.environ.items():
        if len(value) >= _SECRET_AT_LEAST and _SECRET_NAMES.search(name):
            text = text.replace(value, "***")
    text = re.sub(r"(\w+://)[^\s/@'\"]*@", r"\1***@", text)
    text = re.sub(r"(\w+://[^\s?'\"]*)\?[^\s'\")]*", r"\1?***", text)
    text = re.sub(r"(?i)\b(bearer|basic) +\S+", r"\1 ***", text)
    text = re.sub(r"(?i)\b(authorization[:=] *)(?!bearer|basic)\S+", r"\1***", text)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."


def _chain(error: BaseException) -> list[BaseException]:
    """An error and those that it was made from; not what happened to be handled when it was raised."""
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in found:
        found.append(one)
        one = one.__cause__
    return found
