"""What the two ways to ask in OpenAI's shape have in common.

Fields that OpenAI documents are taken, ignored where they change nothing, or refused by name (`Unsupported`);
``top_k``, ``min_p``, ``repetition_penalty``, ``ignore_eos`` and ``continuous_usage_stats`` are extensions, called as
vLLM calls them.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, GetJsonSchemaHandler, ValidationInfo, field_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from ..bodies.refused_fields import Unsupported
from ..generation.sampling_wire import SamplingFields, Temperature
from ..name_schema import Name
from ..wire import WireBody
from .usage import StreamUsage

MOST_METADATA: Final = 16  # OpenAI's own limit


class NullableBody(WireBody):
    """Here null stands for a field that is left out."""

    @field_validator("*", mode="before")
    @classmethod
    def _null_is_the_default(cls, value: object, info: ValidationInfo) -> object:
        field = cls.model_fields[info.field_name or ""]
        return field.get_default() if value is None and not field.is_required() else value

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        reference = handler(schema)
        fields = handler.resolve_ref_schema(reference)["properties"]
        for name, field in cls.model_fields.items():
            if not field.is_required() and field.default is not None:
                fields[name] = _nullable(fields[name])
        return reference


def _nullable(schema: JsonSchemaValue) -> JsonSchemaValue:
    told: JsonSchemaValue = {key: schema[key] for key in ("title", "default") if key in schema}
    type_ = {key: value for key, value in schema.items() if key not in told}
    return {"anyOf": [type_, {"type": "null"}], **told}


class StreamOptionsBody(NullableBody):
    """``include_usage``: a last chunk tells the usage; with ``continuous_usage_stats`` those before tell that of their
    choice so far. Nothing is obfuscated, whatever ``include_obfuscation`` says."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = True


class OpenAiFields(SamplingFields, NullableBody):
    """``model`` is the name of a profile, or ``base`` for the bare model.

    ``user`` and ``metadata`` are ignored.
    """

    model: Name
    temperature: Temperature = 1.0
    stream_options: StreamOptionsBody | None = None
    user: str | None = None
    metadata: Annotated[dict[str, str], Field(max_length=MOST_METADATA)] | None = None
    store: Annotated[object, Unsupported(False)] = None
    service_tier: Annotated[object, Unsupported("auto", "default")] = None
    n: Annotated[object, Unsupported(1)] = None
    frequency_penalty: Annotated[object, Unsupported(0)] = None
    presence_penalty: Annotated[object, Unsupported(0)] = None
    logit_bias: Annotated[object, Unsupported({})] = None

    @field_validator("metadata", mode="before")
    @classmethod
    def _few_entries(cls, value: object) -> object:
        # Before any of them is looked at: a million wrong ones would be a million errors.
        if isinstance(value, dict) and len(value) > MOST_METADATA:
            raise ValueError(f"has {len(value)} entries, at most {MOST_METADATA} are allowed")
        return value

    @field_validator("stream_options")
    @classmethod
    def _only_of_streams(cls, value: StreamOptionsBody | None, info: ValidationInfo) -> StreamOptionsBody | None:
        if value is not None and info.data.get("stream") is False:
            raise ValueError("is for streams only: send it with stream: true")
        return value

    def stream_usage(self) -> StreamUsage:
        asked = self.stream_options or StreamOptionsBody()
        return StreamUsage(at_end=asked.include_usage, always=asked.continuous_usage_stats)
