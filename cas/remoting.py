"""What every backend over a network needs: names that stay inside, and errors that name the place and no secret."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .errors import CasError, Exists, Invalid, NotFound, Unsupported

_PASSING = {
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.EPIPE,
    errno.ETIMEDOUT,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EAGAIN,
    errno.EINTR,
}
_LINE = re.compile("Connect|Timeout|Disconnect|Payload|EOFError|SSHException")  # kinds of libraries' errors
_SECRET = re.compile("key|secret|token|password|passw|passphrase|credential|connection_string|auth|sas", re.IGNORECASE)


def check_name(name: str) -> None:
    """`Invalid` for what is not the name of a file below the root."""
    parts = name.split("/")
    if "" in parts or "." in parts or ".." in parts or "\0" in name:
        raise Invalid(f"{name!r} is no name of a file in a store: use relative names without . and ..")


@contextmanager
def about(at: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Say of an error which place it is about, and make it one of those that `Backend` allows."""
    try:
        yield
    except (CasError, KeyboardInterrupt):
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{at} is not there") from None
    except FileExistsError:
        raise Exists(f"{at} is there already") from None
    except ImportError as error:
        raise Unsupported(f"{at} needs a package that is not installed: {_words(error, options)}") from error
    except Exception as error:  # each library has errors of its own
        raise _told(error, at, options) from error


def _told(error: Exception, at: str, options: Mapping[str, Any]) -> Exception:
    if isinstance(error, NotImplementedError) or status_of(error) == 501:
        return Unsupported(f"{at}: this storage cannot do what a store needs: {_words(error, options)}")
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return OSError(error.errno, error.strerror, at)
    kind = PermissionError if isinstance(error, PermissionError) else OSError
    return kind(f"{at}: {_words(error, options)}")


def is_transient(error: BaseException) -> bool:
    """Whether what `about` raised may go well when it is tried again: a connection or a busy server failed."""
    if isinstance(error, CasError) or not isinstance(error, OSError):
        return False
    status = status_of(error)
    busy = status in (408, 409, 429) or status >= 500
    return busy or error.errno in _PASSING or bool(_LINE.search(type(error.__cause__ or error).__name__))


def status_of(error: BaseException | None) -> int:
    """The HTTP status that led to an error, as the libraries under fsspec keep it; 0 where there is none."""
    while error is not None:
        response = getattr(error, "response", None)
        answer = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
        for found in (answer, *(getattr(error, key, None) for key in ("status", "status_code", "code"))):
            if type(found) is int:
                return found
        error = error.__cause__
    return 0


def without_secrets(text: str, options: Mapping[str, Any]) -> str:
    """The text with every secret of the storage options replaced by stars."""
    for key, value in options.items():
        if isinstance(value, Mapping):
            text = without_secrets(text, value)
        elif isinstance(value, str) and value and _SECRET.search(key) and "file" not in key.lower():
            text = text.replace(value, "***")
    return text


def _words(error: BaseException, options: Mapping[str, Any]) -> str:
    return without_secrets(" ".join(str(error).split()) or type(error).__name__, options)
