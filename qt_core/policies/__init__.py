# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Policies: what turns observations into actions, behind one protocol."""

from qt_core.policies.baselines import RandomPolicy
from qt_core.policies.loading import load_policy
from qt_core.policies.policy import Choice, Decision, Policy, robot_of

__all__ = ['Choice', 'Decision', 'Policy', 'RandomPolicy', 'load_policy', 'robot_of']
