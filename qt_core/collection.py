# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Episodes of any policy in a Gymnasium environment, for a replay folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qt_core.policies.policy import Policy
from qt_core.replay import ReplayEpisode

if TYPE_CHECKING:
    from qt_core.environments.gymnasium import GymnasiumEnvironment


def play(policy: Policy, environment: GymnasiumEnvironment, seed: int) -> ReplayEpisode:
    """Run the episode of `seed` and give it, with the bins that were carried out.

    Its outcome is success or failure where the environment says from which return on it is one.

    Raises:
        StateError: The environment gave what cannot be stored.
    """
    observation, sentence = environment.reset(seed)
    policy.reset(sentence)
    observations, bins, rewards = [observation], [], []
    while True:
        action = environment.decode(policy.act(observation).bins)
        # Several bins may be one action.
        bins.append(environment.encode(action))
        step = environment.step(bins[-1])
        policy.receive(step.reward)
        observation = step.observation
        observations.append(observation)
        rewards.append(step.reward)
        if step.terminal or step.timeout:
            break
    threshold, outcome = environment.reward_threshold, 'unlabeled'
    if threshold is not None:
        outcome = 'success' if sum(rewards) >= threshold else 'failure'
    return ReplayEpisode(
        images={
            camera.name: np.stack([o.images[camera.name] for o in observations])
            for camera in environment.spec.cameras
        },
        state=np.stack([o.state for o in observations]),
        bins=np.stack(bins),
        reward=np.array(rewards, np.float32),
        terminal=step.terminal,
        timeout=step.timeout,
        instruction=sentence,
        source=f'{environment.name} seed {seed}',
        outcome=outcome,
    )
