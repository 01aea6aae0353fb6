"""The types of the OpenAPI document, in words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from .table import code, table

Schema = Mapping[str, Any]

_PREFIX: Final = "#/components/schemas/"
_LINE: Final = 96
_BOUNDS: Final = (
    ("minimum", "from {}"),
    ("exclusiveMinimum", "above {}"),
    ("maximum", "to {}"),
    ("exclusiveMaximum", "below {}"),
    ("minLength", "{} character or more"),
    ("maxLength", "{} characters at most"),
    ("minItems", "{} or more"),
    ("maxItems", "{} at most"),
    ("maxProperties", "{} at most"),
)


def schema_sections(schemas: Mapping[str, Schema], names: Iterable[str]) -> str:
    """A section for each of these, by name."""
    return "\n\n".join(part for name in sorted(names) for part in _section(name, schemas[name]))


def reachable(schemas: Mapping[str, Schema], roots: Iterable[object]) -> set[str]:
    """Names of all that ``roots`` refer to, directly or through others."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if isinstance(node, Mapping):
            name = str(node.get("$ref", "")).removeprefix(_PREFIX)
            if name and name not in found:
                found.add(name)
                waiting.append(schemas[name])
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return found


def type_words(schema: Schema) -> str:
    """Markdown: ``text or list of text (1 or more)``; references are links to their sections."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_PREFIX)
        return f"[{name}](#{name.lower()})"
    if "const" in schema:
        return code(json.dumps(schema["const"]))
    if "enum" in schema:
        return " or ".join(code(json.dumps(value)) for value in schema["enum"])
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(type_words(each) for each in schema[several]))
    return _simple(schema) + _bounds(schema)


def examples_of(schema: Schema) -> Iterator[str]:
    """Blocks of JSON, fields in the order of the type's."""
    order = list(schema.get("properties", ()))
    for example in schema.get("examples", ()):
        ordered = {name: example[name] for name in sorted(example, key=order.index)}
        yield f"```json\n{_laid_out(ordered)}\n```"


def _laid_out(value: Any, indent: int = 0) -> str:
    """JSON with a line for whatever fits into one."""
    line = json.dumps(value, ensure_ascii=False)
    if indent + len(line) <= _LINE or not isinstance(value, dict | list) or not value:
        return line
    inner = " " * (indent + 2)
    if isinstance(value, dict):
        parts = [f"{json.dumps(name)}: {_laid_out(each, indent + 2)}" for name, each in value.items()]
    else:
        parts = [_laid_out(each, indent + 2) for each in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n{inner}" + f",\n{inner}".join(parts) + f"\n{' ' * indent}{closing}"


def _simple(schema: Schema) -> str:
    match schema.get("type"):
        case "array":
            return f"list of {type_words(schema.get('items', {}))}"
        case "object" if isinstance(values := schema.get("additionalProperties"), Mapping):
            return f"object: text → {type_words(values)}"
        case "string" if schema.get("format") == "binary":
            return "bytes"
        case None:
            return "anything"
        case str(kind):
            words = {"string": "text", "number": "number", "integer": "integer", "boolean": "true or false"}
            return words.get(kind, kind)
        case kind:
            raise ValueError(f"no words for a type {kind!r}")


def _bounds(schema: Schema) -> str:
    found = [words.format(f"{schema[key]:,}") for key, words in _BOUNDS if key in schema]
    return f" ({', '.join(found)})" if found else ""


def _section(name: str, schema: Schema) -> Iterator[str]:
    yield f"#### {name}"
    if "description" in schema:
        yield schema["description"]
    required = schema.get("required", ())
    rows = (
        (code(field), type_words(each), _default(each, needed=field in required), each.get("description", ""))
        for field, each in schema.get("properties", {}).items()
    )
    yield table(("field", "type", "default", "meaning"), rows)
    for example in examples_of(schema):
        yield "For example:"
        yield example


def _default(schema: Schema, *, needed: bool) -> str:
    if needed:
        return "needed"
    return code(json.dumps(schema["default"])) if "default" in schema else ""
