"""Fields of OpenAI's that are documented there and not supported here."""

from __future__ import annotations

from typing import Final

import orjson
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import no_info_plain_validator_function

from .json_values import shown_json

UNSUPPORTED: Final = "unsupported_parameter"


class Unsupported:
    """Of a field ``Annotated[object, Unsupported(…)] = None``: any value is refused by name but null and these.

    Args:
        nothing: the values that ask for what happens anyway, the default in OpenAI's documents first.
    """

    def __init__(self, *nothing: object) -> None:
        self._nothing = nothing

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        del source, handler
        return no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        del schema, handler
        return {"enum": [*self._nothing, None], "description": "Not supported: anything else is refused."}

    def _check(self, value: object) -> object:
        if value is None or any(_same(value, nothing) for nothing in self._nothing):
            return value
        instead = f" or send {orjson.dumps(self._nothing[0]).decode()}" if self._nothing else ""
        raise unsupported(shown_json(value), f"leave it out{instead}")


def unsupported(what: str, instead: str) -> PydanticCustomError:
    """For validators: what was asked for, and what to ask for instead."""
    return PydanticCustomError(UNSUPPORTED, "{what} is not supported; {instead}", {"what": what, "instead": instead})


def _same(value: object, nothing: object) -> bool:
    # In Python true is 1; in JSON it is not.
    return isinstance(value, bool) is isinstance(nothing, bool) and value == nothing
