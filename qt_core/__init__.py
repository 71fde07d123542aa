# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Q-Transformer and its family: the learning system behind qt_ros, free of ROS.

Shapes are written with these letters everywhere:

    B  batch                      N  action dimensions
    T  time steps of a window     A  bins of one action dimension
    F  frames a policy looks at   S  joint positions in the state
    H  image height, pixels       M  tokens of one frame
    W  image width, pixels        D  model width
    C  image channels             E  width of a sentence embedding
    L  tokens of a sentence       V  bins of a value

What a program of one's own needs can be imported from here; the modules hold the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qt_core.agent import Agent
    from qt_core.environments.base import BaseEnvironment
    from qt_core.learning.q_learner import QLearner
    from qt_core.models import MaxViT, QRoboticTransformer
    from qt_core.replay import ReplayMemoryDataset

__all__ = [
    'Agent',
    'BaseEnvironment',
    'MaxViT',
    'QLearner',
    'QRoboticTransformer',
    'ReplayMemoryDataset',
]

_MODULES = {
    'Agent': 'agent',
    'BaseEnvironment': 'environments.base',
    'MaxViT': 'models',
    'QLearner': 'learning.q_learner',
    'QRoboticTransformer': 'models',
    'ReplayMemoryDataset': 'replay',
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: torch takes a second to load."""
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'qt_core.{_MODULES[name]}'), name)
