# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The contract in a checkpoint, read without loading torch."""

from __future__ import annotations

import json
from pathlib import Path

from qt_core.contract import ContractError, RobotContract

FORMAT = 'qt-checkpoint'
MAX_CONFIG = 64 << 20  # bytes; it holds every sentence that was trained on


def load_contract_of_checkpoint(folder: str | Path) -> RobotContract:
    """Read the contract that a checkpoint was trained under.

    Args:
        folder: A checkpoint, of any kind of policy.

    Raises:
        ContractError: It is no checkpoint, or one that was trained for no robot.
    """
    file = Path(folder) / 'config.json'
    try:
        with file.open('rb') as stream:
            data = stream.read(MAX_CONFIG + 1)
        if len(data) > MAX_CONFIG:
            raise ValueError(f'over {MAX_CONFIG >> 20} MiB')
        config = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        line = ' '.join(str(error).split())
        raise ContractError(f'{folder}: not a checkpoint (config.json: {line})') from error
    if not isinstance(config, dict) or config.get('format') != FORMAT:
        raise ContractError(f'{folder}: not a checkpoint (config.json is of another format)')
    if config.get('contract') is None:
        raise ContractError(f'{folder}: holds no contract: it was trained for no robot')
    return RobotContract.from_text(config['contract'], f'{file}: contract')
