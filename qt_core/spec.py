# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a policy sees and does, as array shapes, whatever robot or environment it is of."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from qt_core.configuration import require
from qt_core.contract import RobotContract

MAX_SIZE = 8192  # of any dimension: a damaged file must not exhaust memory


@dataclass(frozen=True, kw_only=True)
class Camera:
    """One stream of images.

    Attributes:
        name: Its key in an observation.
        height: Rows H, pixels.
        width: Columns W, pixels.
        channels: Channels C.
    """

    name: str = 'video'
    height: int = 224
    width: int = 224
    channels: int = 3

    def __post_init__(self) -> None:
        require(self.name.isidentifier(), 'camera.name', self.name, 'an identifier')
        for name in ('height', 'width', 'channels'):
            size = getattr(self, name)
            require(1 <= size <= MAX_SIZE, f'camera.{name}', size, f'1..{MAX_SIZE}')


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Shapes of observations and actions.

    Attributes:
        cameras: Streams of images; may be empty.
        state_dim: Numbers S of the state vector (joint positions, for a robot); 0 for none.
        num_actions: Action dimensions N.
        action_bins: Bins A of each action dimension.
    """

    cameras: tuple[Camera, ...] = (Camera(),)
    state_dim: int = 0
    num_actions: int = 8
    action_bins: int = 256

    def __post_init__(self) -> None:
        names = [camera.name for camera in self.cameras]
        require(len(set(names)) == len(names), 'cameras', names, 'unique names')
        require(0 <= self.state_dim <= MAX_SIZE, 'state_dim', self.state_dim, f'0..{MAX_SIZE}')
        sees = bool(self.cameras) or self.state_dim > 0
        require(sees, 'state_dim', self.state_dim, 'at least 1 where there is no camera')
        for name, least in (('num_actions', 1), ('action_bins', 2)):
            size = getattr(self, name)
            require(least <= size <= MAX_SIZE, name, size, f'{least}..{MAX_SIZE}')

    @classmethod
    def of(cls, contract: RobotContract) -> Spec:
        """Give the shapes of a robot's contract."""
        return Spec(
            cameras=tuple(
                Camera(name=camera.name, height=camera.height, width=camera.width)
                for camera in contract.cameras
            ),
            state_dim=len(contract.state.joints),
            num_actions=contract.action.dimensions,
            action_bins=contract.action.bins,
        )

    @property
    def shapes(self) -> Spec:
        """Give this without what a subclass adds."""
        return Spec(**self.fields())  # type: ignore[arg-type]

    @property
    def specs(self) -> tuple[Spec, ...]:
        """Give the shapes of all that a network acts with: here of one."""
        return (self.shapes,)

    def fields(self) -> dict[str, object]:
        """Give the fields by name, without those that a subclass adds."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(Spec)}
