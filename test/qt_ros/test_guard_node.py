# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The guard as a process of its own, between two sources and a robot, over DDS."""

import dataclasses
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.srv import DescribeParameters
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from qt_core.contract import RobotContract
from qt_core.share import share_path
from qt_ros.conversions import command_targets, fill_command, nanoseconds, set_stamp
from qt_ros.diagnostics import ERROR, OK, WARN
from qt_ros.graphs import Process
from qt_ros.nodes.node_support import COMMAND, LATCHED, SENSOR
from qt_ros.up import running

CONTRACT_FILE = share_path('config/contracts/tabletop.yaml')
CONTRACT = RobotContract.load(CONTRACT_FILE)
STEP = np.array(CONTRACT.safety.max_step)
SIZE = len(STEP)
LOW = np.array(CONTRACT.safety.position_low)
HIGH = np.array(CONTRACT.safety.position_high)
MIDDLE = (LOW + HIGH) / 2
NEAR = MIDDLE + 0.5 * STEP  # what the policy wants, within a step of where the arm is
OTHER = MIDDLE - 0.5 * STEP  # what a person wants
PERIODS = 10  # of the control rate that a busy machine may take longer
# A source of commands that never stops by itself, as a process to be killed.
SPEAKER = """
    import sys, time
    import rclpy
    from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

    rclpy.init()
    node = rclpy.create_node('speaker')
    publisher = node.create_publisher(JointTrajectory, sys.argv[1], 1)
    point = JointTrajectoryPoint(positions=[float(p) for p in sys.argv[3].split(',')])
    message = JointTrajectory(joint_names=sys.argv[2].split(','), points=[point])
    while True:
        publisher.publish(message)
        time.sleep(0.02)
"""


class Rig:
    """A robot, a policy and a person in this process, and the guard in another."""

    def __init__(self, peer, node_process, **parameters):
        self.peer, self.contract = peer, parameters.pop('of', CONTRACT)
        create = peer.node.create_publisher
        kind = Float64MultiArray if self.contract.action.type == 'multi_array' else JointTrajectory
        self.kind = kind
        self.states = create(JointState, 'joint_states', SENSOR)
        self.sources = {s: create(kind, f'{s}/command', COMMAND) for s in ('policy', 'teleop')}
        self.pose = MIDDLE
        self.measured = True  # whether joint states are published
        self.wanted = {}  # what each source commands
        self.stamp = 5  # of what the sources command, ns; a hold has none
        self.commands = []  # (monotonic s, targets, stamp)
        self.said = peer.listen(String, 'guard/source', LATCHED)
        self.reports = peer.listen(DiagnosticArray, '/diagnostics')
        peer.node.create_subscription(kind, self.contract.action.topic, self.on_command, 10)
        self.guard = node_process('guard_node', **{'contract': CONTRACT_FILE, **parameters})
        self.published = {}
        peer.node.create_timer(self.contract.period / 2, self.publish)
        peer.spin_until(
            lambda: (
                self.said
                and self.states.get_subscription_count()
                and all(p.get_subscription_count() for p in self.sources.values())
                and peer.node.count_publishers(self.contract.action.topic)
            ),
            'the guard',
        )

    def publish(self):
        """Do what a robot and its drivers do again and again."""
        if self.measured:
            state = JointState(name=list(CONTRACT.state.joints), position=self.pose.tolist())
            state.header.stamp = self.peer.node.get_clock().now().to_msg()
            self.states.publish(state)
        for source, targets in self.wanted.items():
            self.published[source] = time.monotonic()
            self.sources[source].publish(self.command(targets))

    def command(self, targets):
        action, point = self.contract.action, JointTrajectoryPoint()
        return fill_command(self.kind(), point, action, targets, 0.1, self.stamp)

    def on_command(self, message):
        stamp = nanoseconds(message.header.stamp) if hasattr(message, 'header') else 0
        targets = command_targets(message, self.contract.action)
        self.commands.append((time.monotonic(), targets, stamp))

    @property
    def source(self):
        return self.said[-1].data

    def until_commanded(self, targets, what):
        """Wait until the newest command is this."""
        self.peer.spin_until(
            lambda: self.commands and np.allclose(self.commands[-1][1], targets), what
        )

    def until_says(self, level, message):
        """Wait until diagnostics say this; give the values."""
        self.reports.clear()
        self.peer.spin_until(
            lambda: self.reports and self.reports[-1].status[0].message.startswith(message),
            message,
        )
        status = self.reports[-1].status[0]
        assert status.level == bytes([level])
        assert (status.name, status.hardware_id) == ('guard: guard', CONTRACT.name)
        return {item.key: item.value for item in status.values}

    def until_held(self, pose):
        """Wait for a hold, which has no stamp, and see that it is one; give its time."""
        self.until_commanded(pose, 'a hold')
        at, _, stamp = self.commands[-1]
        assert stamp == 0
        return at

    def nothing_is_commanded(self):
        """See that the guard lives on, through its next two reports, and commands nothing."""
        count, seen = len(self.commands), len(self.reports)
        self.peer.spin_until(lambda: len(self.reports) >= seen + 2, 'reports')
        assert len(self.commands) == count


@pytest.fixture
def rig(peer, node_process):
    """Give what starts a rig."""
    return lambda **parameters: Rig(peer, node_process, **parameters)


def test_what_the_policy_commands_arrives_within_limits_and_with_its_stamp(rig, peer):
    arm = rig()
    assert arm.source == 'policy'
    arm.until_says(WARN, 'holding: no command from policy yet')
    arm.wanted['policy'] = NEAR
    arm.until_commanded(NEAR, 'the command')
    assert arm.commands[-1][2] == arm.stamp
    first = len(arm.commands)
    arm.wanted['policy'] = LOW
    arm.until_commanded(LOW, 'the lower limits')
    way = np.array([targets for _, targets, _ in arm.commands[first - 1 :]])
    assert (np.abs(np.diff(way, axis=0)) <= STEP + 1e-9).all()
    arm.wanted['policy'] = LOW - STEP
    values = arm.until_says(OK, 'policy drives')
    assert int(values['interventions: step']) > 0
    values = arm.until_says(OK, 'policy drives')
    assert int(values['interventions: position']) > 0
    assert float(values['commands per second']) > 0
    assert values['source'] == 'policy'
    assert (values['contract'], values['last hold']) == (CONTRACT.name, '')
    assert np.array_equal(arm.commands[-1][1], LOW)

    # What makes no sense is dropped, and is no sign of life.
    arm.wanted['policy'] = np.full(SIZE, np.nan)
    arm.until_held(MIDDLE)
    values = arm.until_says(WARN, 'holding: no command from policy for')
    assert int(values['malformed commands']) > 0
    assert values['last malformed command'].startswith('command is not finite')

    names = ['contract', 'checkpoint', 'source']
    asked = DescribeParameters.Request(names=names)
    found = peer.send(DescribeParameters, 'guard/describe_parameters', asked).descriptors
    assert all(d.description and d.read_only for d in found)
    assert [d.name for d in found] == names


def test_a_person_takes_over_and_hands_back(rig, peer):
    arm = rig()
    arm.wanted['policy'] = NEAR
    arm.until_commanded(NEAR, 'the policy')
    arm.wanted['teleop'] = OTHER
    arm.until_commanded(OTHER, 'the person')
    peer.spin_until(lambda: arm.source == 'teleop', 'the source')
    taken = len(arm.commands)
    values = arm.until_says(OK, 'teleop drives')
    assert int(values['refused commands']) > 0
    assert not any(np.allclose(targets, NEAR) for _, targets, _ in arm.commands[taken:])

    # The person lets go: the arm holds, and the policy waits until it is let.
    del arm.wanted['teleop']
    arm.until_held(MIDDLE)
    arm.until_says(WARN, 'holding: no command from teleop for')
    arm.nothing_is_commanded()
    assert arm.source == 'teleop'
    assert peer.call('guard/policy') == (True, {'source': 'policy'})
    arm.until_commanded(NEAR, 'the policy again')
    assert peer.call('guard/hold') == (True, {'source': 'hold'})
    arm.until_held(MIDDLE)
    arm.nothing_is_commanded()
    arm.until_says(WARN, 'holding: call guard/policy or guard/teleop')
    peer.spin_until(lambda: len(arm.said) == 4, 'the sources')
    assert [message.data for message in arm.said] == ['policy', 'teleop', 'policy', 'hold']


def test_a_policy_that_falls_silent_makes_the_arm_hold_once(rig):
    arm = rig()
    arm.wanted['policy'] = NEAR
    arm.until_commanded(NEAR, 'the policy')
    del arm.wanted['policy']
    silent = arm.until_held(MIDDLE) - arm.published['policy']
    watchdog, period = CONTRACT.safety.watchdog, CONTRACT.period
    assert 0.9 * watchdog < silent < watchdog + (1 + PERIODS) * period
    values = arm.until_says(WARN, 'holding: no command from policy for')
    assert values['holds: watchdog'] == '1'
    assert values['last hold'].startswith('no command from policy for')
    arm.pose = MIDDLE - STEP  # an arm under load
    arm.nothing_is_commanded()
    assert arm.source == 'policy'
    arm.wanted['policy'] = MIDDLE - 1.2 * STEP
    arm.until_commanded(MIDDLE - 1.2 * STEP, 'the policy, which goes on')


def test_a_policy_that_is_killed_makes_the_arm_hold(rig, peer):
    arm = rig()
    words = [','.join(CONTRACT.action.joints), ','.join(map(str, NEAR.tolist()))]
    program = textwrap.dedent(SPEAKER)
    speaker = subprocess.Popen([sys.executable, '-c', program, 'policy/command', *words])
    try:
        arm.until_commanded(NEAR, 'the policy')
        peer.spin_until(lambda: len(arm.commands) >= 10, 'motion')
        speaker.kill()
        killed = time.monotonic()
        arm.until_held(MIDDLE)
    finally:
        speaker.kill()
        speaker.wait()
    limit = CONTRACT.safety.watchdog + (1 + PERIODS) * CONTRACT.period
    assert arm.commands[-1][0] - killed < limit
    arm.until_says(WARN, 'holding: no command from policy for')


def test_a_stop_latches_until_it_is_reset(rig, peer):
    arm = rig()
    arm.wanted['policy'] = NEAR
    arm.until_commanded(NEAR, 'the policy')
    assert peer.call('guard/estop') == (True, {'source': 'estop'})
    arm.until_held(MIDDLE)
    arm.wanted['teleop'] = OTHER
    arm.nothing_is_commanded()
    for service in ('policy', 'teleop', 'hold'):
        assert peer.call(f'guard/{service}') == (False, 'stopped: call guard/estop_reset')
    assert peer.call('guard/estop') == (True, {'source': 'estop'})
    values = arm.until_says(ERROR, 'stopped: call guard/estop_reset')
    assert values['source'] == 'estop'
    assert int(values['refused commands']) > 0
    arm.nothing_is_commanded()

    del arm.wanted['teleop']
    assert peer.call('guard/estop_reset') == (True, {'source': 'hold'})
    arm.nothing_is_commanded()
    assert peer.call('guard/policy')[0]
    arm.until_commanded(NEAR, 'the policy')
    later = peer.listen(String, 'guard/source', LATCHED)
    peer.spin_until(lambda: later, 'who drives, to somebody who comes later')
    assert later[-1].data == 'policy'


def test_joint_states_that_cease_make_the_arm_hold_its_last_command(rig, peer):
    arm = rig()
    arm.wanted['policy'] = NEAR
    arm.until_commanded(NEAR, 'the policy')
    arm.measured = False
    peer.spin_until(lambda: arm.commands[-1][2] == 0, 'a hold')
    assert np.array_equal(arm.commands[-1][1], NEAR)
    values = arm.until_says(ERROR, 'holding: joint states are ')
    assert values['holds: joint states'] == '1'
    assert float(values['age of joint states (s)']) > CONTRACT.state.max_age
    arm.nothing_is_commanded()
    count, arm.pose = len(arm.commands), MIDDLE + 2 * STEP
    arm.measured = True
    peer.spin_until(lambda: len(arm.commands) > count + 1, 'motion')
    (_, held, stamp), (_, ramp, _) = arm.commands[count : count + 2]
    assert (stamp, held.tolist()) == (0, arm.pose.tolist())
    assert np.allclose(ramp, np.minimum(MIDDLE + STEP, HIGH))


@pytest.mark.parametrize('stop', [signal.SIGINT, signal.SIGTERM])
def test_the_last_command_of_a_guard_that_is_ended_is_to_hold(rig, stop):
    arm = rig()
    arm.wanted['policy'] = NEAR
    arm.until_commanded(NEAR, 'the policy')
    arm.guard.send_signal(stop)
    arm.peer.spin_until(lambda: arm.guard.poll() is not None, 'the end')
    arm.until_held(MIDDLE)
    assert arm.guard.returncode == 0


def test_ages_are_of_the_nodes_clock(rig, peer):
    """A simulation that waits for the policy is no reason to hold; its time going on is."""
    clock = peer.node.create_publisher(Clock, '/clock', 1)
    arm = rig(use_sim_time=True)
    arm.measured = False  # those of `publish` are of another clock
    peer.spin_until(clock.get_subscription_count, 'the clock')

    def at(seconds):
        """Set clock and arm to a time, until the guard has both."""
        time_ = Clock()
        set_stamp(time_.clock, round(1e9 * seconds))
        state = JointState(name=list(CONTRACT.state.joints), position=arm.pose.tolist())
        state.header.stamp = time_.clock
        arm.states.publish(state)
        clock.publish(time_)

    count = 0
    while not count:
        at(10.0)
        arm.sources['policy'].publish(arm.command(NEAR))
        peer.spin_for(0.02)
        count = sum(stamp == arm.stamp for _, _, stamp in arm.commands)
    arm.nothing_is_commanded()  # for longer than the watchdog
    arm.until_says(OK, 'policy drives')
    at(11.0)
    arm.until_held(MIDDLE)
    arm.sources['policy'].publish(arm.command(NEAR))
    arm.until_commanded(NEAR, 'the policy again')
    at(5.0)  # set back, and then standing still
    arm.until_held(MIDDLE)


def test_commands_without_a_header(rig, tmp_path):
    action = dataclasses.replace(CONTRACT.action, type='multi_array', topic='controller/commands')
    contract = dataclasses.replace(CONTRACT, action=action)
    file = tmp_path / 'contract.yaml'
    file.write_text(contract.to_text())
    arm = rig(of=contract, contract=file)
    arm.wanted['policy'] = NEAR
    arm.until_commanded(NEAR, 'the policy')
    del arm.wanted['policy']
    arm.until_held(MIDDLE)


def test_in_a_namespace_with_a_checkpoints_contract(peer):
    policy = share_path('config/policies/reach')
    process = Process(
        executable='guard_node',
        name='guard',
        namespace='left',
        params_file=share_path('config/nodes.yaml'),
        parameters={'checkpoint': str(policy), 'source': 'hold'},
    )
    said = peer.listen(String, '/left/guard/source', LATCHED)
    reports = peer.listen(DiagnosticArray, '/diagnostics')
    with running((process,)):
        peer.spin_until(lambda: said and reports, 'the guard')
        assert said[-1].data == 'hold'
        assert reports[-1].status[0].name == 'left/guard: guard'
        assert reports[-1].status[0].message == 'holding: no joint states'
        for topic in ('policy/command', 'teleop/command', 'joint_states'):
            assert peer.node.count_subscribers(f'/left/{topic}') == 1
        assert peer.node.count_publishers('/left/joint_trajectory') == 1


@pytest.mark.parametrize(
    ('parameters', 'says'),
    [
        ({}, 'contract is not set: give guard a contract file or a checkpoint'),
        ({'contract': '/nowhere.yaml'}, '/nowhere.yaml: cannot be read'),
        ({'checkpoint': '/nowhere'}, '/nowhere: not a checkpoint'),
        (
            {'contract': CONTRACT_FILE, 'source': 'estop'},
            "source is 'estop', expected policy or teleop or hold",
        ),
    ],
)
def test_parameters_that_mean_nothing(node_process, parameters, says):
    guard = node_process('guard_node', **parameters)
    assert guard.wait(30) == 1
    line = guard.stderr.read()
    assert line.startswith(f'qt-ros: {says}')
    assert line.count('\n') == 1


def test_torch_is_not_loaded():
    program = "import sys, qt_ros.nodes.guard_node; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, '-c', program], check=True)
