# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Environments: where a policy acts without a robot."""

from qt_core.environments.base import BaseEnvironment, StateError
from qt_core.environments.environment import Environment, Step

__all__ = ['BaseEnvironment', 'Environment', 'StateError', 'Step']
