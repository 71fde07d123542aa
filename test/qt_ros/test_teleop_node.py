# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The teleop node as a process of its own, with devices and an arm made up here, over DDS."""

import dataclasses
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import DescribeParameters, ListParameters, SetParameters
from sensor_msgs.msg import JointState, Joy
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from qt_core.contract import RobotContract
from qt_core.share import share_path
from qt_ros.bags import EpisodeBag
from qt_ros.conversions import command_targets, is_hold, joint_positions
from qt_ros.diagnostics import OK, WARN
from qt_ros.nodes.node_support import COMMAND, LATCHED, SENSOR
from qt_ros.teleoperation.kinematics import Kinematics

URDF = share_path('config/robots/tabletop_arm.urdf')
CONTRACT = RobotContract.load(share_path('config/contracts/tabletop.yaml'))
PATIENCE = 3.0  # s
STEP = np.array(CONTRACT.safety.max_step)
JOINTS = list(CONTRACT.action.joints)
POSE = np.array([0.1, 0.2, 1.0, 0.4, 0.1, 0.2, 0.01])
INTERVAL = 0.03  # s from one message of arm and devices to the next
# Of an Xbox pad.
DEADMAN, ESTOP, POLICY = 4, 1, 7


class Rig:
    """An arm and a person's devices in this process, teleop and perhaps a guard in others."""

    def __init__(self, peer, node_process, contract, *, guard=False, **parameters):
        self.peer = peer
        create = peer.node.create_publisher
        self.states = create(JointState, 'joint_states', SENSOR)
        self.pads = create(Joy, 'joy', SENSOR)
        self.leaders = create(JointState, 'leader/joint_states', SENSOR)
        self.pose, self.measured = POSE, True
        self.axes, self.pressed, self.silent = [0.0] * 8, (), False
        self.leader = None
        self.commands, self.arrived = [], []
        peer.node.create_subscription(JointTrajectory, 'teleop/command', self.on_command, COMMAND)
        peer.node.create_subscription(JointTrajectory, 'joint_trajectory', self.on_arrived, 10)
        self.said = peer.listen(String, 'guard/source', LATCHED)
        self.reports = peer.listen(DiagnosticArray, '/diagnostics')
        if guard:
            node_process('guard_node', contract=contract, source='policy')
        words = {'contract': contract, 'input': 'joy', 'command_timeout': PATIENCE, **parameters}
        self.teleop = node_process('teleop_node', **words)
        peer.node.create_timer(INTERVAL, self.publish)
        peer.spin_until(
            lambda: (
                peer.node.count_publishers('teleop/command')
                and self.states.get_subscription_count() >= 1 + guard
                and (self.said or not guard)
                and self.until_ready()
            ),
            'teleop',
        )

    def until_ready(self):
        return self.pads.get_subscription_count() or self.leaders.get_subscription_count()

    def publish(self):
        """Do what arm and devices do again and again."""
        if self.measured:
            state = JointState(name=JOINTS, position=self.pose.tolist())
            state.header.stamp = self.peer.node.get_clock().now().to_msg()
            self.states.publish(state)
        if not self.silent:
            buttons = [int(button in self.pressed) for button in range(11)]
            self.pads.publish(Joy(axes=self.axes, buttons=buttons))
            if self.leader is not None:
                self.leaders.publish(JointState(name=JOINTS, position=self.leader.tolist()))

    def on_command(self, message):
        hold = is_hold(message, CONTRACT.action)
        self.commands.append(None if hold else command_targets(message, CONTRACT.action))

    def commanded(self, targets):
        """Whether the last command is to go there."""
        return self.commands[-1] is not None and np.allclose(self.commands[-1], targets)

    def on_arrived(self, message):
        self.arrived.append(command_targets(message, CONTRACT.action))

    def until_says(self, level, message):
        """Wait until diagnostics of teleop say this."""
        self.reports.clear()

        def said():
            statuses = [s for report in self.reports for s in report.status]
            return any(
                s.name == 'teleop: driving' and s.level == bytes([level]) and message in s.message
                for s in statuses
            )

        self.peer.spin_until(said, message)

    def hold_stick(self):
        """Hold the deadman and push the left stick to the left, which moves the first joint."""
        self.axes = [1.0] + [0.0] * 7
        self.pressed = (DEADMAN,)

    def drive(self):
        """Let go, hold, and wait until commands come."""
        self.pressed = ()
        self.until_says(WARN if not self.said else OK, '')
        count = len(self.commands)
        self.hold_stick()
        self.peer.spin_until(lambda: len(self.commands) >= count + 3, 'commands')

    def nothing_is_commanded(self):
        """See that teleop lives on, through its next two reports, and commands nothing."""
        count = len(self.commands)
        for _ in range(2):
            self.until_says(WARN, '') if not self.said else self.until_reported()
        assert len(self.commands) == count

    def until_reported(self):
        self.reports.clear()
        self.peer.spin_until(
            lambda: any(s.name == 'teleop: driving' for r in self.reports for s in r.status),
            'a report',
        )


@pytest.fixture
def patient(tmp_path):
    """A contract whose joint states may be late, as those of a busy machine are."""
    state = dataclasses.replace(CONTRACT.state, max_age=PATIENCE)
    path = tmp_path / 'contract.yaml'
    path.write_text(dataclasses.replace(CONTRACT, state=state).to_text())
    return path


@pytest.fixture
def rig(peer, node_process, patient):
    """Give what starts a rig."""
    return lambda **parameters: Rig(peer, node_process, patient, **parameters)


def test_it_drives_while_the_deadman_is_held_and_ends_with_a_hold(rig, peer):
    arm = rig()
    arm.axes = [1.0] + [0.0] * 7
    arm.nothing_is_commanded()  # the stick alone does nothing
    arm.hold_stick()
    peer.spin_until(lambda: len(arm.commands) >= 5, 'commands')
    arm.pressed = ()
    peer.spin_until(lambda: arm.commands[-1] is None, 'the hold')
    moved = np.array(arm.commands[:-1])
    # From the measured pose on, by 0.4 of what the contract allows, and no other joint.
    assert 0 < moved[0, 0] - POSE[0] <= 0.4 * STEP[0] + 1e-9
    assert (np.diff(moved[:, 0]) >= -1e-9).all()
    assert (np.diff(moved[:, 0]) <= 0.8 * STEP[0] + 1e-9).all()
    assert (
        moved[:, 0].max() <= POSE[0] + 2 * STEP[0] + 1e-9
    )  # no further ahead of an arm that stands
    assert moved[:, 1:] == pytest.approx(np.tile(POSE[1:], (len(moved), 1)))
    arm.nothing_is_commanded()


def test_what_falls_silent_stops_the_arm_until_the_deadman_is_pressed_anew(rig, peer):
    arm = rig(command_timeout=1.5)
    arm.drive()
    arm.silent = True
    peer.spin_until(lambda: arm.commands[-1] is None, 'the hold')
    arm.until_says(WARN, 'the gamepad is silent for')
    arm.silent = False  # with the deadman held
    arm.until_says(WARN, 'there is no guard')
    arm.nothing_is_commanded()
    arm.drive()

    # Where nobody knows the pose the guard does what can be done.
    arm.measured = False
    arm.until_says(WARN, 'joint state ')
    count = len(arm.commands)
    assert arm.commands[-1] is None
    assert arm.commands[-2][0] > POSE[0]
    arm.measured = True
    arm.until_says(WARN, 'there is no guard')
    arm.nothing_is_commanded()
    assert len(arm.commands) == count
    arm.drive()


def test_the_leader_arm_is_followed_from_engage_to_release(rig, peer):
    arm = rig(input='leader', command_timeout=1.5)
    success, message = peer.call('teleop/engage')
    assert not success
    assert message in ('no joint state of the leader yet', 'no joint states')
    arm.leader = np.zeros(7)
    arm.until_says(WARN, 'there is no guard')
    arm.nothing_is_commanded()
    assert peer.call('teleop/engage') == (True, '')
    peer.spin_until(lambda: arm.commands, 'commands')
    assert arm.commands[0] == pytest.approx(POSE)  # nothing jumps
    moved = np.array([0.05, -0.05, 0.05, 0, 0, 0, 0.002])
    arm.leader = moved
    peer.spin_until(lambda: arm.commanded(POSE + moved), 'the displacement')
    assert peer.call('teleop/release') == (True, '')
    peer.spin_until(lambda: arm.commands[-1] is None, 'the hold')
    arm.nothing_is_commanded()

    count = len(arm.commands)
    assert peer.call('teleop/engage') == (True, '')
    peer.spin_until(lambda: len(arm.commands) > count, 'commands')
    arm.leader = 2 * moved
    peer.spin_until(lambda: arm.commanded(POSE + moved), 'the displacement')
    arm.silent = True
    peer.spin_until(lambda: arm.commands[-1] is None, 'the hold')
    arm.silent = False
    arm.until_says(WARN, 'there is no guard')
    arm.nothing_is_commanded()


def test_a_leader_may_have_the_deadman_of_a_gamepad(rig, peer):
    arm = rig(input='leader', leader_deadman='joy', leader_mode='absolute')
    arm.leader = POSE + 0.3 * STEP
    success, message = peer.call('teleop/engage')
    assert not success
    assert 'button' in message
    arm.nothing_is_commanded()
    arm.pressed = (DEADMAN,)
    peer.spin_until(lambda: arm.commands and arm.commanded(arm.leader), 'the leader')
    arm.pressed = ()
    peer.spin_until(lambda: arm.commands[-1] is None, 'the hold')
    arm.nothing_is_commanded()


def test_with_the_guard_a_person_takes_over_and_gives_back_and_stops(rig, peer):
    arm = rig(guard=True)
    source = lambda: arm.said[-1].data  # noqa: E731
    assert source() == 'policy'
    arm.drive()
    peer.spin_until(lambda: source() == 'teleop', 'taking over')
    peer.spin_until(lambda: arm.arrived and arm.arrived[-1][0] > POSE[0], 'commands of the guard')

    # Handed over with the deadman held: the arm stops, and nobody snatches it back.
    arm.pressed = (DEADMAN, POLICY)
    peer.spin_until(lambda: source() == 'policy', 'handing over')
    assert arm.commands[-1] is None
    arm.nothing_is_commanded()
    assert source() == 'policy'
    arm.drive()
    peer.spin_until(lambda: source() == 'teleop', 'taking over')

    # So with a hand-over that somebody else decides; a command on its way may undo it once.
    while source() != 'hold':
        assert peer.call('guard/hold')[0]
        arm.until_reported()
    arm.nothing_is_commanded()
    assert source() == 'hold'
    arm.pressed = ()
    arm.drive()
    peer.spin_until(lambda: source() == 'teleop', 'taking over')

    arm.pressed = (ESTOP,)  # deadman or not
    peer.spin_until(lambda: source() == 'estop', 'the emergency stop')
    arm.hold_stick()
    arm.until_says(WARN, 'emergency stop')
    arm.nothing_is_commanded()
    assert peer.call('guard/estop_reset')[0]
    peer.spin_until(lambda: source() == 'hold', 'the reset')
    arm.nothing_is_commanded()  # still held, from before
    arm.drive()


def test_parameters_are_described_and_some_may_be_set_while_it_runs(rig, peer):
    arm = rig()
    listed = peer.send(ListParameters, 'teleop/list_parameters', ListParameters.Request())
    names = [name for name in listed.result.names if name not in ('use_sim_time',)]
    names = [
        name for name in names if '.' not in name and name != 'start_type_description_service'
    ]
    request = DescribeParameters.Request(names=names)
    described = peer.send(DescribeParameters, 'teleop/describe_parameters', request).descriptors
    assert len(described) > 30
    assert all(descriptor.description for descriptor in described)
    dynamic = {d.name for d in described if not d.read_only}
    assert dynamic == {
        'joint_speed',
        'linear_speed',
        'angular_speed',
        'lead',
        'hold',
        'command_timeout',
    }

    def set_speed(value):
        value = ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=value)
        request = SetParameters.Request(parameters=[Parameter(name='joint_speed', value=value)])
        return peer.send(SetParameters, 'teleop/set_parameters', request).results[0].successful

    assert not set_speed(1.5)
    assert set_speed(0.01)
    arm.commands.clear()
    arm.drive()
    steps = np.diff(np.array(arm.commands)[:, 0])
    assert (steps <= 0.02 * STEP[0] + 1e-9).all()


@pytest.mark.parametrize(
    ('parameters', 'problem'),
    [
        ({'contract': "''"}, 'contract is not set'),
        ({'input': 'mouse'}, "input is 'mouse', expected keyboard or"),
        ({'urdf': URDF}, "tip is '', expected one of its links"),
        ({'urdf': 'absent.urdf'}, 'absent.urdf: cannot be read'),
        ({'gripper': 'hand'}, "gripper is 'hand', expected one of"),
        ({'deadman_button': 'x'}, "deadman_button is 'x', expected"),
        ({'input': 'leader', 'leader_deadman': 'x'}, 'leader_deadman'),
        ({'input': 'leader', 'leader_mode': 'x'}, 'leader_mode is'),
    ],
)
def test_what_cannot_work_is_one_line(isolated, patient, parameters, problem):
    words = [sys.executable, '-m', 'qt_ros.nodes.teleop_node', '--ros-args']
    for name, value in {'contract': patient, 'input': 'joy', **parameters}.items():
        words += ['-p', f'{name}:={value}']
    result = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert problem in result.stderr
    assert result.stderr.count('\n') == 1


def test_a_demonstration_of_the_simulated_arm_by_the_gamepad_alone(
    node_process, peer, patient, tmp_path
):
    """Joystick to teleop to guard to simulator in real time, and all of it into a bag."""
    kinematics = Kinematics(URDF, 'hand_link', CONTRACT)
    simulated = {'contract': patient}
    node_process('simulator_node', **simulated)
    node_process('guard_node', **simulated, source='hold', use_sim_time=True)
    node_process(
        'teleop_node',
        **simulated,
        input='joy',
        urdf=URDF,
        tip='hand_link',
        command_timeout=PATIENCE,
        use_sim_time=True,
    )
    node_process(
        'recorder_node',
        **simulated,
        output=tmp_path / 'bags',
        start_gate='alive',
        use_sim_time=True,
    )
    sentence = peer.node.create_publisher(String, 'instruction', LATCHED)
    sentence.publish(String(data='move the arm aside'))
    recorder = peer.listen(String, 'recorder/status', LATCHED)
    states = peer.listen(JointState, 'joint_states', SENSOR)
    said = peer.listen(String, 'guard/source', LATCHED)
    pads = peer.node.create_publisher(Joy, 'joy', SENSOR)
    pad = Joy(axes=[0.0] * 8, buttons=[0] * 11)
    peer.node.create_timer(INTERVAL, lambda: pads.publish(pad))
    peer.spin_until(
        lambda: states and said and recorder and pads.get_subscription_count(), 'the graph'
    )

    def tip():
        positions = joint_positions(states[-1])
        return kinematics.pose(np.array([positions[joint] for joint in JOINTS]))

    def status():
        return json.loads(recorder[-1].data)

    def press_until(axis, value, done, what):
        """Press and let go of the directional pad until something comes of it."""
        due = 0.0

        def pressed():
            nonlocal due
            if time.monotonic() > due:
                pad.axes[axis] = 0.0 if pad.axes[axis] else value
                due = time.monotonic() + 0.3
            return done()

        peer.spin_until(pressed, what)
        pad.axes[axis] = 0.0

    press_until(7, 1.0, lambda: status()['state'] == 'recording', 'recording')
    before = tip()
    pad.buttons[DEADMAN] = 1
    pad.axes[0] = 1.0 if before[1, 3] < 0 else -1.0  # across the middle: +y or -y
    way = pad.axes[0]
    peer.spin_until(lambda: abs(tip()[1, 3] - before[1, 3]) > 0.08, 'the way')
    moved = tip()[:3, 3] - before[:3, 3]
    assert moved[1] * way > 0.08
    assert abs(moved[[0, 2]]).max() < 0.015
    turned = np.arccos(np.clip((np.trace(tip()[:3, :3] @ before[:3, :3].T) - 1) / 2, -1, 1))
    assert turned < 0.1
    assert said[-1].data == 'teleop'
    pad.buttons[DEADMAN] = 0
    peer.spin_until(lambda: max(abs(v) for v in states[-1].velocity) < 0.01, 'standing')
    press_until(6, -1.0, lambda: status()['state'] != 'recording', 'success')
    (bag,) = (tmp_path / 'bags').glob('episode_??????')
    record = EpisodeBag(bag).record
    assert (record.outcome, record.instruction) == ('success', 'move the arm aside')
    assert {count.name: count.messages for count in record.counts}['joint_trajectory'] > 3
