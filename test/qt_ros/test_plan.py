# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest

from qt_core.action_space import ActionSpace
from qt_ros.plan import CommandPlan, plan_targets

PERIOD = 100
TARGETS = np.arange(8.0).reshape(4, 2)


@pytest.fixture
def plan():
    plan = CommandPlan(PERIOD)
    plan.replace(1000, TARGETS)
    return plan


def test_each_step_is_taken_once_in_its_own_period(plan):
    taken = [plan.take(now) for now in (1010, 1050, 1099, 1100, 1210, 1399, 1400)]
    steps = [None if step is None else int(step[0] / 2) for step in taken]
    assert steps == [0, None, None, 1, 2, 3, None]
    assert plan.dropped == 0


def test_steps_already_past_are_dropped(plan):
    assert np.array_equal(plan.take(1250), TARGETS[2])
    assert plan.dropped == 2
    assert np.array_equal(plan.take(1300), TARGETS[3])
    assert plan.dropped == 2


def test_a_plan_that_is_wholly_past_gives_nothing(plan):
    assert plan.take(1400) is None
    assert plan.dropped == 4
    assert plan.take(1500) is None
    assert plan.dropped == 4


def test_a_newer_plan_replaces_what_is_left(plan):
    plan.take(1000)
    plan.replace(1150, TARGETS + 100)
    assert np.array_equal(plan.take(1160), TARGETS[0] + 100)
    assert plan.dropped == 0


def test_a_period_gets_no_step_of_a_second_plan(plan):
    for now in (1000, 1100, 1200):
        plan.take(now)
    plan.replace(1190, TARGETS + 100)  # about the period that the third step was for
    assert plan.take(1210) is None
    assert plan.left
    assert np.array_equal(plan.take(1295), TARGETS[1] + 100)
    assert plan.dropped == 0


def test_steps_in_reserve_wait_for_the_next_plan(plan):
    plan.replace(2000, TARGETS)
    plan.sure = 2
    assert np.array_equal(plan.take(2100), TARGETS[1])
    assert plan.take(2240) is None
    assert np.array_equal(plan.take(2250), TARGETS[2])
    assert plan.take(2300) is None
    assert plan.dropped == 1


def test_a_stamp_ahead_of_the_clock_is_taken_for_now(plan):
    assert np.array_equal(plan.take(980), TARGETS[0])


def test_nothing_is_planned_at_first_or_after_clearing(plan):
    assert CommandPlan(PERIOD).take(0) is None
    plan.clear()
    assert plan.take(1000) is None


@pytest.mark.parametrize(
    ('mode', 'scale'), [('delta', 1.0), ('velocity', 0.1), ('absolute', None)]
)
def test_each_step_sets_out_from_where_the_one_before_ends(contract, mode, scale):
    space = ActionSpace(replace(contract, action=replace(contract.action, mode=mode)))
    random = np.random.default_rng(0)
    state = random.normal(size=7).astype(np.float32)
    actions = random.normal(size=(3, 7))
    targets = plan_targets(space, actions, state)
    by_hand = actions if scale is None else state + scale * np.cumsum(actions, axis=0)
    assert targets == pytest.approx(by_hand)
