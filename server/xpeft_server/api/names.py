"""How callers name profiles: in a path, and in a body."""

from __future__ import annotations

from starlette.types import Scope

from xpeft_profiles import RESERVED, ProfileInvalid, check_name
from xpeft_server.engine.errors import ProfileNotFound

from .access.table import MODELS_PREFIX, PROFILES_PREFIX, TUNE_SUFFIX
from .errors import ApiError


def checked_name(name: str, *, param: str) -> str:
    """Raises: ApiError 422, naming ``param``, for what is no name."""
    try:
        check_name(name, param=param)
    except ProfileInvalid as error:
        raise ApiError(422, "invalid_name", error.message, param=param) from None
    return name


def profile_in_path(scope: Scope) -> str:
    """The name in ``/v1/profiles/{name}``, as it was sent. Raises: ApiError 422 for what is no name."""
    path: str = scope["path"]
    return checked_name(path.removeprefix(PROFILES_PREFIX), param="name")


def model_in_path(scope: Scope) -> str:
    """The name in ``/v1/models/{name}``. Raises: ApiError 422 for what is no name."""
    path: str = scope["path"]
    return checked_name(path.removeprefix(MODELS_PREFIX), param="name")


def profile_to_write(scope: Scope) -> str:
    """The name in ``/v1/profiles/{name}`` or ``…/tune``. Raises: ApiError 422 for what is no name, or is reserved."""
    path: str = scope["path"]
    name = checked_name(path.removeprefix(PROFILES_PREFIX).removesuffix(TUNE_SUFFIX), param="name")
    if name == RESERVED:
        raise ApiError(422, "reserved_name", f"{RESERVED!r} stands for the bare model", param="name")
    return name


def asked_model(profile: str | None, model: str | None) -> str:
    """The profile, or ``base``, that a body asks for; ``model`` is an alias of ``profile``.

    Raises: ApiError 422 if both are given and differ, if neither is, or if this is no name.
    """
    if profile is None:
        if model is None:
            raise ApiError(422, "missing_field", "profile is missing", param="profile")
        return checked_name(model, param="model")
    if model is not None and model != profile:
        message = f"model = {model[:128]!r} is not profile = {profile[:128]!r}; give one of them"
        raise ApiError(422, "invalid_field", message, param="model")
    return checked_name(profile, param="profile")


def asked_profile(profile: str | None, model: str | None) -> str:
    """Like `asked_model`, where the bare model cannot answer. Raises: ApiError 404 for ``base``, too."""
    name = asked_model(profile, model)
    if name == RESERVED:
        message = f"{RESERVED!r} is the bare model, which has no head"
        raise ApiError(404, ProfileNotFound.code, message, param="profile")
    return name


def no_such_profile(name: str) -> ApiError:
    return ApiError(404, ProfileNotFound.code, f"there is no profile {name!r}", param="name")
