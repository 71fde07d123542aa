# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A policy that looks through two cameras of different kinds, over DDS."""

import dataclasses

import numpy as np
import pytest
from std_msgs.msg import String

from qt_ros.graphs import GRAPHS
from qt_ros.up import running
from test.qt_ros.rig import Witness, arm
from test.qt_ros.untrained import SENTENCE, save_untrained

pytestmark = pytest.mark.timeout(300)  # many processes, on a machine with much else to do
RAW, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
CAMERAS = {  # name -> how it publishes
    'front': {'rate': 30.0, 'size': [96, 128]},
    'wrist': {'rate': 15.0, 'size': [40, 48]},
}


def two_cameras(contract, front, wrist):
    """Give a contract of a front camera and a wrist camera of these types."""
    camera = dataclasses.replace(contract.cameras[0], height=32, width=32)
    cameras = (
        dataclasses.replace(camera, type=front, rate=CAMERAS['front']['rate']),
        dataclasses.replace(
            camera, name='wrist', topic='wrist/image', type=wrist, rate=CAMERAS['wrist']['rate']
        ),
    )
    return dataclasses.replace(contract, cameras=cameras)


@pytest.mark.parametrize(
    ('front', 'wrist', 'reliable', 'latched'),
    [
        pytest.param(RAW, COMPRESSED, 'wrist', True, id='raw best effort, compressed reliable'),
        pytest.param(COMPRESSED, RAW, 'wrist', False, id='compressed best effort, raw reliable'),
    ],
)
def test_it_acts_on_both_and_holds_without_either(
    peer, contract, tmp_path, front, wrist, reliable, latched
):
    contract = two_cameras(contract, front, wrist)
    file = tmp_path / 'contract.yaml'
    file.write_text(contract.to_text())
    checkpoint = save_untrained(tmp_path / 'checkpoint', contract, {'wrist_3': 3})
    witness = Witness(peer, contract)
    if latched:  # said before anybody listens
        witness.say(SENTENCE)
    cameras = {n: {**how, 'reliable': n == reliable} for n, how in CAMERAS.items()}
    graph = GRAPHS['policy'].processes(checkpoint=str(checkpoint))
    with running(graph), arm(file, moves=False, cameras=cameras) as robot:
        if not latched:
            witness.until_says('no instruction')
            volatile = peer.node.create_publisher(String, 'instruction', 1)
            witness.until(volatile.get_subscription_count, 'who listens')
            volatile.publish(String(data=SENTENCE))
        witness.until_acts()
        # One command in each period of the contract: neither camera's rate.
        witness.until(
            lambda: 0.6 < np.median([*witness.intervals(12), 0]) / contract.period < 1.4,
            'the rate of the contract',
        )
        values = witness.until_says('acting')
        assert values['graph'] == 'complete'
        assert len(witness.commands) <= len(witness.bins) + 1

        for name in CAMERAS:
            robot.tell(silent=[name])
            witness.until_says(f"'{name}' is")
            witness.until(
                lambda: np.allclose(witness.commands[-1][1], witness.pose()), 'the pose is held'
            )
            values = witness.until_says(f"'{name}' is")
            age = {n: float(values[f'age of {n} (s)']) for n in CAMERAS}
            assert age[name] > contract.cameras[0].max_age > min(age.values())
            witness.until_still()
            robot.tell(silent=[])
            witness.until_acts()
            witness.until_says('acting')
