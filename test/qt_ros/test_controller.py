# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Acting and holding, with a policy that does as told and a clock that is set by hand."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from qt_core.action_space import ActionSpace
from qt_core.configuration import ConfigurationError, require
from qt_core.policies import Choice, Decision
from qt_ros.controller import Controller
from qt_ros.diagnostics import ERROR, OK, WARN
from qt_ros.serialisation import TYPESTORE
from qt_ros.settings import Settings
from qt_ros.streams import STATE, observed_streams

MS = 1_000_000
TYPES = TYPESTORE.types
SENTENCE = 'touch the red block'
HOME = np.array([0.3] * 6 + [0.01])


class Puppet:
    """A policy that always moves by the same bins, and does what it is told to first."""

    def __init__(self, contract):
        self.contract = contract
        self.space = ActionSpace(contract)
        self.bins = np.full(self.space.dimensions, 12)
        self.calls = []
        self.first = lambda: None
        self.finished = False
        self.guides = True

    def check_choice(self, choice):
        require(choice.guidance == 1 or self.guides, 'guidance', choice.guidance, '1')

    def choose(self, choice):
        self.choice = choice

    def receive(self, reward):
        self.calls.append(('receive', reward))

    def warm_up(self):
        self.thread = threading.current_thread()

    def reset(self, instruction):
        self.calls.append(('reset', instruction))

    def follow(self, instruction):
        self.calls.append(('follow', instruction))

    def act(self, observation, steps=1):
        assert threading.current_thread() is self.thread  # CUDA graphs belong to a thread
        self.calls.append(('act', steps))
        self.first()
        action = self.space.decode(self.bins)
        if self.contract.action.terminate:
            action[-1] = float(self.finished)
        plan = np.stack([action] * steps)
        return Decision(bins=self.bins, action=action, plan=plan)


class Bench:
    """A controller, its messages, its clock and what it commanded."""

    def __init__(self, contract, **settings):
        self.contract, self.now = contract, 10**12
        self.commands, self.holds, self.decisions, self.warnings = [], [], [], []
        self.policy = Puppet(contract)
        self.controller = Controller(
            self.policy,
            Settings(**settings),
            now=lambda: self.now,
            command=lambda targets, stamp: self.commands.append((targets, stamp)),
            hold=self.on_hold,
            decided=self.decisions.append,
            warn=self.warnings.append,
        )
        *self.cameras, self.state = observed_streams(contract)
        self.pose, self.frame, self.names = HOME, 0, list(contract.state.joints)
        self.controller.open()
        self.controller.activate()

    def on_hold(self, positions):
        self.holds.append(len(self.commands))
        self.commands.append((positions, 0))

    def joints(self):
        kind = TYPES['sensor_msgs/msg/JointState']
        none = np.zeros(0)
        message = kind(self.header(), self.names, np.array(self.pose), none, none)
        self.controller.push(self.state, self.serialise(message))

    def image(self, still=False):
        self.frame += not still
        pixels = np.full(64 * 64 * 3, self.frame % 250, np.uint8)
        kind = TYPES['sensor_msgs/msg/Image']
        message = kind(self.header(), 64, 64, 'rgb8', 0, 192, pixels)
        self.controller.push(self.cameras[0], self.serialise(message))

    def header(self):
        stamp = TYPES['builtin_interfaces/msg/Time'](*divmod(self.now, 10**9))
        return TYPES['std_msgs/msg/Header'](stamp, 'frame')

    def serialise(self, message):
        return bytes(TYPESTORE.serialize_cdr(message, message.__msgtype__))

    def step(self, milliseconds=100, *, image=True, joints=True, acts=None, still=False):
        """Let time pass, deliver, and wait until it has decided whether to act."""
        self.now += milliseconds * MS
        count = len(self.decisions)
        if joints:
            self.joints()
        if image:
            self.image(still)
        self.settle(lambda: acts is None or len(self.decisions) == count + acts)
        self.controller.watch()

    def settle(self, done=lambda: True):
        deadline = time.monotonic() + 20
        while self.controller._busy or self.controller._due is not None or not done():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def acting(self, period=100):
        """Bring it to act, once per `period` milliseconds."""
        self.controller.instruct(SENTENCE)
        self.step(period, acts=1)
        self.step(period, acts=1)
        assert self.status.message == 'acting'
        return self

    @property
    def status(self):
        return self.controller.status()

    @property
    def last(self):
        return self.commands[-1][0]


@pytest.fixture
def bench(contract):
    benches = []

    def make(changes=None, **settings):
        benches.append(Bench(replace(contract, **(changes or {})), **settings))
        return benches[-1]

    yield make
    for made in benches:
        made.controller.close()


def test_it_acts_on_the_images_at_the_contract_rate(bench):
    acting = bench().acting()
    assert acting.policy.calls[0] == ('reset', SENTENCE)
    expected = HOME + acting.policy.space.decode(acting.policy.bins)
    assert acting.last == pytest.approx(expected)
    for _ in range(2):
        acting.step(33, acts=0)
        acting.step(33, acts=0)
        acting.step(34, acts=1)
    assert acting.policy.calls.count(('reset', SENTENCE)) == 1


def test_without_a_sentence_or_a_stream_nothing_is_commanded(bench):
    idle = bench()
    idle.step(acts=0)
    assert (idle.status.level, idle.status.message) == (WARN, 'no instruction')
    idle.controller.instruct(SENTENCE)
    idle.step(700, image=False, acts=0)
    assert (idle.status.level, idle.status.message) == (ERROR, "'front' is 0.70 s old")
    assert idle.commands == []
    assert idle.warnings == ['not acting: no instruction']  # said once


@pytest.mark.parametrize('lost', ['image', 'joints'])
def test_a_lost_stream_holds_once_and_recovers(bench, lost):
    acting = bench().acting()
    count, before = len(acting.commands), acting.last
    acting.pose = HOME + 0.02
    for _ in range(9):
        acting.step(100, **{lost: False})
    held = acting.commands[count:]
    stream = 'front' if lost == 'image' else STATE
    assert acting.status.level == ERROR
    assert acting.status.message.startswith(f"'{stream}' is 0.")
    # While joint states still came, what was measured; else where it was going anyway.
    assert held[-1][0] == pytest.approx(acting.pose if lost == 'image' else before, abs=0.2)
    if lost == 'joints':
        assert np.array_equal(held[-1][0], acting.controller._last)
    quiet = len(acting.commands)
    acting.step(100, **{lost: False})
    assert len(acting.commands) == quiet
    acting.pose = HOME + 0.04
    if lost == 'joints':
        acting.step(100, image=False)
        assert acting.last == pytest.approx(acting.pose)  # a fresh pose is held when there is one
    acting.step(100, acts=1)
    assert acting.policy.calls[-2] == ('reset', SENTENCE)
    assert acting.status.message == 'acting'
    limit = np.array(acting.contract.safety.max_step)
    assert (np.abs(acting.last - acting.pose) <= limit + 1e-9).all()


def test_the_last_pose_is_not_held_when_it_is_old(bench):
    acting = bench().acting()
    acting.pose = HOME + 0.5  # it went on, unseen
    before = acting.last
    acting.now += 600 * MS
    acting.controller.watch()
    assert np.array_equal(acting.last, before)


def test_a_frozen_camera_holds(bench):
    acting = bench(frozen_after=0.35).acting()
    for _ in range(3):
        acting.step(100, still=True, acts=1)
    acting.step(100, still=True, acts=0)
    assert acting.status.message == "'front' is frozen: the same image for 0.40 s"
    assert acting.last == pytest.approx(HOME)
    acting.step(100, acts=1)
    assert acting.status.level == OK


def test_frozen_after_zero_never_minds(bench):
    acting = bench(frozen_after=0.0).acting()
    for _ in range(20):
        acting.step(100, still=True, acts=1)


def test_an_error_in_inference_holds_and_is_told(bench):
    acting = bench().acting()

    def fail():
        raise FloatingPointError('the network gave values that are not finite')

    acting.policy.first = fail
    acting.step(100, acts=0)
    assert acting.last == pytest.approx(HOME)
    assert acting.status.level == ERROR
    assert acting.status.message == (
        'inference failed: the network gave values that are not finite'
    )
    assert 'Traceback' in acting.warnings[-1]
    acting.policy.first = lambda: None
    acting.step(100, acts=1)
    assert acting.policy.calls[-2] == ('reset', SENTENCE)


def test_inference_that_hangs_is_held_and_its_late_answer_dropped(bench):
    acting = bench().acting()
    going, release = threading.Event(), threading.Event()

    def hang():
        going.set()
        release.wait(20)

    acting.policy.first = hang
    acting.now += 100 * MS
    acting.joints()
    acting.image()
    assert going.wait(20)
    count = len(acting.commands)
    for _ in range(6):
        acting.now += 100 * MS
        acting.joints()
        acting.image()
        acting.controller.watch()
    assert acting.status.message.startswith('no action for 0.')
    assert acting.last == pytest.approx(HOME)
    assert len(acting.commands) == count + 1
    assert int(acting.status.values['overruns']) >= 4
    acting.policy.first = lambda: None
    acting.now += 60 * MS
    acting.joints()
    release.set()
    acting.settle()
    assert len(acting.commands) == count + 1
    assert acting.status.message == 'inference took 0.66 s'
    acting.step(100, acts=1)


def test_slow_inference_leaves_out_whole_steps_and_says_so(bench):
    acting = bench().acting()

    def slow():
        acting.now += 120 * MS  # as long as the camera's next image takes to come, and more
        acting.joints()
        acting.image()
        acting.now += 60 * MS

    acting.policy.first = slow
    acting.step(100, acts=1)
    for _ in range(19):
        acting.step(20, acts=1)
    status = acting.status
    assert status.level == WARN
    assert status.message.startswith('inference is slow: ')
    assert int(status.values['overruns']) == 20


def test_it_stops_and_goes_on_when_told(bench):
    acting = bench().acting()
    acting.controller.stop()
    assert acting.last == pytest.approx(HOME)
    count = len(acting.commands)
    acting.step(100, acts=0)
    assert (acting.status.level, acting.status.message) == (WARN, 'stopped: call ~/start')
    assert acting.controller.start() == ''
    acting.step(100, acts=1)
    assert len(acting.commands) == count + 1


def test_an_e_stop_latches_and_its_reset_moves_nothing(bench):
    acting = bench().acting()
    acting.controller.estop()
    assert acting.last == pytest.approx(HOME)
    count = len(acting.commands)
    assert acting.controller.start() == 'the e-stop is latched: call ~/estop_reset first'
    acting.step(100, acts=0)
    assert acting.status.level == ERROR
    acting.controller.estop_reset()
    acting.step(100, acts=0)
    assert len(acting.commands) == count
    assert acting.controller.start() == ''
    acting.step(100, acts=1)


def test_it_waits_while_a_person_drives(bench):
    acting = bench().acting()
    acting.controller.drives('teleop')
    count = len(acting.commands)
    for _ in range(8):
        acting.step(100, acts=0)
    assert len(acting.commands) == count  # not even to hold: the person has the arm
    assert (acting.status.level, acting.status.message) == (OK, 'waiting: teleop drives')
    acting.pose = HOME + 0.6
    acting.controller.drives('policy')
    acting.step(100, acts=1)
    assert acting.policy.calls[-2] == ('reset', SENTENCE)
    limit = np.array(acting.contract.safety.max_step) + 1e-12
    assert (np.abs(acting.last - acting.pose) <= limit).all()


@pytest.mark.parametrize(('forget', 'expected'), [(True, 'reset'), (False, 'follow')])
def test_another_sentence_counts_from_the_next_step(bench, forget, expected):
    acting = bench(reset_on_instruction=forget).acting()
    acting.controller.instruct('touch the blue block')
    acting.step(100, acts=1)
    assert acting.policy.calls[-2:] == [(expected, 'touch the blue block'), ('act', 1)]


def test_the_policy_ends_the_task(bench, contract):
    acting = bench({'action': replace(contract.action, terminate=True)}).acting()
    acting.policy.finished = True
    acting.step(100, acts=0)
    assert acting.last == pytest.approx(HOME)
    acting.policy.finished = False
    acting.step(100, acts=0)
    assert acting.status.message == 'done: the policy says that the task is finished'
    acting.controller.instruct('touch the blue block')
    acting.step(100, acts=1)


def test_a_chunk_is_played_step_by_step(bench):
    acting = bench(chunk_size=4, n_action_steps=3).acting(300)
    action = acting.policy.space.decode(acting.policy.bins)
    before = len(acting.commands)
    for step in (2, 3):
        acting.now += 100 * MS
        acting.joints()
        acting.controller.play()
        acting.controller.play()
        assert len(acting.commands) == before + step - 1
        assert acting.last == pytest.approx(np.clip(HOME + step * action, -3.1, 3.1), abs=0.05)


def test_a_decision_after_its_time_is_dropped_from_the_chunk(bench):
    acting = bench(chunk_size=4, n_action_steps=2).acting(200)

    def slow():
        acting.now += 210 * MS

    acting.policy.first = slow
    before = int(acting.status.values['planned steps dropped'])
    acting.step(200, acts=1)
    assert int(acting.status.values['planned steps dropped']) == before + 2


def test_ending_it_holds_even_while_inference_hangs(bench):
    acting = bench().acting()
    going, release = threading.Event(), threading.Event()
    acting.policy.first = lambda: (going.set(), release.wait(20))
    acting.now += 100 * MS
    acting.joints()
    acting.image()
    assert going.wait(20)
    count = len(acting.commands)
    acting.controller.deactivate()
    assert acting.last == pytest.approx(HOME)
    acting.policy.first = lambda: None
    acting.controller.activate()
    release.set()
    acting.settle()
    assert len(acting.commands) == count + 1  # what was inferred before is not commanded now
    acting.step(100, acts=1)
    assert len(acting.commands) == count + 2


def test_a_policy_that_cannot_warm_up_is_not_opened(contract):
    policy = Puppet(contract)

    def fail():
        raise ConfigurationError('compile is True, expected False')

    policy.warm_up = fail
    controller = Controller(
        policy,
        Settings(),
        now=lambda: 0,
        command=lambda *_: None,
        hold=lambda _: None,
        decided=lambda _: None,
        warn=lambda _: None,
    )
    with pytest.raises(ConfigurationError, match='compile is True'):
        controller.open()
    controller.close()


def test_a_joint_that_is_missing_is_named(bench):
    acting = bench().acting()
    acting.names = [*acting.names[:-1], 'claw']
    acting.step(100, acts=0)
    assert "joint state lacks 'gripper'" in acting.status.message


@pytest.mark.parametrize(
    ('settings', 'named'),
    [
        ({'trigger': 'clock'}, 'trigger'),
        ({'chunk_size': 2, 'n_action_steps': 3}, 'n_action_steps'),
        ({'chunk_size': 2, 'trigger': 'observation'}, 'chunk_size'),
        ({'beam': 4, 'exploration': 0.1}, 'beam'),
        ({'rate': 11.0}, 'rate'),
        ({'rate': 2.0}, 'rate'),  # a step would take as long as the watchdog
        ({'rate': 1e-300}, 'rate'),
    ],
)
def test_settings_that_make_no_sense_are_refused(bench, settings, named):
    with pytest.raises(ConfigurationError, match=f'^{named} is '):
        bench(**settings)


def test_choices_reach_the_policy_at_the_next_step(bench):
    acting = bench().acting()
    acting.controller.adjust(Settings(exploration=0.5, guidance=2.0))
    acting.step(100, acts=1)
    assert acting.policy.choice == Choice(guidance=2.0, exploration=0.5)


def received(acting):
    return [value for call, value in acting.policy.calls if call == 'receive']


def test_rewards_since_the_last_step_reach_the_policy_as_one(bench):
    acting = bench().acting()
    acting.step(100, acts=1)
    assert received(acting) == []  # it holds what it has where no reward is known
    for reward in (0.5, 0.25, float('nan')):
        acting.controller.reward(reward)
    acting.step(100, acts=1)
    acting.step(100, acts=1)
    assert received(acting) == [0.75]
    acting.controller.reward(0.0)
    acting.step(100, acts=1)
    assert received(acting) == [0.75, 0.0]


def test_a_reward_is_for_what_was_done_before_the_sentence_changed(bench):
    acting = bench().acting()
    acting.controller.reward(1.0)
    acting.controller.instruct('touch the blue block')
    acting.step(100, acts=1)
    assert [call for call, _ in acting.policy.calls[-3:]] == ['receive', 'reset', 'act']


def test_rewards_of_a_past_that_is_forgotten_are_not_received(bench):
    acting = bench().acting()
    acting.controller.reward(1.0)
    acting.controller.reset()
    acting.step(100, acts=1)
    acting.step(100, acts=1)
    assert received(acting) == []


def test_choices_that_the_policy_cannot_make_are_refused_before_they_are_made(bench):
    acting = bench().acting()
    acting.policy.guides = False
    with pytest.raises(ConfigurationError, match=r'^guidance is 2\.0'):
        acting.controller.adjust(Settings(guidance=2.0))
    acting.step(100, acts=1)


def test_what_was_commanded_long_ago_is_not_held(bench):
    acting = bench().acting()
    count = len(acting.commands)
    acting.now += 4400 * MS  # the process was stopped meanwhile
    acting.controller.watch()
    assert len(acting.commands) == count
    acting.pose = HOME + 0.5  # a person has moved the arm
    acting.joints()
    assert acting.last == pytest.approx(acting.pose)


@pytest.fixture
def inferring(bench):
    """Bring it into an inference that ends when it is told to."""
    going, release = threading.Event(), threading.Event()
    made = []

    def make(**settings):
        acting = bench(**settings).acting(100 * settings.get('n_action_steps', 1))

        def wait():
            going.set()
            release.wait(20)

        acting.policy.first = wait
        acting.now += 100 * settings.get('n_action_steps', 1) * MS
        acting.joints()
        acting.image()
        assert going.wait(20)
        acting.release = release.set
        made.append(acting)
        return acting

    yield make
    release.set()


def test_an_answer_that_comes_after_the_camera_was_lost_moves_nothing(inferring, contract):
    camera = replace(contract.cameras[0], max_age=0.2)
    acting = inferring(changes={'cameras': (camera,)})
    for _ in range(3):
        acting.now += 100 * MS
        acting.joints()
        acting.controller.watch()
    count = len(acting.commands)
    assert acting.holds == [count - 1]
    acting.policy.first = lambda: None
    acting.release()
    acting.settle()
    assert len(acting.commands) == count
    assert acting.status.message.startswith("'front' is 0.3")


@pytest.mark.parametrize(
    'back_and_forth',
    [
        lambda c: (c.stop(), c.start()),
        lambda c: (c.estop(), c.estop_reset(), c.start()),
        lambda c: (c.drives('teleop'), c.drives('policy')),
    ],
)
def test_an_answer_from_before_a_stop_is_not_acted_on_after_it(inferring, back_and_forth):
    acting = inferring()
    back_and_forth(acting.controller)
    count = len(acting.commands)
    acting.pose = HOME + 0.3
    acting.joints()
    acting.policy.first = lambda: None
    acting.release()
    acting.settle()
    assert len(acting.commands) == count
    acting.step(100, acts=1)
    limit = np.array(acting.contract.safety.max_step) + 1e-12
    assert (np.abs(acting.last - acting.pose) <= limit).all()


def test_a_plan_is_not_played_while_inference_hangs(inferring):
    acting = inferring(chunk_size=50)
    since = acting.now
    while not acting.holds:
        acting.now += 25 * MS
        acting.joints()
        acting.image()
        acting.controller.play()
        acting.controller.watch()
    assert acting.now - since <= 600 * MS
    assert acting.status.message.startswith('inference hangs for 0.5')
    count = len(acting.commands)
    acting.controller.play()
    assert len(acting.commands) == count


def test_a_plan_ends_where_the_task_does(bench, contract):
    changes = {'action': replace(contract.action, terminate=True)}
    acting = bench(changes, chunk_size=4, n_action_steps=4)

    def act(observation, steps=1):
        action = acting.policy.space.decode(acting.policy.bins)
        plan = np.stack([action] * steps)
        plan[:, -1] = [0, 0, 1, 1]
        return Decision(bins=acting.policy.bins, action=plan[0], plan=plan)

    acting.policy.act = act
    acting.controller.instruct(SENTENCE)
    acting.step(100, acts=1)
    for _ in range(6):
        acting.now += 100 * MS
        acting.joints()
        acting.controller.play()
    assert len(acting.commands) == 2


def test_a_guard_that_was_started_anew_after_an_e_stop_does_not_start_the_arm(bench):
    acting = bench().acting()
    acting.controller.drives('estop')
    acting.controller.drives('policy')
    acting.step(100, acts=0)
    assert acting.status.message == 'stopped: call ~/start'


def test_a_publisher_that_fails_neither_undoes_an_e_stop_nor_ends_the_worker(bench):
    acting = bench().acting()

    def fail(*_):
        raise RuntimeError('the context is not valid')

    acting.controller._hold_at = fail
    with pytest.raises(RuntimeError):
        acting.controller.estop()
    assert acting.controller.safety.stopped
    acting.controller.estop_reset()
    acting.controller.start()
    acting.step(100, acts=1)
    acting.policy.first = lambda: 1 / 0
    acting.step(100, acts=0)
    assert acting.warnings[-2] == 'cannot hold: the context is not valid'
    acting.policy.first = lambda: None
    acting.controller._hold_at = acting.on_hold
    acting.step(100, acts=1)


def test_an_inactive_policy_commands_nothing_more(bench):
    acting = bench().acting()
    for _ in range(6):
        acting.step(100, joints=False, acts=None)
    acting.controller.deactivate()
    count = len(acting.commands)
    acting.step(100, acts=0)
    assert len(acting.commands) == count


def test_an_image_that_is_shown_again_is_answered_again(bench):
    acting = bench(trigger='observation', stamp_commands=True)
    acting.controller.instruct(SENTENCE)
    acting.step(100, acts=1)
    acting.frame -= 1
    acting.image()
    assert len(acting.commands) == 2
    assert np.array_equal(*[targets for targets, _ in acting.commands])
    assert {stamp for _, stamp in acting.commands} == {acting.now}


def test_an_e_stop_outlasts_inactivity(bench):
    acting = bench().acting()
    acting.controller.estop()
    count = len(acting.commands)
    acting.controller.deactivate()
    acting.controller.activate()
    acting.step(100, acts=0)
    assert acting.status.level == ERROR
    acting.controller.estop_reset()
    acting.step(100, acts=0)
    assert acting.status.message == 'stopped: call ~/start'
    assert len(acting.commands) == count
