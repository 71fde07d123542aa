# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Environments that are no robot: tensors in, tensors out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from qt_core.contract import RobotContract
from qt_core.environments.environment import Step
from qt_core.observation import Observation
from qt_core.spec import Spec


class StateError(ValueError):
    """A state or reward of an environment that cannot be stored, and what to do."""


class BaseEnvironment(nn.Module):
    """A task whose states are tensors; override `init` and `forward`.

    A state is a stack of frames (C, F, H, W) with the newest last, a single frame (C, H, W), or a
    vector (S,). Pixels are uint8, or float in -1..1. A stack slides by one frame at each step.

    Args:
        state_shape: Shape of a state.
        text_embed_shape: (E,), width of the embedding of the sentence by the model in use.
    """

    dummy: Tensor

    def __init__(
        self, state_shape: Sequence[int], text_embed_shape: int | Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.state_shape = tuple(state_shape)
        sizes = (text_embed_shape,) if isinstance(text_embed_shape, int) else text_embed_shape
        self.text_embed_shape = tuple(sizes)
        if len(self.state_shape) not in (1, 3, 4):
            raise StateError(
                f'state_shape is {self.state_shape}, expected (C, F, H, W), (C, H, W) or (S,)'
            )
        self.register_buffer('dummy', torch.zeros(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the states are."""
        return self.dummy.device

    def init(self) -> tuple[str, Tensor]:
        """Start an episode; give the sentence and the first state."""
        raise NotImplementedError(f'{type(self).__name__} must override init')

    def forward(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take the action with bins (1, N); give reward (), next state and done ()."""
        raise NotImplementedError(f'{type(self).__name__} must override forward')


class SingleFrames:
    """Shows a `BaseEnvironment` one observation at a time, the newest frame as uint8.

    Older frames of a stack were seen before, so they need not be stored again. `reset` and `step`
    are those of `qt_core.environments.Environment`; the episodes follow from the environment's
    own state, not from the seed.

    Args:
        environment: The environment.
        spec: Shapes of its observations and actions.

    Raises:
        StateError: On `reset` and `step`, when a state does not have the shape declared, is not
            finite, has pixels out of range, or does not continue the stack before.
    """

    contract: RobotContract | None = None

    def __init__(self, environment: BaseEnvironment, spec: Spec) -> None:
        self.environment, self.spec = environment, spec
        self.camera = spec.cameras[0].name if spec.cameras else ''
        self._name = type(environment).__name__
        self._expected: Tensor | None = None  # what the next stack begins with

    def reset(self, seed: int) -> tuple[Observation, str]:
        """Start an episode; `seed` is not used."""
        sentence, state = self.environment.init()
        self._expected = None
        return self._observe(state), sentence or ''

    def step(self, bins: NDArray[np.int64]) -> Step:
        """Take the action with these bins (N,)."""
        actions = torch.from_numpy(bins)[None].to(self.environment.device)
        reward, state, done = self.environment(actions)
        if not math.isfinite(float(reward)):
            raise StateError(f'{self._name} gave the reward {float(reward)}, expected a number')
        return Step(self._observe(state), float(reward), terminal=bool(done), timeout=False)

    def _observe(self, state: Tensor) -> Observation:
        shape = self.environment.state_shape
        if tuple(state.shape) != shape:
            raise StateError(
                f'{self._name} gave a state of shape {tuple(state.shape)}, '
                f'expected its state_shape {shape}'
            )
        if len(shape) == 1:
            vector = state.detach().float().cpu().numpy().copy()
            if not np.isfinite(vector).all():
                raise StateError(f'{self._name} gave a state that is not finite')
            return Observation({}, vector)
        if len(shape) == 4:
            if self._expected is not None and not torch.equal(state[:, :-1], self._expected):
                raise StateError(
                    f'{self._name} gave a stack whose older frames are not those of the state '
                    'before: drop its first frame, append the new one last'
                )
            self._expected = state[:, 1:].clone()
            state = state[:, -1]
        frame = rearrange(self._pixels(state.detach()), 'c h w -> h w c')
        return Observation({self.camera: frame.cpu().numpy().copy()}, np.zeros(0, np.float32))

    def _pixels(self, frame: Tensor) -> Tensor:
        if frame.dtype == torch.uint8:
            return frame
        if not frame.is_floating_point():
            raise StateError(
                f'{self._name} gave pixels as {frame.dtype}, expected uint8, or float in -1..1'
            )
        low, high = float(frame.min()), float(frame.max())
        if not (low >= -1 and high <= 1):  # also where they are not numbers
            raise StateError(
                f'{self._name} gave pixels in {low:g}..{high:g}, expected uint8, or float in '
                '-1..1: scale them by x / 127.5 - 1'
            )
        return ((frame.float() + 1) * 127.5).round().to(torch.uint8)
