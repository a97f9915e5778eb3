"""What can go wrong, split by what the caller can do next.

    CasError            anything this library raises on purpose
    ├── NotFound        the store, revision, path, block or file is not there
    ├── Exists          it is there already, and would have been overwritten
    ├── RefConflict     the branch moved or was never loaded: load it, or name another
    ├── CommitUnknown   the store could not say whether the commit was published
    ├── Corrupt         bytes do not match their name or break the format
    ├── Unsupported     valid, but this version or this state type cannot do it
    └── Invalid         the call itself is wrong

Every message is one sentence that names the thing and says what to do next.
"""


class CasError(Exception):
    """Base of every error of this library; `exit_code` is what the `cas` command ends with."""

    exit_code = 3


class NotFound(CasError):
    exit_code = 11


class Exists(CasError):
    pass


class RefConflict(CasError):
    exit_code = 12


class CommitUnknown(CasError):
    """The record may or may not have been published; the next commit of this Store settles it first."""


class Corrupt(CasError):
    exit_code = 13


class Unsupported(CasError):
    pass


class Invalid(CasError):
    exit_code = 2
