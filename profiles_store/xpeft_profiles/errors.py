"""Everything that a profile or a store can be refused with.

ProfileStoreError
├── ProfileInvalid        a profile file, profile or name breaks a rule (``param`` names the tensor or field)
├── BankMismatch          the profile was made for another bank
├── RecordDamaged         a stored record fails its checksum or its format
├── PreconditionFailed    If-Match or If-None-Match does not hold (``current_version``: what is there)
├── CursorInvalid         a page cursor that this server did not hand out
├── TooManyJobs           the tenant has as many unfinished tuning jobs as it may have
├── TooManyProfiles       the tenant has as many profiles as it may have
├── SourceInvalid         what profiles were to be read from cannot be read, or not to its end
├── StoreUrlInvalid       a store URL that names no store
└── StoreUnavailable      the store cannot be reached, or cannot do what it was asked
"""

from __future__ import annotations

import reprlib

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlevel = 2


class ProfileStoreError(Exception):
    """Root of the tree; ``message`` is one sentence for the caller, ``code`` the wire's stable word for it."""

    code = "store_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ProfileInvalid(ProfileStoreError):
    """``param`` is the tensor's or field's name as it stands in the profile file; of an unknown one `shown_name`."""

    code = "invalid_profile"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message if param is None else f"{param}: {message}")
        self.param = param


class BankMismatch(ProfileStoreError):
    code = "wrong_bank"


class RecordDamaged(ProfileStoreError):
    code = "damaged_profile"


class PreconditionFailed(ProfileStoreError):
    """``current_version`` is None where there is no such profile."""

    code = "precondition_failed"

    def __init__(self, current_version: str | None) -> None:
        there = "does not exist" if current_version is None else f"has version {current_version}"
        super().__init__(f"the precondition does not hold: the profile {there}")
        self.current_version = current_version


class CursorInvalid(ProfileStoreError):
    code = "invalid_cursor"
    param = "cursor"


class TooManyJobs(ProfileStoreError):
    """``retry_after``: seconds."""

    code = "too_many_jobs"

    def __init__(self, most: int) -> None:
        super().__init__(f"{most} tuning jobs are queued or running, and a tenant may have no more at a time")
        self.retry_after = 10.0


class TooManyProfiles(ProfileStoreError):
    """``retry_after``: seconds; there is room again once the tenant has deleted a profile."""

    code = "too_many_profiles"

    def __init__(self, most: int) -> None:
        super().__init__(f"this tenant has {most} profiles and may have no more: delete one, or raise its max_profiles")
        self.retry_after = 10.0


class SourceInvalid(ProfileStoreError):
    pass


class StoreUrlInvalid(ProfileStoreError):
    pass


class StoreUnavailable(ProfileStoreError):
    code = "store_unavailable"


def shown(value: object) -> str:
    """The value for a message: its repr, cut so that a hostile megabyte does not travel back."""
    return _SHORT.repr(value)


def shown_name(name: str) -> str:
    """A stranger's word where a name stands: cut and escaped as by `shown`, without the quotes."""
    return shown(name)[1:-1]
