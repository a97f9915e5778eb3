"""What the answers of an S3 service mean: which failures pass, which leave the outcome open, and how each is said.

Only statuses, error codes and names of exceptions reach a message: texts of a server or of botocore may hold
endpoints, keys of accounts and whatever else.
"""

from __future__ import annotations

import re
import socket
from typing import Any

from .backend import NoPlace
from .errors import CasError, Invalid, NotFound, Unsupported

_PASSING_STATUS = {408, 409, 425, 429}
_PASSING_CODES = {
    "BadDigest", "ConditionalRequestConflict", "IncompleteBody", "InternalError", "OperationAborted",
    "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests",
    "XAmzContentSHA256Mismatch",
}  # fmt: skip
_CREDENTIAL_CODES = {
    "ExpiredToken", "InvalidAccessKeyId", "InvalidClientTokenId", "InvalidToken", "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}  # fmt: skip
_WORDS = {
    "ConnectTimeoutError": "no connection in time to {host}",
    "ConnectionClosedError": "the connection was cut",
    "EndpointConnectionError": "no connection to {host}",
    "ReadTimeoutError": "no answer in time from {host}",
}


class Cut(ConnectionError):
    """An answer that is shorter, longer or other than what was asked for; its text holds nothing of the answer."""


class Foreign(Exception):
    """An answer that no S3 service gives."""


class NoBucket(NoPlace):
    """Not only the object is missing."""


def status_of(error: BaseException) -> int:
    """The HTTP status of a service's answer, or 0 where there was none."""
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code_of(error: BaseException) -> str:
    """The service's error code such as `NoSuchKey`; the status for an answer without a body."""
    code = str(_response(error).get("Error", {}).get("Code", "")) or str(status_of(error) or "")
    return re.sub(r"[^A-Za-z0-9._-]", "", code)[:60]


def passes(error: Exception) -> bool:
    """Whether the same request may well succeed a little later."""
    from http.client import HTTPException

    from botocore.exceptions import (
        ChecksumError,
        ClientError,
        HTTPClientError,
        IncompleteReadError,
        SSLError,
    )
    from botocore.exceptions import ConnectionError as NoConnection
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    if isinstance(error, ClientError):
        status = status_of(error)
        return status in _PASSING_STATUS or (status >= 500 and status != 501) or code_of(error) in _PASSING_CODES
    if isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return False
    if (isinstance(error, NoConnection) and _is_unknown_host(error)) or _is_redirected(error):
        return False
    ours = ChecksumError, HTTPClientError, IncompleteReadError, NoConnection, ResponseParserError
    return isinstance(error, (*ours, HTTPError, HTTPException, ConnectionError, TimeoutError))


def leaves_open(error: Exception) -> bool:
    """Whether a request that changes something may have been carried out, or may be later, all the same."""
    from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError

    if not passes(error) or isinstance(error, ConnectTimeoutError | EndpointConnectionError):
        return False
    return not 400 <= status_of(error) < 500


def failure(error: Exception, url: str, bucket: str, host: str) -> Exception:
    """What a failed request on `url` at `host` is raised as: an `OSError`, or a `CasError` to act on."""
    if isinstance(error, CasError):
        return error
    status, code = status_of(error), code_of(error)
    if code == "NoSuchBucket":
        return NoBucket(f"there is no bucket {bucket} for {url}: make it, or correct the name")
    if code == "NoSuchUpload":
        return OSError(f"the service has lost the upload of {url}: write it again")
    if status == 404:
        return NotFound(f"{url} is not there")
    if status == 501:
        return Unsupported(f"the service of {url} cannot do what is asked ({code}): use another one")
    if isinstance(error, Foreign) or _is_redirected(error):
        return OSError(f"{url} was answered as no S3 service does: check whether {host} is the right endpoint")
    refused = _refusal(error, url, status, code)
    if refused is None and 400 <= status < 500 and not passes(error):
        return OSError(f"{url} was refused ({_short(error)}): check the endpoint {host} and the storage options")
    return refused or OSError(f"{url} failed ({_short(error).format(host=host)}): try again later")


def _refusal(error: Exception, url: str, status: int, code: str) -> Exception | None:
    from botocore.exceptions import (
        CredentialRetrievalError,
        NoCredentialsError,
        ParamValidationError,
        PartialCredentialsError,
    )

    if code in _CREDENTIAL_CODES:
        return PermissionError(f"the credentials for {url} were refused ({code}): renew or correct them")
    if code == "RequestTimeTooSkewed":
        return PermissionError(f"{url} was refused because the clock of this machine is wrong ({code}): set it")
    if status in (401, 403):
        return PermissionError(f"access to {url} was denied ({code}): get the right to it, or use other credentials")
    if status in (301, 307):
        return OSError(f"{url} is in another region ({code}): give its region_name in the option client_kwargs")
    if isinstance(error, NoCredentialsError | PartialCredentialsError | CredentialRetrievalError):
        return PermissionError(
            f"there are no credentials for {url} ({_short(error)}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or the storage options key and secret"
        )
    if isinstance(error, ParamValidationError):
        return Invalid(f"{url} is no name that S3 allows: choose another bucket or prefix")
    return None


def _short(error: Exception) -> str:
    status = status_of(error)
    if status:
        return f"{status} {code_of(error)}".removesuffix(f" {status}")
    name = type(error).__name__
    return str(error) if isinstance(error, Cut) else _WORDS.get(name, name)


def _response(error: BaseException) -> dict[str, Any]:
    found = getattr(error, "response", None)
    return found if isinstance(found, dict) else {}


def _is_redirected(error: BaseException) -> bool:
    """Whether botocore was led from one redirection to the next."""
    return isinstance(error, RecursionError) or isinstance(getattr(error, "kwargs", {}).get("error"), RecursionError)


def _is_unknown_host(error: BaseException) -> bool:
    """Whether the name in the endpoint is one that no name server knows: a slip that waiting does not mend."""
    cause: BaseException | None = getattr(error, "kwargs", {}).get("error")
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return cause.errno == socket.EAI_NONAME
        cause = cause.__cause__ or cause.__context__
    return False
