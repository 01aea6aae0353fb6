"""Bodies as JSON: parsed, and checked against a wire type."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from xpeft_profiles.errors import shown

from ..errors import ApiError
from ..wire import UNKNOWN_FIELD
from .counts import CountsCheck
from .json_counts import check_json_counts
from .json_values import shown_json
from .refused_fields import UNSUPPORTED
from .union_tags import UNION_TAGS

Body = TypeVar("Body", bound=BaseModel)

_SHOWN: Final = 80
# Pydantic's kinds of error whose messages name Python's types, and what the value must be.
_MUST_BE: Final[Mapping[str, str]] = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "float_type": "a number",
    "int_from_float": "an integer",
    "int_type": "an integer",
    "list_type": "an array",
    "model_type": "an object",
    "string_type": "a string",
}
_SUBJECT: Final = re.compile(r"^(Input|String|List) should ")


def parse_json(data: bytes, wire_type: type[Body], check_counts: CountsCheck | None = None, *, items: int = 0) -> Body:
    """The body as a value of the type.

    Args:
        check_counts: refuses lists that are too long, before the type looks at their items.
        items: the most that it lets a list have.
    Raises: ApiError 400 if this is not JSON or asks by name for what is not supported, 422 naming the field if it is
        not what the type says, or if there is more in it than any request needs; what ``check_counts`` raises.
    """
    if not data:
        raise ApiError(400, "invalid_json", "the body is empty; send a JSON object")
    check_json_counts(data, items)
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from None
    if check_counts is not None and isinstance(document, dict):
        check_counts(document)
    try:
        return wire_type.model_validate(document)
    except ValidationError as error:
        raise _invalid_field(error, document) from None


def _invalid_field(error: ValidationError, document: object) -> ApiError:
    first = error.errors(include_url=False)[0]
    kind = first["type"]
    param = _param(first["loc"])
    if kind == UNKNOWN_FIELD:
        name = str(first["ctx"]["name"])
        inner = f"{param}.{name}" if param else name
        message = f"there is no field {shown(inner)}; there are {first['ctx']['known']}"
        return ApiError(422, UNKNOWN_FIELD, message, param=_cut(inner))
    if not first["loc"]:
        return ApiError(422, "invalid_body", f"the body is {_kind(document)}, not a JSON object")
    # The keys of a dict are the client's own, and as long as it likes.
    param = _cut(param)
    if kind == UNSUPPORTED:
        return ApiError(400, UNSUPPORTED, f"{param}: {first['msg']}", param=param)
    if kind == "missing":
        return ApiError(422, "missing_field", f"{param} is missing", param=param)
    reason = _reason(kind, first["msg"])
    return ApiError(422, "invalid_field", f"{param}: {reason}, not {shown_json(first['input'])}", param=param)


def _reason(kind: str, message: str) -> str:
    """Pydantic's message in JSON's words."""
    if kind in _MUST_BE:
        return f"must be {_MUST_BE[kind]}"
    if kind == "literal_error":
        message = message.replace("'", '"')
    said, _, _ = message.removeprefix("Value error, ").partition(" after validation")
    return _SUBJECT.sub("must ", said)


def _param(location: tuple[int | str, ...]) -> str:
    """``input[3].text``; the names of union members are left out."""
    param = ""
    for part in location:
        if isinstance(part, int):
            param += f"[{part}]"
        elif part not in UNION_TAGS:
            param += f".{part}" if param else part
    return param


def _cut(param: str) -> str:
    return param[:_SHOWN]


def _kind(document: object) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(document), "a number")
