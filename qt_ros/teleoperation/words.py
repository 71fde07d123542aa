# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a person who drives is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SOURCES = {
    '': 'NO GUARD',
    'policy': 'the policy drives',
    'teleop': 'you drive',
    'hold': 'holding',
    'estop': 'E-STOP (E releases it)',
}


def status_line(source: str, trouble: str, motion: str, recorder: Mapping[str, Any]) -> str:
    """Describe how things stand in one line.

    Args:
        source: Who drives, as the guard says; '' when there is no guard.
        trouble: Why the arm cannot be driven; '' when it can.
        motion: What the device drives, and how fast.
        recorder: The content of the recorder's status; empty when there is none.
    """
    parts = [SOURCES.get(source, source), trouble, motion, _recorder(recorder)]
    return ' | '.join(part for part in parts if part)


def answer_line(service: str, success: bool, message: str) -> str:
    """Describe the answer of a service in one line."""
    node, _, what = service.partition('/')
    content = _content(message)
    if not success:
        return f'{what} refused: {message or "no reason given"}'
    if node == 'guard':
        return f'guard: {SOURCES.get(content.get("source", what), what).partition(" (")[0]}'
    if 'instruction' in content:
        return f'{content.get("bag")}: recording "{content["instruction"]}"'
    return f'{content["bag"]}: {content.get("outcome")}' if 'bag' in content else f'{what}: done'


def recorder_status(text: str) -> Mapping[str, Any]:
    """Read the recorder's status; empty when it is none."""
    return _content(text)


def _recorder(status: Mapping[str, Any]) -> str:
    if not status:
        return 'no recorder'
    if status.get('state') != 'recording':
        return f'recorder {status.get("state")}'
    words = f'RECORDING {Path(str(status.get("bag"))).name} {status.get("elapsed", 0.0):.0f} s'
    dropped = status.get('dropped')
    return f'{words}, {dropped} DROPPED' if dropped else words


def _content(text: str) -> Mapping[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
