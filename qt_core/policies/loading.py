# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoint -> policy, by the checkpoint alone."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch

from qt_core.learning.checkpoint import CheckpointError, load_checkpoint
from qt_core.policies.policy import Policy

# Kind of checkpoint to what runs it: called with the checkpoint and `compile`.
POLICIES = {
    'q_transformer': 'q_transformer.QTransformerPolicy',
    'decision_transformer': 'decision_transformer.DecisionTransformerPolicy',
    'gato': 'gato.GatoPolicy',
}


def load_policy(checkpoint: str | Path, device: str = 'auto', *, compile: bool = False) -> Policy:
    """Load the policy in a checkpoint folder.

    Args:
        checkpoint: The folder.
        device: A torch device, or `auto`: a GPU when there is one.
        compile: Let torch.compile, which needs a C++ compiler, make a control step faster. It
            takes from seconds to minutes: in the policy's `warm_up`, or else as steps come.

    Raises:
        CheckpointError: The checkpoint cannot be used, or the device does not exist.
        ConfigurationError: The policy cannot be compiled.
    """
    name = ('cuda' if torch.cuda.is_available() else 'cpu') if device == 'auto' else device
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(f'device {device!r} cannot be used ({error})') from error
    loaded = load_checkpoint(checkpoint, chosen)
    module, name = POLICIES[loaded.model.policy].split('.')
    kind = getattr(import_module(f'qt_core.policies.{module}'), name)
    policy: Policy = kind(loaded, compile=compile)
    return policy
