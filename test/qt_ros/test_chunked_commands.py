# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Several control steps decided at once, as a robot sees them over DDS."""

import dataclasses

import numpy as np
import pytest

from qt_ros.graphs import GRAPHS
from qt_ros.up import running
from test.qt_ros.rig import Witness, arm, with_parameters
from test.qt_ros.untrained import SENTENCE, save_untrained

pytestmark = pytest.mark.timeout(300)  # many processes, on a machine with much else to do
SIZE, TAKEN = 6, 4  # control steps decided by one inference, and from one to the next
STEP = 0.02  # rad, what one control step adds
JOINT = 'wrist_3'


def test_one_command_in_each_period_and_one_decision_in_each_fourth(peer, contract, tmp_path):
    camera = dataclasses.replace(contract.cameras[0], height=32, width=32)
    contract = dataclasses.replace(contract, cameras=(camera,))
    file = tmp_path / 'contract.yaml'
    file.write_text(contract.to_text())
    checkpoint = save_untrained(tmp_path / 'checkpoint', contract, {JOINT: 2})
    witness = Witness(peer, contract)
    witness.say(SENTENCE)
    graph = with_parameters(
        GRAPHS['policy'].processes(checkpoint=str(checkpoint), guard=False),
        'policy',
        chunk_size=SIZE,
        n_action_steps=TAKEN,
    )

    def numbers(since=0):
        """Say which step of its plan each command is, by how far it is from the arm, at rest."""
        at, pose = contract.action.joints.index(JOINT), witness.pose()
        return [round((t[at] - pose[at]) / STEP) for _, t in witness.commands[since:]]

    with running(graph), arm(file, moves=False) as robot:
        witness.until(lambda: len(witness.commands) > SIZE, 'acting')
        witness.until_acts(1)
        witness.commands.clear()
        decided = len(witness.bins)
        witness.until(lambda: len(witness.commands) > 80, 'commands')
        decisions = len(witness.bins) - decided
        periods = (witness.commands[-1][0] - witness.commands[0][0]) / contract.period
        assert 0.7 * periods < len(witness.commands) < periods + 2.5
        assert periods / (TAKEN + 2) < decisions < periods / TAKEN + 2
        intervals = witness.intervals(80) / contract.period
        assert 0.8 < np.median(intervals) < 1.2
        taken = numbers()
        assert {1, 2, 3, 4} <= set(taken) <= set(range(1, SIZE + 1))
        assert 0 not in np.diff(taken)

        # What was planned before a hold is not done after it.
        robot.tell(silent=['front'])
        witness.until_says("'front' is")
        witness.until(lambda: numbers()[-1] == 0, 'the pose is held')
        witness.until_still()
        held = len(witness.commands)
        assert numbers().count(0) == 1
        robot.tell(silent=[])
        witness.until(lambda: len(witness.commands) > held + SIZE, 'acting again')
        assert numbers(held)[0] <= 2
        assert 0 not in numbers(held)
