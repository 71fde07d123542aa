# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One episode, on its way into a replay folder or out of one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qt_core.observation import Observation
from qt_core.replay.frames import Frames
from qt_core.replay.layout import OUTCOMES, ReplayError
from qt_core.spec import Spec


@dataclass(frozen=True, kw_only=True)
class ReplayEpisode:
    """One episode of T actions between T + 1 observations.

    Attributes:
        images: Camera name to (T+1, H, W, C) uint8; RGB under a contract.
        state: (T+1, S) float32; S may be 0.
        action: (T, N) float32, in the contract's units; None where there is no contract.
        bins: (T, N) bins of `action`.
        reward: (T,) float32, reward of each action.
        terminal: The task ended with the last action, in success or failure.
        timeout: The episode was cut off after the last action.
        instruction: The sentence; empty for none.
        source: Where the episode came from, such as a bag's name.
        source_hash: Hash of that source's content.
        outcome: `success`, `failure` or `unlabeled`.
        quality: What was measured of the recording, as JSON holds it; None where nothing was.
    """

    images: Mapping[str, Frames]
    state: NDArray[np.float32]
    action: NDArray[np.float32] | None = None
    bins: NDArray[np.integer[Any]]
    reward: NDArray[np.float32]
    terminal: bool
    timeout: bool
    instruction: str
    source: str = ''
    source_hash: str = ''
    outcome: str = 'unlabeled'
    quality: Mapping[str, Any] | None = None

    def observations(self) -> list[Observation]:
        """Give the T + 1 observations."""
        return [
            Observation({name: frames[t] for name, frames in self.images.items()}, self.state[t])
            for t in range(len(self.state))
        ]


def check_episode(episode: ReplayEpisode, spec: Spec, *, in_units: bool) -> None:
    """Refuse an episode whose arrays do not fit each other or `spec`.

    Args:
        episode: The episode.
        spec: Shapes of observations and actions.
        in_units: Whether actions have units, and so values beside their bins.

    Raises:
        ReplayError: Naming the episode's source and what does not fit.
    """
    steps = len(episode.bins)
    where = f'episode {episode.source!r}'
    if steps == 0:
        raise ReplayError(f'{where} has no action')
    if episode.terminal and episode.timeout:
        raise ReplayError(f'{where} is both terminal and timeout')
    if episode.outcome not in OUTCOMES:
        allowed = ' or '.join(OUTCOMES)
        raise ReplayError(f'{where}: outcome is {episode.outcome!r}, expected {allowed}')
    try:
        json.dumps(episode.quality and dict(episode.quality), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ReplayError(f'{where}: quality is not JSON ({error})') from error
    if (episode.action is not None) != in_units:
        raise ReplayError(
            f'{where} has no action values, only bins'
            if in_units
            else f'{where} has action values, but no contract that gives their units'
        )
    expected: dict[str, tuple[Any, tuple[int, ...]]] = {
        'state': (episode.state, (steps + 1, spec.state_dim)),
        'bins': (episode.bins, (steps, spec.num_actions)),
        'reward': (episode.reward, (steps,)),
    }
    if episode.action is not None:
        expected['action'] = (episode.action, (steps, spec.num_actions))
    for camera in spec.cameras:
        frames = episode.images.get(camera.name)
        if frames is None or getattr(frames, 'dtype', np.uint8) != np.uint8:
            raise ReplayError(f"{where} lacks uint8 images of camera '{camera.name}'")
        expected[f'images[{camera.name}]'] = (
            frames,
            (steps + 1, camera.height, camera.width, camera.channels),
        )
    for name, (values, shape) in expected.items():
        if tuple(values.shape) != shape:
            raise ReplayError(f'{where}: {name} is {tuple(values.shape)}, expected {shape}')
    if episode.bins.dtype.kind not in 'iu':
        raise ReplayError(f'{where}: bins are {episode.bins.dtype}, expected whole numbers')
    if episode.bins.min() < 0 or episode.bins.max() >= spec.action_bins:
        raise ReplayError(f'{where}: bins are not all in 0..{spec.action_bins - 1}')
    with np.errstate(over='ignore'):  # what a float32 cannot hold becomes infinite
        for name in ('state', 'action', 'reward'):
            stored = np.asarray(expected[name][0], np.float32) if name in expected else np.zeros(1)
            if not np.isfinite(stored).all() or (
                name == 'reward' and not np.isfinite(stored.sum())
            ):
                raise ReplayError(f'{where}: {name} is not finite')
