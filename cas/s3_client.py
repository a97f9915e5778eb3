"""The way to an S3 service: a botocore client with the settings that fsspec and s3fs are configured with.

The client is the synchronous one, used from many threads: s3fs's own event loop moves half as much. It tries nothing
again by itself: a conditional write that was repeated unseen would meet its own object.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from .errors import Invalid, NotFound, Unsupported
from .retries import Patience, with_retries
from .s3_errors import failure, passes

CONNECTIONS = 32  # kept open for reuse; more than the threads that ever ask at once
_CONNECT_TIMEOUT = 10  # seconds; also for each piece of a body that is sent
_READ_TIMEOUT = 30  # seconds without a byte
_AT_ONCE = 64 << 10  # bytes
_INSTALL = "pip install 'cas-checkpoints[s3]'"

T = TypeVar("T")


class Body:
    """Memory that is sent as the body of a request, piece by piece and without a copy.

    Each piece has its own timeout: bytes given whole would have to be sent whole within one.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def __len__(self) -> int:
        return len(self._data)

    def read(self, size: int = -1) -> memoryview:
        end = len(self._data) if size < 0 else self._at + size
        piece = self._data[self._at : end]
        self._at += len(piece)
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, len(self._data))[whence]
        return self._at

    def tell(self) -> int:
        return self._at


def sent(data: memoryview) -> dict[str, Any]:
    """The arguments that send `data`. Its SHA-256 is part of the signature, so the service refuses it damaged."""
    # A small body goes out with its headers; before a large one the service is asked whether it wants it.
    return {"Body": bytearray(data) if len(data) <= _AT_ONCE else Body(data)}


@dataclass(frozen=True, slots=True, repr=False)
class Access:
    """How the service is reached. Holds credentials: it is never shown."""

    profile: str | None
    anonymous: bool
    client: Mapping[str, Any]
    config: Mapping[str, Any]
    extra: Mapping[str, Any]
    """Arguments that go with every request that knows them, such as `ServerSideEncryption`."""


def access(url: str, options: Mapping[str, Any]) -> Access:
    """What fsspec makes of its configuration, the environment and `options`."""
    try:
        import fsspec
        import s3fs  # noqa: F401
    except ImportError as error:
        raise Unsupported(f"{url} needs s3fs: {_INSTALL}") from error
    try:
        fs = fsspec.filesystem("s3", **{**options, "use_listings_cache": False, "skip_instance_cache": True})
    except (TypeError, ValueError, KeyError):
        raise Invalid(f"the storage options for {url} ({_names(options)}) are not what s3fs takes") from None
    unknown = fs.kwargs.keys() - {"profile"}
    if unknown:
        raise Invalid(f"s3fs has no storage options {_names(unknown)}: leave them out of those for {url}")
    try:
        extra = {**fs.s3_additional_kwargs, **fs.req_kw}
        return Access(fs.kwargs.get("profile"), bool(fs.anon), _client_of(fs), {**fs.config_kwargs}, extra)
    except TypeError:
        raise Invalid(f"client_kwargs, config_kwargs and the like for {url} are dicts: correct them") from None


def _client_of(fs: Any) -> dict[str, Any]:
    """The arguments of a client that do what those of a file system of s3fs do."""
    client = {
        "aws_access_key_id": fs.key,
        "aws_secret_access_key": fs.secret,
        "aws_session_token": fs.token,
        "endpoint_url": fs.endpoint_url,
    }
    given = {name: value for name, value in client.items() if value is not None}
    return {"use_ssl": fs.use_ssl, **fs.client_kwargs, **given}


def _names(options: Any) -> str:
    return ", ".join(sorted(map(str, options)))


def connect(url: str, how: Access) -> Any:
    """A new client; `Invalid` where the settings make no sense."""
    import botocore.session
    from botocore.exceptions import BotoCoreError

    try:
        session = botocore.session.Session(profile=how.profile)
        session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
        client = session.create_client("s3", **how.client, config=_config(how, "path" if _own(how.client) else None))
        if "addressing_style" not in (client.meta.config.s3 or {}) and ".amazonaws.com" not in client.meta.endpoint_url:
            # The endpoint came from the environment or from a file.
            client = session.create_client("s3", **how.client, config=_config(how, "path"))
    except (BotoCoreError, ValueError, TypeError) as error:
        raise Invalid(f"the settings for {url} are refused: {_why(error)}") from None
    _check_model(client)
    return client


def _why(error: Exception) -> str:
    """What is wrong, in words that hold no secret: botocore's own may quote a URL with a password."""
    name, details = type(error).__name__, getattr(error, "kwargs", {})
    if name == "PartialCredentialsError":
        return f"{details['cred_var']} is missing beside the other half of the credentials"
    if name == "ProfileNotFound":
        return "no such profile is in AWS's files"
    if "endpoint" in str(error).lower():
        return "endpoint_url is no URL of a service"
    return f"look at client_kwargs, config_kwargs and AWS's variables and files ({name})"


@functools.cache
def _loader(places: str | None) -> Any:
    """What botocore knows of S3, read and parsed once in a process: that takes longer than all else here."""
    from botocore.loaders import create_loader

    return create_loader(places)


def _own(client: Mapping[str, Any]) -> bool:
    return bool(client.get("endpoint_url"))


def _config(how: Access, addressing: str | None) -> Any:
    from botocore import UNSIGNED
    from botocore.config import Config

    given = dict(how.config)
    s3 = {"payload_signing_enabled": True, **({"addressing_style": addressing} if addressing else {})}
    s3.update(given.pop("s3", None) or {})
    if how.anonymous:
        given["signature_version"] = UNSIGNED
    defaults = {
        "connect_timeout": _CONNECT_TIMEOUT,
        "read_timeout": _READ_TIMEOUT,
        "max_pool_connections": CONNECTIONS,
        "tcp_keepalive": True,
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    return Config(**{**defaults, **given, "s3": s3, "retries": {"total_max_attempts": 1}})


def _check_model(client: Any) -> None:
    """An argument that botocore does not know could not be sent, and the guard that it is would be missing."""
    for operation in ("PutObject", "CompleteMultipartUpload"):
        if "IfNoneMatch" not in client.meta.service_model.operation_model(operation).input_shape.members:
            raise Unsupported(f"this botocore is too old to write safely: {_INSTALL} --upgrade")


class Service:
    """Requests on one bucket, of which each is tried again while it makes sense. Safe to use from many threads.

    After a fork: `renew`. Failures are an `OSError`, or a `CasError` where the caller can act on it.
    """

    def __init__(self, url: str, bucket: str, options: Mapping[str, Any]) -> None:
        self.url = url
        self.bucket = bucket
        self._access = access(url, options)
        self._date: tuple[str, float] | None = None  # the service's clock, and ours when it was read
        self.renew()

    @property
    def endpoint(self) -> str:
        """The URL of the service."""
        return str(self._connected().meta.endpoint_url)

    def renew(self) -> None:
        """Forget all connections; the next request makes new ones."""
        self._client: Any = None
        self._lock = threading.Lock()

    def close(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client = None

    def once(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """One try of an operation such as `put_object`; errors are those of botocore."""
        client = self._connected()
        if self._access.extra:
            name = client.meta.method_to_api_mapping[operation]
            known = client.meta.service_model.operation_model(name).input_shape.members
            arguments = {k: v for k, v in self._access.extra.items() if k in known} | arguments
        reply: dict[str, Any] = getattr(client, operation)(Bucket=self.bucket, **arguments)
        date = reply["ResponseMetadata"]["HTTPHeaders"].get("date")
        if date is not None:
            self._date = date, time.monotonic()
        return reply

    def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """The reply of an operation that may be done twice without harm."""
        return self.retried(lambda: self.once(operation, **arguments), arguments.get("Key", ""))

    def retried(self, attempt: Callable[[], T], key: str = "", patience: Patience | None = None) -> T:
        """What `attempt` returns, tried again while it fails in passing; `key` is for errors."""
        try:
            return with_retries(attempt, passes, patience)
        except Exception as error:
            raise self.failure(error, key) from None

    def failure(self, error: Exception, key: str = "") -> Exception:
        """What the error of a request is raised as."""
        return failure(error, self.named(key), self.bucket, self._host())

    def named(self, key: str) -> str:
        """The URL of an object, for people."""
        return f"s3://{self.bucket}/{key}" if key else self.url

    def head(self, key: str, patience: Patience | None = None) -> dict[str, Any] | None:
        """Size and metadata of an object; None where it is not there."""
        try:
            return self.retried(lambda: self.once("head_object", Key=key), key, patience)
        except NotFound:
            return None

    def now(self) -> float:
        """Unix time by the service's clock, at most a second ahead: what it has just stored is not of the future."""
        if self._date is None:
            self.call("list_objects_v2", MaxKeys=1)
        if self._date is None:  # a service without a clock
            return time.time()
        from email.utils import parsedate_to_datetime

        date, then = self._date
        return parsedate_to_datetime(date).timestamp() + 1 + time.monotonic() - then

    def _host(self) -> str:
        """Where the service is, without what else an endpoint may hold."""
        client = self._client
        return "the service" if client is None else urlsplit(client.meta.endpoint_url).netloc.rpartition("@")[2]

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = connect(self.url, self._access)
            return self._client
