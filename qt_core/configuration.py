# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""YAML and JSON content <-> frozen dataclasses, one to one; unknown fields are errors."""

from __future__ import annotations

import dataclasses
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Built = TypeVar('Built')


class ConfigurationError(ValueError):
    """Content that does not fit a configuration; names field, value and what is allowed."""


def build(kind: type[Built], content: Any, path: str = '') -> Built:
    """Turn plain content into the dataclass `kind`.

    Args:
        kind: A dataclass whose fields are str, bool, int, float, None, tuples or dataclasses.
        content: What YAML or JSON gave.
        path: Name of the content in errors.

    Raises:
        ConfigurationError: A field is missing, unknown or of the wrong type.
    """
    if not isinstance(content, dict):
        raise ConfigurationError(f'{path or "content"} is {content!r}, expected fields')
    hints = get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in content:
        if key not in fields:
            raise ConfigurationError(
                f'{_join(path, key)} is not a field; allowed: {", ".join(fields)}'
            )
    values = {}
    for name, f in fields.items():
        if name in content:
            values[name] = _convert(hints[name], content[name], _join(path, name))
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigurationError(f'{_join(path, name)} is missing')
    return kind(**values)


def plain(value: Any) -> Any:
    """Turn a dataclass into dicts, lists and scalars; `build` is its inverse."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value


def require(condition: bool, path: str, value: object, allowed: str) -> None:
    """Raise ConfigurationError('`path` is `value`, expected `allowed`') unless `condition`."""
    if not condition:
        raise ConfigurationError(f'{path} is {value!r}, expected {allowed}')


def _join(path: str, name: object) -> str:
    return f'{path}.{name}' if path else str(name)


def _convert(hint: Any, value: Any, path: str) -> Any:
    if NoneType in get_args(hint):
        hint = next(option for option in get_args(hint) if option is not NoneType)
        return None if value is None else _convert(hint, value, path)
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigurationError(f'{path} is {value!r}, expected a list')
        inner = get_args(hint)[0]
        return tuple(_convert(inner, item, f'{path}[{i}]') for i, item in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return build(hint, value, path)  # type: ignore[arg-type]
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    raise ConfigurationError(f'{path} is {value!r}, expected {hint.__name__}')
