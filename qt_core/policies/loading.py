# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoint -> policy, by the checkpoint alone."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch

from qt_core.configuration import ConfigurationError
from qt_core.contract import RobotContract, require_same
from qt_core.learning.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from qt_core.policies.policy import Policy, robot_of

# Kind of checkpoint to what runs it: called with the checkpoint and `compile`.
POLICIES = {
    'q_transformer': 'q_transformer.QTransformerPolicy',
    'decision_transformer': 'decision_transformer.DecisionTransformerPolicy',
    'gato': 'gato.GatoPolicy',
}


def load_policy(
    checkpoint: str | Path,
    device: str = 'auto',
    *,
    compile: bool = False,
    body: str | RobotContract = '',
) -> Policy:
    """Load the policy in a checkpoint folder.

    Args:
        checkpoint: The folder.
        device: A torch device, or `auto`: a GPU when there is one.
        compile: Let torch.compile, which needs a C++ compiler, make a control step faster. It
            takes from seconds to minutes: in the policy's `warm_up`, or else as steps come.
        body: Of a policy that acts with several, which: its name, or its contract; '' for the
            first robot. A contract must be that of the policy in any case.

    Raises:
        CheckpointError: The checkpoint cannot be used, or the device does not exist.
        ContractError: The checkpoint was made under another contract.
        ConfigurationError: There is no such body, or the policy cannot be compiled.
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
    policy: Policy = kind(loaded, compile=compile, **_which(loaded, body, checkpoint))
    if isinstance(body, RobotContract):
        require_same(body, robot_of(policy), 'the one given', str(checkpoint))
    return policy


def _which(loaded: Checkpoint, body: str | RobotContract, name: str | Path) -> dict[str, str]:
    bodies = getattr(loaded.model.config, 'bodies', ())
    if isinstance(body, RobotContract):
        fit = [each.name for each in bodies if each.embodiment.contract == body]
        return {'body': fit[0]} if fit else {}
    if body and not bodies:
        raise ConfigurationError(f'body is {body!r}, expected none: {name} has only one')
    return {'body': body} if body else {}
