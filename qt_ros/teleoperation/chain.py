# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The part of a URDF that lies between the arm's base and the tip that a person moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from qt_ros.teleoperation.jog import TeleoperationError

MOVING = ('revolute', 'continuous', 'prismatic')
# The links of the chain weigh what MuJoCo needs to take them; kinematics does not ask.
COMPILER = {'fusestatic': 'false', 'boundmass': '1', 'boundinertia': '1', 'angle': 'radian'}


@dataclass(frozen=True)
class Chain:
    """The joints that move the tip, from base to tip.

    Attributes:
        joints: Their names; every one is commanded.
        low: Lowest position of each, rad or m; -inf where the URDF has no limit.
        high: Highest.
        base: The link in whose frame the tip's pose is.
        tip: The link that is moved.
        urdf: A URDF of these joints and their links alone, without shapes.
    """

    joints: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    base: str
    tip: str
    urdf: str

    @classmethod
    def load(cls, path: str | Path, tip: str, commanded: Sequence[str]) -> Chain:
        """Read a URDF file.

        Args:
            path: Its file; shapes and meshes are not looked at.
            tip: Name of the link to move.
            commanded: Joints that commands can move.

        Raises:
            TeleoperationError: It cannot be read, has no such link, or a joint on the way to it
                moves but is not commanded.
        """
        try:
            robot = ElementTree.parse(path).getroot()
        except (OSError, ElementTree.ParseError) as error:
            raise TeleoperationError(f'{path}: cannot be read as URDF ({error})') from error
        if robot.tag != 'robot' or any('xacro' in element.tag for element in robot.iter()):
            raise TeleoperationError(f'{path}: no plain URDF; expand it: xacro IN > OUT.urdf')
        links = [link.get('name', '') for link in robot.findall('link')]
        if tip not in links:
            raise TeleoperationError(
                f'{path}: tip is {tip!r}, expected one of its links: {", ".join(links)}'
            )
        above = {_link(joint, 'child'): joint for joint in robot.findall('joint')}
        found: list[Element] = []
        link = tip
        while link in above and above[link] not in found:
            found.append(above[link])
            link = _link(above[link], 'parent')
        return cls._of(str(path), found[::-1], tip, commanded)

    @classmethod
    def _of(cls, path: str, joints: list[Element], tip: str, commanded: Sequence[str]) -> Chain:
        moves = [joint.get('type') != 'fixed' for joint in joints]
        ours = [
            moving and joint.get('name') in commanded
            for joint, moving in zip(joints, moves, strict=True)
        ]
        if not any(ours):
            raise TeleoperationError(f"{path}: no commanded joint moves link '{tip}'")
        first = ours.index(True)
        # What carries the arm may move on its own; the base is above it then.
        begin = next((i + 1 for i in range(first - 1, -1, -1) if moves[i]), 0)
        joints, moves, ours = joints[begin:], moves[begin:], ours[begin:]
        moving = [joint for joint, moved in zip(joints, moves, strict=True) if moved]
        for joint, mine in zip(joints, ours, strict=True):
            alone = joint.get('type') in MOVING and joint.find('mimic') is None
            if joint in moving and not (mine and alone):
                raise TeleoperationError(
                    f"{path}: joint '{joint.get('name')}' ({joint.get('type')}) moves '{tip}' "
                    f'but cannot be commanded by itself; commanded are {", ".join(commanded)}'
                )
        limits = [_limits(joint) for joint in moving]
        return cls(
            joints=tuple(joint.get('name', '') for joint in moving),
            low=tuple(low for low, _ in limits),
            high=tuple(high for _, high in limits),
            base=_link(joints[0], 'parent'),
            tip=tip,
            urdf=_written(joints),
        )


def _limits(joint: Element) -> tuple[float, float]:
    limit = joint.find('limit')
    if joint.get('type') == 'continuous' or limit is None:
        return -math.inf, math.inf
    return float(limit.get('lower', 0.0)), float(limit.get('upper', 0.0))


def _written(joints: list[Element]) -> str:
    robot = Element('robot', name='chain')
    settings = ElementTree.SubElement(robot, 'mujoco')
    ElementTree.SubElement(settings, 'compiler', COMPILER)
    for name in (_link(joints[0], 'parent'), *(_link(joint, 'child') for joint in joints)):
        ElementTree.SubElement(robot, 'link', name=name)
    for joint in joints:
        kind = 'continuous' if joint.get('type') == 'revolute' else joint.get('type', '')
        written = ElementTree.SubElement(robot, 'joint', name=joint.get('name', ''), type=kind)
        written.extend(joint.findall('parent') + joint.findall('child'))
        written.extend(joint.findall('origin') + joint.findall('axis'))
        if kind == 'prismatic':
            ElementTree.SubElement(written, 'limit', lower='0', upper='0')
    return ElementTree.tostring(robot, encoding='unicode')


def _link(joint: Element, end: str) -> str:
    element = joint.find(end)
    return '' if element is None else element.get('link', '')
