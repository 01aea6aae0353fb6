"""What a request can be refused with, in the engine's words; the API's one table turns them into answers.

EngineError
├── InvalidInput          a field of the request cannot be used (names the field)
│   ├── InputTooLong      more tokens than the model takes
│   └── NoChatTemplate    a chat was sent, and the tokenizer has no template for chats
├── DoesNotGenerate       the model is an encoder
├── ProfileNotFound
├── ProfileHasNoHead      it steers the model but cannot classify
├── WrongBank             the profile was made for another bank than the one loaded
├── DamagedProfile        the store's record fails its checksum: this profile alone is affected
├── InternalError         a bug of ours
├── Overloaded            the queue is full; try again after ``retry_after`` seconds
│   └── LimitReached      the tenant has what it may have
└── Unavailable           store down, server stopping or device lost; ``retry_after`` seconds
"""

from __future__ import annotations

from xpeft_profiles import BankMismatch, RecordDamaged


class EngineError(Exception):
    """Root of the tree. ``code`` is the wire's stable word for it, ``param`` the field it is about."""

    code = "engine_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidInput(EngineError):
    code = "invalid_input"


class InputTooLong(InvalidInput):
    code = "input_too_long"


class NoChatTemplate(InvalidInput):
    code = "no_chat_template"


class DoesNotGenerate(EngineError):
    code = "model_does_not_generate"


class ProfileNotFound(EngineError):
    code = "profile_not_found"


class ProfileHasNoHead(EngineError):
    code = "profile_has_no_head"


class WrongBank(EngineError):
    code = BankMismatch.code


class DamagedProfile(EngineError):
    code = RecordDamaged.code


class InternalError(EngineError):
    code = "internal_error"


class Overloaded(EngineError):
    """``reason``: which bound it was, a word of `metrics.REFUSALS`."""

    code = "overloaded"

    def __init__(self, message: str, *, retry_after: float = 1.0, reason: str = "queue") -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.reason = reason


class LimitReached(Overloaded):
    code = "tenant_limit"

    def __init__(self, reason: str, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message, retry_after=retry_after, reason=reason)


class Unavailable(EngineError):
    code = "unavailable"

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def as_engine_error(error: Exception) -> EngineError:
    """What a client is told of any failure to compute its text."""
    return error if isinstance(error, EngineError) else InternalError(f"the text could not be computed: {error!r}")
