# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Another checkpoint, and other settings, for a policy node that goes on running."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import DescribeParameters, SetParameters
from rclpy.parameter import Parameter
from std_msgs.msg import Float32MultiArray

from qt_ros.graphs import GRAPHS
from qt_ros.up import running
from test.qt_ros.rig import Witness, arm
from test.qt_ros.untrained import SENTENCE, save_untrained

pytestmark = pytest.mark.timeout(300)  # many processes, on a machine with much else to do
STEP = 0.01  # rad, one bin of the contract
MIB = 1024  # KiB
NETWORK = 12  # MiB that the larger network of these tests takes, and a little less


@pytest.fixture
def small(contract):
    """A contract whose camera gives the policy small images."""
    camera = dataclasses.replace(contract.cameras[0], height=32, width=32)
    return dataclasses.replace(contract, cameras=(camera,))


class Node:
    """The policy node, from outside."""

    def __init__(self, peer, pid):
        self.peer, self.pid = peer, pid

    def transit(self, *transitions):
        """Go through transitions; give whether the last one succeeded."""
        for transition in transitions:
            number = getattr(Transition, f'TRANSITION_{transition.upper()}')
            request = ChangeState.Request(transition=Transition(id=number))
            succeeded = self.peer.send(ChangeState, 'policy/change_state', request).success
        return succeeded

    def state(self):
        """Give the lifecycle state's name."""
        return self.peer.send(GetState, 'policy/get_state', GetState.Request()).current_state.id

    def set(self, **values):
        """Set parameters together; give why not, '' when they are set."""
        parameters = [Parameter(name, value=v).to_parameter_msg() for name, v in values.items()]
        request = SetParameters.Request(parameters=parameters)
        results = self.peer.send(SetParameters, 'policy/set_parameters', request).results
        assert all(result.successful != bool(result.reason) for result in results)
        return '; '.join(result.reason for result in results if result.reason)

    def exchange(self, checkpoint):
        """Go through all that it takes to act by another checkpoint; give whether it does."""
        assert self.transit('deactivate', 'cleanup')
        return self.load(checkpoint)

    def load(self, checkpoint):
        """From unconfigured on."""
        assert self.set(checkpoint=str(checkpoint)) == ''
        return self.transit('configure') and self.transit('activate')

    def memory(self):
        """Give resident memory in KiB and the number of threads."""
        lines = Path(f'/proc/{self.pid}/status').read_text().splitlines()
        values = dict(line.split(':', 1) for line in lines)
        return int(values['VmRSS'].split()[0]), int(values['Threads'])


@pytest.fixture
def graph(peer, small, tmp_path):
    """Give what runs a policy beside an arm that stands still, and the two things to see it by."""
    file = tmp_path / 'contract.yaml'
    file.write_text(small.to_text())
    witness = Witness(peer, small)
    witness.say(SENTENCE)
    with arm(file, moves=False) as robot:
        witness.arm = robot

        def run(checkpoint, **arguments):
            processes = GRAPHS['policy'].processes(
                checkpoint=str(checkpoint), guard=False, **arguments
            )
            return running(processes)

        yield run, witness


def until_moves(witness, joint, bins):
    """Wait until the commands move a joint by so many bins, and no other."""
    wanted = np.zeros(len(witness.contract.action.joints))
    wanted[witness.contract.action.joints.index(joint)] = bins * STEP
    witness.commands.clear()
    witness.until(
        lambda: (
            len(witness.commands) >= 5
            and np.allclose(witness.commands[-1][1] - witness.pose(), wanted, atol=1e-6)
        ),
        f'{joint} is moved by {bins}',
    )


def test_another_network_of_another_contract_acts_in_the_same_process(
    graph, peer, contract, small, tmp_path
):
    run, witness = graph
    first = save_untrained(tmp_path / 'first', small, {'wrist_3': 3})
    larger = dataclasses.replace(contract, name='other')  # images twice the size
    second = save_untrained(tmp_path / 'second', larger, {'wrist_1': -2})
    with run(first) as processes:
        node = Node(peer, processes.children[0].pid)
        until_moves(witness, 'wrist_3', 3)
        assert witness.until_says('acting')['checkpoint'] == str(first)

        assert node.exchange(second)
        until_moves(witness, 'wrist_1', -2)
        values = witness.until_says('acting')
        assert (values['checkpoint'], values['contract']) == (str(second), 'other')

        # What cannot be loaded leaves the node alive, unconfigured and silent.
        broken = tmp_path / 'broken'
        broken.mkdir()
        for part in first.iterdir():
            (broken / part.name).write_bytes(part.read_bytes())
        weights = broken / 'model.safetensors'
        weights.write_bytes(weights.read_bytes()[:-64])
        for bad in (broken, tmp_path / 'absent', ''):
            if node.state() == State.PRIMARY_STATE_ACTIVE:
                assert node.transit('deactivate', 'cleanup')
            assert not node.load(bad)
            assert node.state() == State.PRIMARY_STATE_UNCONFIGURED
            assert peer.node.count_publishers('policy/bins') == 0
        assert node.load(first)
        until_moves(witness, 'wrist_3', 3)
        assert witness.until_says('acting')['checkpoint'] == str(first)


def test_only_checkpoints_of_the_contract_that_is_demanded(graph, peer, contract, small, tmp_path):
    run, witness = graph
    first = save_untrained(tmp_path / 'first', small, {'wrist_3': 3})
    alike = save_untrained(tmp_path / 'alike', small, {'wrist_3': -3})
    other = save_untrained(tmp_path / 'other', contract, {'wrist_1': -2})
    with run(first, contract=str(tmp_path / 'contract.yaml')) as processes:
        node = Node(peer, processes.children[0].pid)
        until_moves(witness, 'wrist_3', 3)
        assert not node.exchange(other)
        assert node.state() == State.PRIMARY_STATE_UNCONFIGURED
        assert node.load(alike)
        until_moves(witness, 'wrist_3', -3)


def test_exchanges_leave_nothing_behind(graph, peer, small, tmp_path):
    run, witness = graph
    folders = [
        save_untrained(
            tmp_path / name, small, {joint: 3}, dim=256, depth=4, decoder_depth=1, heads=4
        )
        for name, joint in (('first', 'wrist_3'), ('second', 'wrist_1'))
    ]
    assert (folders[0] / 'model.safetensors').stat().st_size > NETWORK * 2**20
    with run(folders[0]) as processes:
        node = Node(peer, processes.children[0].pid)
        until_moves(witness, 'wrist_3', 3)
        measured = []
        for round in range(7):
            assert node.exchange(folders[(round + 1) % 2])
            until_moves(witness, ('wrist_1', 'wrist_3')[round % 2], 3)
            measured.append(node.memory())
    before, after = measured[1], measured[-1]  # the first exchange meets caches that are empty
    assert after[0] - before[0] < NETWORK * MIB, measured
    assert after[1] == before[1], measured


def test_settings_while_it_acts(graph, peer, small, tmp_path):
    run, witness = graph
    checkpoint = save_untrained(tmp_path / 'checkpoint', small, {'wrist_3': 3})
    with run(checkpoint) as processes:
        node = Node(peer, processes.children[0].pid)
        witness.until_acts()
        period = small.period
        witness.until(
            lambda: 0.5 * period < np.median([*witness.intervals(8), 0]) < 1.5 * period,
            'the rate of the contract',
        )
        assert node.set(rate=small.rate / 4) == ''
        witness.until(
            lambda: 3 * period < np.median([*witness.intervals(4), 0]) < 6 * period,
            'a quarter of the rate',
        )
        refusal = node.set(rate=2 * small.rate)
        assert refusal.startswith('rate is 20.0, expected 0, or above 2 ')
        assert node.set(rate=0.0) == ''
        witness.until(lambda: 0 < np.median([*witness.intervals(6), 9]) < 2 * period, 'as before')

        # Greedy choices repeat themselves, explored ones do not.
        witness.bins.clear()
        witness.until_acts(5)
        assert len(set(witness.bins)) == 1
        assert node.set(exploration=0.5) == ''
        assert node.set(beam=4) == 'beam is 4, expected 1 while exploration is above 0'
        witness.until(lambda: len(set(witness.bins)) > 3, 'exploration')
        assert node.set(exploration=0.0) == ''
        witness.until_acts(2)  # one may have been under way
        witness.bins.clear()
        witness.until_acts(5)
        assert len(set(witness.bins)) == 1
        assert node.set(beam=4) == ''
        assert node.set(exploration=0.5) == 'beam is 4, expected 1 while exploration is above 0'
        witness.until_acts()
        assert node.set(exploration=0.5, beam=1) != ''  # each is judged by itself, in order

        values = peer.listen(Float32MultiArray, 'policy/values')
        witness.until(lambda: peer.node.count_publishers('policy/values'), 'values')
        witness.until_acts()
        assert values == []
        assert node.set(publish_values=True) == ''
        witness.until(lambda: len(values) > 3, 'values')
        assert [d.size for d in values[-1].layout.dim] == [7, small.action.bins]
        assert np.argmax(np.reshape(values[-1].data, (7, -1)), 1).tolist() == list(
            witness.bins[-1]
        )

        for name, value in (('threads', 2), ('chunk_size', 4), ('trigger', 'observation')):
            assert 'read-only' in node.set(**{name: value})
        witness.until_acts()


def test_parameters_say_what_they_are(graph, peer, small, tmp_path):
    from qt_ros.nodes.policy_node import DYNAMIC, READ_ONLY

    run, _ = graph
    with run(save_untrained(tmp_path / 'checkpoint', small, {'wrist_3': 3})):
        declared = {p.name: p for p in (*DYNAMIC, *READ_ONLY)}
        asked = DescribeParameters.Request(names=list(declared))
        found = peer.send(DescribeParameters, 'policy/describe_parameters', asked).descriptors
    assert [d.name for d in found] == list(declared)
    for descriptor in found:
        parameter = declared[descriptor.name]
        assert descriptor.description.endswith('.')
        assert descriptor.read_only == (parameter in READ_ONLY)
        number = type(parameter.default) in (int, float)
        ranges = [*descriptor.integer_range, *descriptor.floating_point_range]
        assert len(ranges) == number, descriptor.name
        assert all(r.from_value <= parameter.default <= r.to_value for r in ranges)
