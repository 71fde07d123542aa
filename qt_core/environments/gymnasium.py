# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Any Gymnasium environment as a task of ours."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from qt_core.configuration import ConfigurationError, require
from qt_core.environments.base import StateError
from qt_core.environments.environment import Step
from qt_core.environments.gymnasium_spaces import Senses, cut_actions
from qt_core.observation import Observation, resize
from qt_core.spec import Camera, Spec

MAX_STEPS = 10_000  # of an episode, where the environment itself has no limit
RENDERED = 'render'  # name of the camera that the rendered picture is


class GymnasiumEnvironment:
    """One environment of the library gymnasium, with bins for actions.

        observation ─ uint8 (H, W[, C]) ─▶ camera     bins ─▶ choice of a Discrete, ...
                    ─ text ─────────────▶ sentence         ─▶ value in a bounded Box
                    ─ all else, flat ───▶ state (S,)
        rendered picture, if asked for ─▶ camera 'render'

    States stay in the environment's units. `terminated` is terminal; `truncated` alone a timeout.
    Used as a context manager it closes the environment, its own or the caller's.

    Args:
        environment: One that the caller has made, with any wrappers; or an id, such as
            `CartPole-v1`, or `module:Name-v0` for one that importing the module registers.
        sentence: What every episode is told; where it is empty, the text in the first observation
            of each, if there is one.
        render: Whether what the environment renders is a camera too, and of which size (H, W);
            True takes the size it comes in. One that the caller made needs the render_mode
            `rgb_array`.
        action_bins: Bins A of each dimension of a Box; choices have as many as there are.
        action_low: Where the bins of a Box begin, which one without bounds needs.
        action_high: Where they end.
        max_steps: Steps after which an episode is cut off, a timeout; None for the environment's
            own limit, or 10,000 where it says none.

    Attributes:
        reward_threshold: The return that counts as success, where the environment says one.

    Raises:
        ConfigurationError: The environment cannot be made or rendered, or a space of it has no
            place here, and what to do.
    """

    contract = None

    def __init__(
        self,
        environment: str | gymnasium.Env[Any, Any],
        *,
        sentence: str = '',
        render: bool | tuple[int, int] = False,
        action_bins: int = 256,
        action_low: ArrayLike | None = None,
        action_high: ArrayLike | None = None,
        max_steps: int | None = None,
    ) -> None:
        require(max_steps is None or max_steps >= 1, 'max_steps', max_steps, 'at least 1')
        own = isinstance(environment, str)
        if isinstance(environment, str):
            name, environment = environment, _make(environment, 'rgb_array' if render else None)
        else:
            name = type(environment.unwrapped).__name__
        self.environment = environment
        try:
            with _in_one_line(name):
                self.senses = Senses.of(self.environment.observation_space)
                self.actions = cut_actions(
                    self.environment.action_space, action_bins, action_low, action_high
                )
                cameras = [camera for camera, _ in self.senses.images]
                cameras += self._rendered(render)
                self.spec = Spec(
                    cameras=tuple(cameras),
                    state_dim=self.senses.state_dim,
                    num_actions=len(self.actions.counts),
                    action_bins=self.actions.bins,
                )
        except BaseException:
            if own:
                self.environment.close()
            raise
        declared = self.environment.spec
        self.name = declared.id if declared is not None else name
        self.reward_threshold = None if declared is None else declared.reward_threshold
        limit = None if declared is None else declared.max_episode_steps
        self.max_steps = max_steps or limit or MAX_STEPS
        self.sentence = sentence

    @property
    def speaks(self) -> bool:
        """Whether its episodes have a sentence."""
        return bool(self.sentence) or self.senses.sentence is not None

    def reset(self, seed: int) -> tuple[Observation, str]:
        """Start the episode of `seed`; give the first observation and the sentence.

        Raises:
            StateError: The observation is not what its space declares, or not finite.
        """
        value, _ = self.environment.reset(seed=seed)
        self._steps = 0
        return self._observe(value), self.sentence or self.senses.read_sentence(value)

    def step(self, bins: NDArray[np.int64]) -> Step:
        """Take the action with these bins (N,).

        Raises:
            ValueError: A bin is out of range.
            StateError: The observation is not what its space declares, or it or the reward is not
                finite.
        """
        value, reward, terminated, truncated, _ = self.environment.step(self.decode(bins))
        self._steps += 1
        if not math.isfinite(reward):
            raise StateError(f'{self.name} gave the reward {reward}, expected a finite number')
        return Step(
            self._observe(value),
            float(reward),
            terminal=bool(terminated),
            timeout=not terminated and (bool(truncated) or self._steps >= self.max_steps),
        )

    def decode(self, bins: NDArray[np.int64]) -> Any:
        """Give the environment's action of bins (N,).

        Raises:
            ValueError: A bin is out of range.
        """
        bins = np.asarray(bins)
        shape, last = (self.spec.num_actions,), self.spec.action_bins - 1
        if bins.shape != shape or bins.min() < 0 or bins.max() > last:
            raise ValueError(f'bins {bins.tolist()} are not {shape[0]} numbers in 0..{last}')
        return self.actions.decode(bins)

    def encode(self, action: Any) -> NDArray[np.int64]:
        """Give the bins (N,) of an action of the environment, the nearest of a Box.

        Raises:
            ValueError: A value is not finite.
        """
        return self.actions.encode(action)

    def close(self) -> None:
        """Close the environment."""
        self.environment.close()

    def __enter__(self) -> GymnasiumEnvironment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _observe(self, value: Any) -> Observation:
        try:
            images, state = self.senses.read(value)
        except StateError as error:
            raise StateError(f'{self.name}: {error}') from None
        for camera in self.spec.cameras[len(images) :]:
            images[camera.name] = resize(self._picture(), camera.height, camera.width)
        return Observation(images, state)

    def _rendered(self, render: bool | tuple[int, int]) -> list[Camera]:
        if not render:
            return []
        mode = self.environment.render_mode
        require(mode == 'rgb_array', 'render_mode', mode, 'rgb_array, to make a camera of it')
        self.environment.reset(seed=0)
        picture = self._picture()  # that it can be rendered is known before the first episode
        height, width = render if isinstance(render, tuple) else picture.shape[:2]
        return [Camera(name=RENDERED, height=height, width=width)]

    def _picture(self) -> NDArray[np.uint8]:
        return np.array(self.environment.render(), np.uint8)


def _make(name: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    with _in_one_line(name):
        return gymnasium.make(name, render_mode=render_mode)


@contextmanager
def _in_one_line(name: str) -> Iterator[None]:
    """Turn errors of gymnasium, and of a module that cannot be imported, into ours."""
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(f'{name}: {error}') from error
    except (gymnasium.error.Error, ImportError) as error:
        line = ' '.join(str(error).split())
        raise ConfigurationError(f'{name}: {line}') from error
