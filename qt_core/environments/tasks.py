# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Tasks by their names: `reach`, in the embedded simulator, or `gymnasium:ID`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qt_core.configuration import ConfigurationError, require
from qt_core.spec import Spec

if TYPE_CHECKING:
    from qt_core.environments.gymnasium import GymnasiumEnvironment

REACH = 'reach'
GYMNASIUM = 'gymnasium:'


def gymnasium_id(task: str) -> str | None:
    """Give the id of a Gymnasium environment in a task's name; None for `reach`.

    Raises:
        ConfigurationError: It is no task.
    """
    if task == REACH:
        return None
    named = task.startswith(GYMNASIUM) and task != GYMNASIUM
    require(named, 'task', task, 'reach or gymnasium:ID, such as gymnasium:CartPole-v1')
    return task.removeprefix(GYMNASIUM)


def make_gymnasium(
    environment: str,
    spec: Spec | None = None,
    *,
    sentence: str = '',
    action_bins: int | None = None,
    render: tuple[int, int] | None = None,
    max_steps: int | None = None,
) -> GymnasiumEnvironment:
    """Make a Gymnasium environment, as a policy knows it.

    Args:
        environment: Its id.
        spec: What the policy sees and does; it settles bins and rendering where they are not
            given. None where the policy takes any.
        sentence: See `GymnasiumEnvironment`.
        action_bins: See there; None for the policy's, or 256.
        render: Size (H, W) of the rendered picture; None for the policy's, or no picture.
        max_steps: See there.

    Raises:
        ConfigurationError: It cannot be made, or is not what the policy knows.
    """
    from qt_core.environments.gymnasium import RENDERED, GymnasiumEnvironment

    if spec is not None:
        action_bins = action_bins or spec.action_bins
        sizes = ((c.height, c.width) for c in spec.cameras if c.name == RENDERED)
        render = render or next(sizes, None)
    made = GymnasiumEnvironment(
        environment,
        sentence=sentence,
        action_bins=action_bins or 256,
        render=render or False,
        max_steps=max_steps,
    )
    if spec is not None and made.spec != spec:
        made.close()
        theirs, ours = made.spec.fields(), spec.fields()
        lines = [f'{n} {theirs[n]}, not {ours[n]}' for n in ours if theirs[n] != ours[n]]
        raise ConfigurationError(
            f'{environment} is another environment than the policy was trained in: it has '
            f'{"; ".join(lines)}'
        )
    return made
