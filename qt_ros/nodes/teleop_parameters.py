# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters of the `teleop` node, and the pure objects that they make."""

from __future__ import annotations

import dataclasses
from typing import Any

from rclpy.node import Node

from qt_core.contract import RobotContract
from qt_ros.nodes.node_support import Parameter
from qt_ros.teleoperation import Speeds, TeleoperationError
from qt_ros.teleoperation.gamepad import Gamepad, Mapping
from qt_ros.teleoperation.jog import TipMotion
from qt_ros.teleoperation.keys import Keys
from qt_ros.teleoperation.leader import Leader

INPUTS = ('keyboard', 'joy', 'leader')
DEADMEN = ('engage', 'joy')
PARAMETERS = (
    Parameter('contract', '', "The robot's contract file."),
    Parameter('input', 'keyboard', 'What a person drives with: keyboard, joy or leader.'),
    Parameter('urdf', '', "The robot's URDF file, for Cartesian jog; '' for joints alone."),
    Parameter('tip', '', 'Link of the URDF that Cartesian jog moves.'),
    Parameter(
        'gripper', '', "Joint of the gripper; '' for the only one with 'gripper' in its name."
    ),
    Parameter('rate', 0.0, "Commands per second; 0 for the contract's rate.", 0.0, 1000.0),
    Parameter(
        'joint_speed',
        0.4,
        "Speed of joints, as a share of what the contract's max_step allows.",
        0.01,
        1.0,
        read_only=False,
    ),
    Parameter('linear_speed', 0.1, 'Speed of the tip, m/s.', 0.001, 2.0, read_only=False),
    Parameter('angular_speed', 0.5, 'Speed of turning it, rad/s.', 0.01, 6.0, read_only=False),
    Parameter(
        'lead',
        2.0,
        "Farthest that a target is ahead of the measured pose, in the contract's max_step.",
        0.5,
        20.0,
        read_only=False,
    ),
    Parameter('hold', 0.3, 'How long a key acts, s.', 0.1, 1.0, read_only=False),
    Parameter('guard_timeout', 10.0, 'How long the keyboard waits for the guard, s.', 0.0, 600.0),
    Parameter('deadzone', 0.1, "Share of a stick's way that does nothing.", 0.0, 0.9),
    Parameter(
        'command_timeout',
        0.3,
        'Silence of the gamepad or leader arm that counts as letting go, s.',
        0.05,
        5.0,
        read_only=False,
    ),
    Parameter('leader_topic', 'leader/joint_states', 'Joint states of the leader arm.'),
    Parameter('leader_mode', 'relative', 'How the robot follows it: relative or absolute.'),
    Parameter('leader_deadman', 'engage', 'Its deadman: the service ~/engage, or joy.'),
    Parameter(
        'leader_joints',
        [''],
        "The leader's joint for each commanded one, '' for none; [''] for the same names.",
    ),
    Parameter('leader_scale', [1.0], 'Factor of each joint, -1 to mirror it; or one for all.'),
    Parameter('leader_offset', [0.0], 'Added to each joint when absolute; or one for all.'),
    *(
        Parameter(field.name, field.default, field.metadata['description'])
        for field in dataclasses.fields(Mapping)
    ),
)


def gripper_of(contract: RobotContract, wanted: str) -> str:
    """Give the joint of the gripper, '' for none.

    Raises:
        TeleoperationError: It is not commanded.
    """
    joints = contract.action.joints
    if wanted and wanted not in joints:
        raise TeleoperationError(
            f'gripper is {wanted!r}, expected one of {", ".join(joints)} of the contract'
        )
    named = [joint for joint in joints if 'gripper' in joint.lower()]
    return wanted or (named[0] if len(named) == 1 else '')


def tip_motion(contract: RobotContract, urdf: str, tip: str) -> TipMotion | None:
    """Load what moves the tip; None without a URDF.

    Raises:
        TeleoperationError: The URDF does not fit, or what it needs is not installed.
    """
    if not urdf:
        if tip:
            raise TeleoperationError(f'tip is {tip!r}, but urdf is not set: give both')
        return None
    try:
        from qt_ros.teleoperation.kinematics import Kinematics
    except ModuleNotFoundError as error:
        raise TeleoperationError(
            f"urdf needs {error.name}, which is not installed: pip install 'qt_ros[teleop]'"
        ) from error
    return Kinematics(urdf, tip, contract)


def devices(node: Node, contract: RobotContract, tip: bool) -> tuple[Any, Any]:
    """Make the object that drives and the one that is the deadman switch; often the same.

    Raises:
        TeleoperationError: A parameter does not fit.
    """

    def value(name: str) -> Any:
        return node.get_parameter(name).value

    kind, deadman = value('input'), value('leader_deadman')
    if kind not in INPUTS:
        raise TeleoperationError(f'input is {kind!r}, expected {" or ".join(INPUTS)}')
    if deadman not in DEADMEN:
        raise TeleoperationError(f'leader_deadman is {deadman!r}, expected {" or ".join(DEADMEN)}')
    joints, gripper = contract.action.joints, gripper_of(contract, value('gripper'))
    timeout = value('command_timeout')
    if kind == 'keyboard':
        keys = Keys(joints, gripper, tip=tip, hold=value('hold'))
        return keys, keys
    mapping = Mapping(**{field.name: value(field.name) for field in dataclasses.fields(Mapping)})
    pad = Gamepad(
        joints, gripper, tip=tip, mapping=mapping, deadzone=value('deadzone'), timeout=timeout
    )
    if kind == 'joy':
        return pad, pad
    leader = Leader(
        contract,
        value('leader_mode'),
        value('leader_joints'),
        value('leader_scale'),
        value('leader_offset'),
        timeout,
    )
    return leader, pad if deadman == 'joy' else leader


def speeds(node: Node, contract: RobotContract) -> Speeds:
    """Give how fast full speed is right now."""
    joint, linear, angular = (
        node.get_parameter(f'{name}_speed').value for name in ('joint', 'linear', 'angular')
    )
    return Speeds.of(contract, joint, linear, angular)
