# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What one robot observes and commands, written once and read by every part of the system."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from qt_core.configuration import ConfigurationError, build, plain, require

COMMAND_TYPES = ('joint_trajectory', 'multi_array', 'joint_state')
ACTION_MODES = ('delta', 'absolute', 'velocity')
COMPANDINGS = ('uniform', 'mu_law')
IMAGE_TYPES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
STAMPS = ('header', 'receive')
MAX_IMAGE_SIDE = 4096
MAX_BINS = 4096


class ContractError(ConfigurationError):
    """A contract that cannot be used, and what to change in it."""


@dataclass(frozen=True, kw_only=True)
class CameraContract:
    """One camera stream and the size of the image the policy sees.

    Attributes:
        name: Key of the image in an observation.
        topic: Relative topic name.
        type: One of `IMAGE_TYPES`.
        height: Rows of the policy's image, pixels.
        width: Columns of the policy's image, pixels.
        max_age: Seconds after which a frame is too old to act on.
        rate: Rate at which the camera should publish, Hz; None for at least the control rate.
        stamp: Which time a frame is of: that in its `header` where it is not zero, or the time it
            was received (`receive`), for a camera whose clock is not the robot's.
        depth_range: Distances that become black and white, m; None for a camera of colours.
    """

    name: str
    topic: str
    height: int
    width: int
    max_age: float
    type: str = 'sensor_msgs/msg/Image'
    rate: float | None = None
    stamp: str = 'header'
    depth_range: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class StateContract:
    """The joint positions a policy observes, in this order.

    Attributes:
        topic: Relative name of a sensor_msgs/msg/JointState topic.
        joints: Joint names.
        low: Position that maps to -1 for the policy, rad or m.
        high: Position that maps to +1 for the policy, rad or m.
        max_age: Seconds after which a state is too old to act on.
        rate: As of a camera.
        stamp: As of a camera.
    """

    topic: str
    joints: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    max_age: float
    rate: float | None = None
    stamp: str = 'header'


@dataclass(frozen=True, kw_only=True)
class InstructionContract:
    """Where the sentence comes from: a std_msgs/msg/String topic."""

    topic: str


@dataclass(frozen=True, kw_only=True)
class ActionContract:
    """How a command is cut into bins and sent.

    Attributes:
        topic: Relative name of the command topic.
        type: One of `COMMAND_TYPES`.
        mode: `delta` from the measured position, `absolute` position, or `velocity`.
        joints: Commanded joints, a subset of the state's.
        bins: Bins per dimension.
        low: Value of the lowest bin: rad or m, per step for `delta`, per second for `velocity`.
        high: Value of the highest bin.
        companding: `uniform` bins, or `mu_law` ones that are finer around zero.
        terminate: Whether one more dimension says that the task is done.
        stamp: As of a camera.
    """

    topic: str
    joints: tuple[str, ...]
    bins: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    type: str = 'joint_trajectory'
    mode: str = 'delta'
    companding: str = 'uniform'
    terminate: bool = False
    stamp: str = 'header'

    @property
    def dimensions(self) -> int:
        """Number of action dimensions N, the terminate dimension included."""
        return len(self.joints) + int(self.terminate)


@dataclass(frozen=True, kw_only=True)
class SafetyContract:
    """What no command may exceed, per commanded joint.

    Attributes:
        position_low: Lowest position, rad or m.
        position_high: Highest position, rad or m.
        max_step: Largest change of a command from one control step to the next, rad or m.
        watchdog: Seconds without an action after which the arm is told to hold.
    """

    position_low: tuple[float, ...]
    position_high: tuple[float, ...]
    max_step: tuple[float, ...]
    watchdog: float = 0.5


@dataclass(frozen=True, kw_only=True)
class RobotContract:
    """What one robot observes and commands.

    Attributes:
        name: The robot's name.
        rate: Control rate, Hz.
        cameras: Camera streams, at least one.
        state: Joint state stream.
        instruction: Instruction stream.
        action: Command stream.
        safety: Limits of every command.
    """

    name: str
    rate: float
    cameras: tuple[CameraContract, ...]
    state: StateContract
    action: ActionContract
    safety: SafetyContract
    instruction: InstructionContract = field(
        default_factory=lambda: InstructionContract(topic='instruction')
    )

    def __post_init__(self) -> None:
        _validate(self)

    @property
    def period(self) -> float:
        """Seconds from one control step to the next."""
        return 1.0 / self.rate

    @classmethod
    def load(cls, path: str | Path) -> RobotContract:
        """Read a contract from a YAML file.

        Raises:
            ContractError: The file cannot be read, or its content is not a valid contract.
        """
        try:
            text = Path(path).read_text(encoding='utf-8')
        except (OSError, UnicodeDecodeError) as error:
            raise ContractError(f'{path}: cannot be read ({error})') from error
        return cls.from_text(text, source=str(path))

    @classmethod
    def from_text(cls, text: str, source: str = 'contract') -> RobotContract:
        """Parse the YAML text of a contract; `source` is named in errors.

        Raises:
            ContractError: The text is not a valid contract.
        """
        if not isinstance(text, str):  # a damaged file's
            raise ContractError(f'{source} is {text!r}, expected text')
        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            line = ' '.join(str(error).split())
            raise ContractError(f'{source}: not YAML ({line})') from error
        try:
            contract = build(cls, content)
        except ConfigurationError as error:
            raise ContractError(f'{source}: {error}') from None
        return contract

    def to_text(self) -> str:
        """Write the contract as YAML; `from_text` gives back an equal contract."""
        return yaml.safe_dump(plain(self), sort_keys=False, default_flow_style=None, width=99)


def differing_fields(ours: RobotContract, theirs: RobotContract) -> list[str]:
    """List each field that differs as `path: ours != theirs`; empty when they are equal."""
    return _differences(plain(ours), plain(theirs), '')


def require_same(
    ours: RobotContract, theirs: RobotContract, ours_name: str, theirs_name: str
) -> None:
    """Refuse to go on with data made under another contract.

    Raises:
        ContractError: With the differing fields, one line.
    """
    differences = differing_fields(ours, theirs)
    if differences:
        raise ContractError(
            f'{theirs_name} was made under another contract than {ours_name}: '
            + '; '.join(differences)
        )


def _differences(ours: Any, theirs: Any, path: str) -> list[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [
            line
            for key in ours
            for line in _differences(ours[key], theirs[key], f'{path}.{key}'.lstrip('.'))
        ]
    if (
        isinstance(ours, list)
        and isinstance(theirs, list)
        and len(ours) == len(theirs)
        and any(isinstance(item, dict) for item in ours)
    ):
        return [
            line
            for index, (a, b) in enumerate(zip(ours, theirs, strict=True))
            for line in _differences(a, b, f'{path}[{index}]')
        ]
    return [] if ours == theirs else [f'{path}: {ours!r} != {theirs!r}']


def _validate(contract: RobotContract) -> None:
    state, action, safety = contract.state, contract.action, contract.safety
    require(bool(contract.name), 'name', contract.name, 'a name')
    require(0 < contract.rate <= 1000, 'rate', contract.rate, '0 < rate <= 1000 Hz')
    require(bool(contract.cameras), 'cameras', [], 'at least one camera')
    names = [camera.name for camera in contract.cameras]
    for index, camera in enumerate(contract.cameras):
        path = f'cameras[{index}]'
        require(camera.name.isidentifier(), f'{path}.name', camera.name, 'an identifier')
        require(names.count(camera.name) == 1, f'{path}.name', camera.name, 'a unique name')
        require(camera.type in IMAGE_TYPES, f'{path}.type', camera.type, ' or '.join(IMAGE_TYPES))
        for side in ('height', 'width'):
            pixels = getattr(camera, side)
            require(
                1 <= pixels <= MAX_IMAGE_SIDE, f'{path}.{side}', pixels, f'1..{MAX_IMAGE_SIDE}'
            )
        _require_positive(camera.max_age, f'{path}.max_age')
        _require_topic(camera.topic, f'{path}.topic')
        _require_timing(camera, path)
        if camera.depth_range is not None:
            depth = camera.depth_range
            fits = len(depth) == 2 and 0 <= depth[0] < depth[1] < math.inf
            require(fits, f'{path}.depth_range', list(depth), 'two distances, near before far')
    _require_topic(state.topic, 'state.topic')
    _require_topic(contract.instruction.topic, 'instruction.topic')
    _require_topic(action.topic, 'action.topic')
    _require_positive(state.max_age, 'state.max_age')
    _require_timing(state, 'state')
    require(action.stamp in STAMPS, 'action.stamp', action.stamp, ' or '.join(STAMPS))
    period = f'more than one period, {1 / contract.rate:g} s'
    _require_positive(safety.watchdog, 'safety.watchdog')
    require(safety.watchdog > 1 / contract.rate, 'safety.watchdog', safety.watchdog, period)
    require(bool(state.joints), 'state.joints', [], 'at least one joint')
    _require_unique(state.joints, 'state.joints')
    require(bool(action.joints), 'action.joints', [], 'at least one joint')
    _require_unique(action.joints, 'action.joints')
    for joint in action.joints:
        if joint not in state.joints:
            raise ContractError(
                f"action.joints names '{joint}', which is not in state.joints "
                f'({", ".join(state.joints)})'
            )
    require(action.type in COMMAND_TYPES, 'action.type', action.type, ' or '.join(COMMAND_TYPES))
    require(action.mode in ACTION_MODES, 'action.mode', action.mode, ' or '.join(ACTION_MODES))
    require(
        action.companding in COMPANDINGS,
        'action.companding',
        action.companding,
        ' or '.join(COMPANDINGS),
    )
    require(2 <= action.bins <= MAX_BINS, 'action.bins', action.bins, f'2..{MAX_BINS}')
    _require_range(state.low, state.high, len(state.joints), 'state.low', 'state.high')
    _require_range(action.low, action.high, len(action.joints), 'action.low', 'action.high')
    _require_range(
        safety.position_low,
        safety.position_high,
        len(action.joints),
        'safety.position_low',
        'safety.position_high',
    )
    _require_length(safety.max_step, len(action.joints), 'safety.max_step')
    for index, step in enumerate(safety.max_step):
        _require_positive(step, f'safety.max_step[{index}]')


def _require_positive(value: float, path: str) -> None:
    require(math.isfinite(value) and value > 0, path, value, 'a positive number')


def _require_timing(stream: CameraContract | StateContract, path: str) -> None:
    if stream.rate is not None:
        _require_positive(stream.rate, f'{path}.rate')
    require(stream.stamp in STAMPS, f'{path}.stamp', stream.stamp, ' or '.join(STAMPS))


def _require_topic(topic: str, path: str) -> None:
    relative = bool(topic) and not topic.startswith(('/', '~')) and ' ' not in topic
    require(relative, path, topic, "a relative topic name, like 'camera/image_raw'")


def _require_unique(joints: tuple[str, ...], path: str) -> None:
    for joint in joints:
        require(bool(joint) and joints.count(joint) == 1, path, joint, 'each joint named once')


def _require_length(values: tuple[float, ...], length: int, path: str) -> None:
    require(len(values) == length, path, list(values), f'{length} numbers, one per joint')


def _require_range(
    low: tuple[float, ...], high: tuple[float, ...], length: int, low_path: str, high_path: str
) -> None:
    _require_length(low, length, low_path)
    _require_length(high, length, high_path)
    for index, (a, b) in enumerate(zip(low, high, strict=True)):
        require(math.isfinite(a), f'{low_path}[{index}]', a, 'a finite number')
        require(math.isfinite(b), f'{high_path}[{index}]', b, 'a finite number')
        require(a < b, f'{low_path}[{index}]', a, f'less than {high_path}[{index}], which is {b}')
