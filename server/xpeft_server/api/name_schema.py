"""How bodies and paths name a profile, for the OpenAPI document: what it says is checked in ``names``."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field

from xpeft_profiles.names import NAME_PATTERN

_PATTERN: Final = {"pattern": f"^{NAME_PATTERN.pattern}$"}
NAME: Final[dict[str, Any]] = {"type": "string", **_PATTERN}

Name = Annotated[str, Field(json_schema_extra=_PATTERN)]
# Null in either is as if it were not there.
PROFILE_OR_MODEL: Final[dict[str, Any]] = {
    "anyOf": [{"required": [field], "properties": {field: {"type": "string"}}} for field in ("profile", "model")]
}
