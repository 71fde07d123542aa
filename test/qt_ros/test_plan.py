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


def test_nothing_is_planned_at_first_after_clearing_or_before_the_start(plan):
    assert CommandPlan(PERIOD).take(0) is None
    assert plan.take(999) is None
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
