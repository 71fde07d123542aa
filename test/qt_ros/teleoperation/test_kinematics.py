# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Cartesian jog against forward kinematics computed here, from the URDF and nothing else."""

from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from qt_core.environments.demonstrator import joint_pose
from qt_core.share import share_path
from qt_ros.teleoperation import Jog, TeleoperationError, Wanted
from qt_ros.teleoperation.chain import Chain
from qt_ros.teleoperation.kinematics import Kinematics

URDF = share_path('config/robots/tabletop_arm.urdf')
TIP = 'hand_link'
PERIOD = 0.1
ZERO = np.zeros(7)
AXES = [
    (part, axis, way) for part in ('linear', 'angular') for axis in range(3) for way in (1, -1)
]


def forward(contract, positions, tip=TIP):
    """Forward kinematics, link by link."""
    robot = ElementTree.parse(URDF).getroot()
    above = {joint.find('child').get('link'): joint for joint in robot.findall('joint')}
    pose = np.eye(4)
    while tip in above:
        joint = above[tip]
        place, axis = joint.find('origin'), joint.find('axis').get('xyz')
        turned = np.eye(4)
        angle = positions[contract.action.joints.index(joint.get('name'))]
        turned[:3, :3] = Rotation.from_rotvec(angle * np.fromstring(axis, sep=' ')).as_matrix()
        shifted = np.eye(4)
        shifted[:3, 3] = np.fromstring(place.get('xyz'), sep=' ')
        assert place.get('rpy') is None
        pose = shifted @ turned @ pose
        tip = joint.find('parent').get('link')
    return pose


@pytest.fixture(scope='module')
def kinematics(contract):
    return Kinematics(URDF, TIP, contract)


@pytest.fixture
def pose():
    """A pose in the midst of the work space, fingers down."""
    return np.array([*joint_pose(np.array([0.33, 0.05, 0.2]))[:6], 0.01])


def wanted(part, axis, velocity, frame='base'):
    return Wanted(ZERO, frame=frame, **{part: velocity * np.eye(3)[axis]})


def drive(jog, wish, positions, steps):
    """Follow every target at once; give all poses."""
    poses = [positions]
    for _ in range(steps):
        poses.append(jog.step(wish, poses[-1], PERIOD))
    return np.array(poses)


def test_forward_kinematics_are_those_of_the_urdf(contract, kinematics):
    random = np.random.default_rng(0)
    for _ in range(20):
        positions = random.uniform(contract.safety.position_low, contract.safety.position_high)
        assert kinematics.pose(positions) == pytest.approx(forward(contract, positions), abs=1e-9)


@pytest.mark.parametrize(('part', 'axis', 'way'), AXES)
@pytest.mark.parametrize('frame', ['base', 'tip'])
def test_the_tip_goes_where_it_is_sent_and_nowhere_else(
    contract, kinematics, pose, part, axis, way, frame
):
    """5 cm, or 0.25 rad, in a second."""
    amount = way * (0.05 if part == 'linear' else 0.25)
    before = forward(contract, pose)
    poses = drive(Jog(contract, tip=kinematics), wanted(part, axis, amount, frame), pose, 10)
    after = forward(contract, poses[-1])
    along = (before[:3, :3] if frame == 'tip' else np.eye(3))[:, axis] * amount
    moved, turned = (along, np.zeros(3)) if part == 'linear' else (np.zeros(3), along)
    assert after[:3, 3] - before[:3, 3] == pytest.approx(moved, abs=2e-5)
    rotation = Rotation.from_matrix(after[:3, :3] @ before[:3, :3].T).as_rotvec()
    assert rotation == pytest.approx(turned, abs=1e-4)
    assert poses[:, 6] == pytest.approx(0.01)  # the gripper is not part of the arm


def test_a_joint_and_the_tip_move_together(contract, kinematics, pose):
    wish = Wanted(np.array([0, 0, 0, 0, 0, 0, 0.02]), linear=np.array([0.05, 0, 0]))
    poses = drive(Jog(contract, tip=kinematics), wish, pose, 5)
    assert poses[-1][6] == pytest.approx(0.02)
    moved = forward(contract, poses[-1])[:3, 3] - forward(contract, pose)[:3, 3]
    assert moved == pytest.approx([0.025, 0, 0], abs=1e-5)


@pytest.mark.parametrize('way', [1, -1])
def test_to_the_end_of_its_reach_it_slows_down_on_its_line_and_comes_back(
    contract, kinematics, pose, way
):
    """Outwards it ends next to a singularity, inwards at the limit of a joint."""
    before = forward(contract, pose)
    jog = Jog(contract, tip=kinematics)
    out = drive(jog, wanted('linear', 0, 0.1 * way), pose, 80)
    assert jog.share == 0.0
    slowing = np.linalg.norm(np.diff([forward(contract, q)[:3, 3] for q in out], axis=0), axis=1)
    assert ((slowing > 1e-5) & (slowing < 0.009)).any()  # neither at full speed nor standing
    assert out[-1] == pytest.approx(out[-2])
    back = drive(jog, wanted('linear', 0, -0.1 * way), out[-1], 30)
    steps = np.abs(np.diff(np.concatenate([out, back]), axis=0))
    assert (steps <= np.array(contract.safety.max_step) + 1e-9).all()
    assert (out >= np.array(contract.safety.position_low) - 1e-9).all()
    assert (out <= np.array(contract.safety.position_high) + 1e-9).all()
    places = np.array([forward(contract, positions)[:3, 3] for positions in (*out, *back)])
    assert places[:, 1:] == pytest.approx(np.tile(before[1:3, 3], (len(places), 1)), abs=3e-4)
    turned = forward(contract, out[-1])[:3, :3] @ before[:3, :3].T
    assert Rotation.from_matrix(turned).magnitude() < 2e-3
    speed = way * np.diff(places[: len(out), 0]) / PERIOD
    assert (speed > -1e-6).all()
    assert speed.max() < 0.1001
    assert abs(places[-1, 0] - places[len(out), 0]) > 0.1


@pytest.mark.parametrize('side', [1, -1])
def test_outside_of_its_limits_it_may_only_come_back_and_need_not(
    contract, kinematics, pose, side
):
    """Along the circle around the base, which the first joint alone makes."""
    safety = contract.safety
    pose[0] = (safety.position_high if side > 0 else safety.position_low)[0] + 0.2 * side
    x, y = forward(contract, pose)[:2, 3]
    around = np.array([-y, x, 0]) / np.hypot(x, y) * 0.05
    out, up, back = (
        drive(Jog(contract, tip=kinematics), Wanted(ZERO, linear=linear), pose, 3)
        for linear in (around * side, np.array([0, 0, 0.05]), -around * side)
    )
    assert (side * out[:, 0] <= side * pose[0] + 1e-9).all()
    assert up[:, 0] == pytest.approx(pose[0])
    assert forward(contract, up[-1])[2, 3] > forward(contract, pose)[2, 3] + 0.01
    assert side * back[-1][0] < side * pose[0] - 0.02
    assert (np.abs(np.diff(back, axis=0)) <= np.array(safety.max_step) + 1e-9).all()


@pytest.mark.parametrize(
    ('tip', 'commanded', 'problem'),
    [
        ('hand', None, "tip is 'hand', expected one of its links: base_link, "),
        ('base_link', None, "no commanded joint moves link 'base_link'"),
        ('hand_link', ('shoulder_pan', 'elbow', 'wrist_1'), "joint 'shoulder_lift' .revolute."),
        ('right_finger_link', None, "joint 'gripper_mirror' .prismatic."),
    ],
)
def test_a_urdf_that_does_not_fit_says_why(contract, tip, commanded, problem):
    with pytest.raises(TeleoperationError, match=problem):
        Chain.load(URDF, tip, commanded or contract.action.joints)


def test_what_carries_the_arm_may_move_by_itself():
    chain = Chain.load(URDF, TIP, ('elbow', 'wrist_1', 'wrist_2', 'wrist_3'))
    assert chain.base == 'upper_arm_link'
    assert chain.joints == ('elbow', 'wrist_1', 'wrist_2', 'wrist_3')


@pytest.mark.parametrize(
    'text', ['<robot', '<sdf/>', '<robot xmlns:x="http://xacro"><x:a/></robot>']
)
def test_what_is_no_plain_urdf_is_refused(contract, tmp_path, text):
    path = tmp_path / 'arm.urdf'
    path.write_text(text)
    with pytest.raises(TeleoperationError, match=r'arm\.urdf: (cannot be read|no plain URDF)'):
        Kinematics(path, TIP, contract)
    with pytest.raises(TeleoperationError, match='cannot be read'):
        Kinematics(tmp_path / 'absent.urdf', TIP, contract)


def test_meshes_that_are_elsewhere_and_a_turned_base_are_no_hindrance(contract, tmp_path, pose):
    """As real robots' files have them: `package://` meshes, a fixed joint that turns the base."""
    text = URDF.read_text().replace(
        '<cylinder radius="0.06" length="0.08"/>', '<mesh filename="package://arm/base.dae"/>'
    )
    turned = (
        '<link name="world"/><joint name="stand" type="fixed"><parent link="world"/>'
        '<child link="base_link"/><origin xyz="0 0 1" rpy="0 0 3.14159265358979"/></joint></robot>'
    )
    path = tmp_path / 'arm.urdf'
    path.write_text(text.replace('</robot>', turned))
    kinematics = Kinematics(path, TIP, contract)
    assert kinematics.chain.base == 'world'
    x, y, z = forward(contract, pose)[:3, 3]
    assert kinematics.pose(pose)[:3, 3] == pytest.approx([-x, -y, z + 1], abs=1e-9)
    poses = drive(Jog(contract, tip=kinematics), wanted('linear', 0, -0.05), pose, 10)
    assert forward(contract, poses[-1])[0, 3] == pytest.approx(x + 0.05, abs=1e-5)


def test_an_arm_of_five_joints_goes_straight_and_turns_as_it_must(contract, tmp_path, pose):
    """Without wrist_2 the tip cannot keep its orientation on a line to the side."""
    text = URDF.read_text().replace(
        '<joint name="wrist_2" type="revolute">', '<joint name="wrist_2" type="fixed">'
    )
    path = tmp_path / 'arm.urdf'
    path.write_text(text)
    kinematics = Kinematics(path, TIP, contract)
    assert len(kinematics.chain.joints) == 5
    jog = Jog(contract, tip=kinematics)
    for axis in range(3):
        jog.release()
        before = kinematics.pose(pose)[:3, 3]
        poses = drive(jog, wanted('linear', axis, 0.05), pose, 10)
        moved = kinematics.pose(poses[-1])[:3, 3] - before
        assert moved == pytest.approx(0.05 * np.eye(3)[axis], abs=1e-4)
