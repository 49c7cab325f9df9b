# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pydantic's errors in words: what was found, what is allowed, the nearest match."""

from __future__ import annotations

import json
import re
import typing as t

from ansible_collections.hearth.homelab.plugins.plugin_utils import layers
from ansible_collections.hearth.homelab.plugins.plugin_utils.errors import nearest
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import BaseModel


def dotted(keys: t.Sequence[str | int]) -> str:
    """A key path as people write it: ``files[0].path``."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def shown(value: t.Any) -> str:
    """A value in an error: short, as YAML has it."""
    text = json.dumps(layers.plain(value), ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def key_path(location: t.Sequence[str | int]) -> tuple[str | int, ...]:
    """The key path, without the names that pydantic gives to branches of unions and to validators."""
    return tuple(
        step
        for step in location
        if not (isinstance(step, str) and re.search(r"[\[\](),]|^(str|int|bool|float|dict|list)$", step))
    )


def _models(annotation: t.Any) -> list[t.Any]:
    """The parts of a type: of a union its branches, without Annotated."""
    origin = t.get_origin(annotation)
    if origin is t.Annotated:
        return _models(t.get_args(annotation)[0])
    if origin is t.Union or type(annotation).__name__ == "UnionType":
        return [part for entry in t.get_args(annotation) for part in _models(entry)]
    return [annotation]


def keys_at(model: type[BaseModel], location: t.Sequence[str | int]) -> list[str]:
    """The keys that are allowed at a key path of a model; none for a mapping with free keys."""
    current: list[t.Any] = [model]
    for step in location:
        following: list[t.Any] = []
        for part in current:
            origin = t.get_origin(part)
            if isinstance(part, type) and issubclass(part, BaseModel):
                for name, info in part.model_fields.items():
                    if step in (name, info.alias):
                        following.extend(_models(info.annotation))
            elif origin is dict:
                following.extend(_models(t.get_args(part)[1]))
            elif origin in (list, tuple):
                following.extend(_models(t.get_args(part)[0]))
        current = following
    return [
        info.alias or name
        for part in current
        if isinstance(part, type) and issubclass(part, BaseModel)
        for name, info in part.model_fields.items()
    ]


def explain(model: type[BaseModel], entry: t.Any, location: t.Sequence[str | int]) -> tuple[str, str]:
    """Message and remedy for one of pydantic's errors."""
    kind, found = entry["type"], entry.get("input")
    if kind == "extra_forbidden":
        keys = keys_at(model, location[:-1])
        return f"unknown key {location[-1]!r}; allowed: {', '.join(sorted(keys))}", nearest(str(location[-1]), keys)
    if kind == "missing":
        return f"the key {location[-1]!r} is missing", f"add {dotted(location)}"
    context = entry.get("ctx") or {}
    if kind == "literal_error":
        allowed = str(context.get("expected", "")).replace(" or ", ", ")
        words = re.findall(r"'([^']*)'", allowed)
        return f"found {shown(found)}; allowed: {', '.join(words) or allowed}", nearest(str(found), words)
    if kind == "hearth":
        return str(entry["msg"]), ""
    if kind in ("greater_than_equal", "less_than_equal", "greater_than", "less_than"):
        allowed = _bounds(model, location) or str(entry["msg"]).removeprefix("Input should be ")
        return f"found {shown(found)}; allowed: {allowed}", ""
    if kind == "string_pattern_mismatch":
        return f"found {shown(found)}; allowed: text that matches {context.get('pattern', '')}", ""
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        keys = keys_at(model, location)
        return f"found {shown(found)}; allowed: a mapping" + (f" with {', '.join(sorted(keys))}" if keys else ""), ""
    words_of = {
        "int_parsing": "an integer", "int_type": "an integer", "int_from_float": "an integer",
        "bool_parsing": "true or false", "bool_type": "true or false", "string_type": "text",
        "list_type": "a list", "float_parsing": "a number", "float_type": "a number",
    }  # fmt: skip
    if kind in words_of:
        return f"found {shown(found)}; allowed: {words_of[kind]}", ""
    message = str(entry["msg"])
    return f"found {shown(found)}; {message[0].lower()}{message[1:]}", ""


def _bounds(model: type[BaseModel], location: t.Sequence[str | int]) -> str:
    """Both ends of a number's range, where the schema has both."""
    schema: t.Any = model.model_json_schema(by_alias=True)
    definitions = schema.get("$defs", {})

    def follow(node: t.Any) -> list[t.Any]:
        if "$ref" in node:
            return follow(definitions[node["$ref"].rpartition("/")[2]])
        return [part for branch in node.get("anyOf", ()) for part in follow(branch)] or [node]

    nodes = [schema]
    for step in location:
        following = []
        for node in nodes:
            child = node.get("items") if isinstance(step, int) else (
                (node.get("properties") or {}).get(step) or node.get("additionalProperties")
            )  # fmt: skip
            if isinstance(child, dict):
                following.extend(follow(child))
        nodes = following
    for node in nodes:
        if "minimum" in node and "maximum" in node:
            return f"{node['minimum']} to {node['maximum']}"
    return ""
