"""One connection to an SSH server: paramiko, made safe for what a store asks of it.

A connection serves one call at a time, because paramiko's clients mix up the replies of concurrent ones.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from .backend import Buffer
from .errors import CasError, Corrupt, Invalid, Unsupported
from .remoting import without_secrets

T = TypeVar("T")

_SILENCE = 60.0  # seconds without a byte from the server after which a connection counts as lost
_PACKET = 32 << 10  # bytes; what every server takes
_EXTENDED = 200  # SFTP's request for an extension
_connecting = threading.Lock()  # one at a time: servers drop those who knock too often at once


@dataclass(frozen=True, slots=True)
class Address:
    """A host, and what paramiko needs to log in there. `options` may hold secrets."""

    url: str
    host: str
    options: Mapping[str, Any]
    policy: Any

    @classmethod
    def of(cls, url: str, host: str, options: Mapping[str, Any]) -> Address:
        """With what fsspec's configuration holds for its protocol; `options` count more."""
        try:
            from fsspec.implementations import sftp
        except ImportError as error:
            raise Unsupported(
                f"{url} needs paramiko, which is not installed: pip install 'cas-checkpoints[sftp]'"
            ) from error
        from fsspec.config import apply_config

        logging.getLogger("paramiko").addHandler(logging.NullHandler())  # else it prints what is raised here anyway
        all_options = apply_config(sftp.SFTPFileSystem, dict(options))
        for general in ("host", "temppath", "use_listings_cache", "skip_instance_cache"):
            all_options.pop(general, None)
        try:
            policy = _policy(all_options.pop("host_key_policy", "auto_add"))
            if "port" in all_options:
                all_options["port"] = int(all_options["port"])
        except (TypeError, ValueError) as error:
            raise Invalid(f"{url}: wrong storage option: {without_secrets(str(error), options)}") from error
        return cls(url, host, all_options, policy)


def _policy(given: Any) -> Any:
    """What to do with a host that is in no known_hosts; as in fsspec."""
    import paramiko

    kinds = {"auto_add": paramiko.AutoAddPolicy, "reject": paramiko.RejectPolicy, "warning": paramiko.WarningPolicy}
    if isinstance(given, str) and given not in kinds:
        raise ValueError(f"host_key_policy is {given}, and may be {', '.join(kinds)}")
    kind = kinds[given] if isinstance(given, str) else given
    return kind() if isinstance(kind, type) else kind


class Link:
    """An open connection with an SFTP session."""

    def __init__(self, address: Address) -> None:
        import paramiko

        self._client = paramiko.SSHClient()
        self._client.load_system_host_keys()
        self._client.set_missing_host_key_policy(address.policy)
        try:
            with _connecting, _login_of(address):
                self._client.connect(address.host, **{"timeout": _SILENCE, **address.options})
            self._transport: Any = self._client.get_transport()
            self.sftp: Any = self._client.open_sftp()
        except BaseException:
            self._client.close()
            raise
        self._transport.set_keepalive(_SILENCE / 4)
        self.sftp.get_channel().settimeout(_SILENCE)
        _links.add(self)

    @property
    def is_open(self) -> bool:
        return bool(self._transport.is_active()) and not self.sftp.get_channel().closed

    def run(self, call: Callable[[Link], T]) -> T:
        """The answer. The connection is closed on errors after which replies may still be on their way."""
        from paramiko import SFTPError, SSHException

        try:
            return call(self)
        except (CasError, FileNotFoundError, PermissionError, FileExistsError):  # answers
            raise
        except (OSError, EOFError, SSHException, SFTPError) as error:
            if type(error) is OSError and error.errno is None and self.is_open:
                raise  # an answer too: SFTP has one status for all that goes wrong
            self.close()
            raise ConnectionResetError(errno.ECONNRESET, "the connection was lost") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._client.close()

    def read(self, path: str, start: int | None, length: int) -> tuple[bytes, int]:
        """Bytes from `start`, fewer only where the file ends, or its last `length` bytes; and its size."""
        with self.sftp.open(path, "rb") as file:
            status = file.stat()
            if not stat.S_ISREG(status.st_mode):
                raise Corrupt(f"{path} is a folder or a device, not a file: restore it")
            size: int = status.st_size
            first = max(0, size - length) if start is None else start
            length = min(length, size - first)
            if length <= 0:
                return b"", size
            [data] = file.readv([(first, length)])
            return data, size

    def send(self, file: Any, data: Buffer) -> None:
        """Write, and wait until the server has said of all of it that it went well."""
        view = memoryview(data)
        last = max(0, len(view) - _PACKET)
        file.set_pipelined(True)
        file.write(view[:last])
        file.set_pipelined(False)  # with this packet every reply is waited for
        file.write(view[last:])

    def flush(self, file: Any) -> None:
        """Have the server flush a file to its disk, where it has OpenSSH's extension for that."""
        try:
            self.sftp._request(_EXTENDED, "fsync@openssh.com", file.handle)
        except OSError as error:
            if "unsupported" not in str(error).lower():
                raise

    def rename(self, old: str, new: str) -> None:
        """`FileExistsError` where the new name is taken."""
        try:
            self.sftp.rename(old, new)
        except OSError as error:
            if error.errno is None and self._is_there(new):
                raise FileExistsError(errno.EEXIST, "File exists", new) from error
            raise

    def replace(self, old: str, new: str) -> None:
        """Rename over what stands there; without OpenSSH's extension there is a moment without the file."""
        try:
            self.sftp.posix_rename(old, new)
        except OSError as error:
            if "unsupported" not in str(error).lower():
                raise
            if self._is_there(new):
                self.sftp.remove(new)
            self.sftp.rename(old, new)

    def make_folders(self, folder: str) -> None:
        """A folder and those above it, where they are missing."""
        if not folder or self._is_there(folder):
            return
        self.make_folders(folder.rpartition("/")[0])
        try:
            self.sftp.mkdir(folder)
        except OSError:
            if not self._is_there(folder):
                raise

    def _is_there(self, path: str) -> bool:
        try:
            self.sftp.stat(path)
        except FileNotFoundError:
            return False
        return True


@contextmanager
def _login_of(address: Address) -> Iterator[None]:
    """Errors of a login, which must not pass for answers about a file, nor be tried again where that is no use."""
    from paramiko import AuthenticationException, BadHostKeyException, SSHException

    try:
        yield
    except (TypeError, ValueError) as error:
        reason = without_secrets(str(error), address.options)
        raise Invalid(f"{address.url}: wrong storage option: {reason}") from error
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise Invalid(f"{address.url}: the key {error.filename} cannot be read: correct key_filename") from error
    except BadHostKeyException as error:
        raise PermissionError(
            f"{address.host} shows another key than known_hosts has for it: make sure that it is the right host"
        ) from error
    except AuthenticationException as error:
        reason = without_secrets(str(error), address.options)
        raise PermissionError(f"the login was refused: {reason} Give another username, key or password") from error
    except SSHException as error:
        if "known_hosts" in str(error):
            raise PermissionError(f"{address.host} is not in known_hosts: log in with ssh once to add it") from error
        if "No authentication methods" in str(error):
            raise PermissionError("there is no key or password to log in with: give one, or start ssh-agent") from error
        raise


_links: weakref.WeakSet[Link] = weakref.WeakSet()
_held: list[Link] = []  # over a fork; in the child for good: the end of one would speak to the parent's server


def _hold() -> None:
    _held.extend(_links)


def _leave_to_the_parent() -> None:
    global _connecting
    _connecting = threading.Lock()  # another thread may have held the old one
    for link in _held:
        link._transport.atfork()


os.register_at_fork(before=_hold, after_in_parent=_held.clear, after_in_child=_leave_to_the_parent)
