# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest

from qt_core.contract import RobotContract
from qt_core.share import share_path
from qt_ros.finding import Finding
from qt_ros.graph_check import Endpoint, Snapshot, check_contract, needs, unheard

CONTRACT = RobotContract.load(share_path('config/contracts/tabletop.yaml'))
IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
JOINTS, STRING = 'sensor_msgs/msg/JointState', 'std_msgs/msg/String'
TRAJECTORY, ARRAY = 'trajectory_msgs/msg/JointTrajectory', 'std_msgs/msg/Float64MultiArray'
CAMERA, STATE, SENTENCE, COMMAND = (
    '/camera/image_raw',
    '/joint_states',
    '/instruction',
    '/joint_trajectory',
)


def end(node, kind, reliable=True, latched=False):
    return Endpoint(node, kind, reliable, latched)


PUBLISHERS = {
    CAMERA: (end('/camera', IMAGE, reliable=False),),
    STATE: (end('/arm', JOINTS),),
    SENTENCE: (end('/client', STRING, latched=True),),
    COMMAND: (end('/guard', TRAJECTORY),),
}
SUBSCRIBERS = {
    CAMERA: (end('/policy', IMAGE, reliable=False),),
    STATE: (end('/policy', JOINTS, reliable=False),),
    # As `subscribe_instruction` has it: one of the two always fits.
    SENTENCE: (end('/policy', STRING), end('/policy', STRING, latched=True)),
    COMMAND: (end('/controller', TRAJECTORY), end('/recorder', TRAJECTORY)),
}


def check(publishers=(), subscribers=(), joints=None, contract=CONTRACT, namespace=''):
    """Findings of a graph that is well but for what is given."""
    snapshot = Snapshot(
        {**PUBLISHERS, **dict(publishers)}, {**SUBSCRIBERS, **dict(subscribers)}, joints
    )
    return check_contract(contract, lambda topic: f'{namespace}/{topic}', snapshot)


def bad(*arguments, **keywords):
    return [f for f in check(*arguments, **keywords) if f.level != 'ok']


def test_a_graph_that_serves_the_contract_is_well():
    findings = check(joints=CONTRACT.state.joints)
    assert [(f.level, f.subject) for f in findings] == [
        ('ok', CAMERA),
        ('ok', STATE),
        ('ok', SENTENCE),
        ('ok', COMMAND),
    ]
    assert str(findings[0]) == f'{CAMERA}: {IMAGE} from /camera'
    assert str(findings[3]) == f'{COMMAND}: {TRAJECTORY} to /controller'


def test_a_finding_is_one_line():
    finding = Finding('fail', 'x', 'two\nlines', 'do\n  it')
    assert str(finding) == 'x: two lines — do it'


def test_needs_are_by_full_name_with_the_command_last():
    wanted = needs(CONTRACT, lambda topic: f'/left/{topic}')
    assert [(n.path, n.topic, n.type) for n in wanted] == [
        ('cameras[0]', '/left/camera/image_raw', IMAGE),
        ('state', '/left/joint_states', JOINTS),
        ('instruction', '/left/instruction', STRING),
        ('action', '/left/joint_trajectory', TRAJECTORY),
    ]


@pytest.mark.parametrize('topic', [CAMERA, STATE])
def test_a_sensor_that_nobody_publishes_fails(topic):
    [finding] = bad({topic: ()})
    assert (finding.level, finding.subject) == ('fail', topic)
    assert finding.problem == 'nobody publishes'
    assert f'remap {topic[1:]}' in finding.remedy


def test_a_sentence_may_have_been_said_once():
    [finding] = bad({SENTENCE: (), '/rosout_text': (end('/other', STRING),)})
    assert (finding.level, finding.subject) == ('warn', SENTENCE)
    # Of all the strings in a graph none is likely to be meant.
    assert 'qt-ros say' in finding.remedy


def test_a_topic_of_the_same_name_in_another_namespace_is_meant():
    elsewhere = '/left/camera/image_raw'
    others = {elsewhere: (end('/c', IMAGE),), '/a/depth': (end('/d', IMAGE),)}
    [finding] = bad({CAMERA: (), **others})
    assert finding.remedy == (f'remap camera/image_raw:={elsewhere}, or start in namespace /left')


def test_a_topic_of_the_same_last_name_is_meant():
    [finding] = bad({STATE: (), '/ur5/joint_states': (end('/ur5', JOINTS),)})
    assert 'remap joint_states:=/ur5/joint_states' in finding.remedy
    [finding] = bad({CAMERA: (), '/cam0/image_raw': (end('/cam0', IMAGE),)})
    assert finding.remedy == 'remap camera/image_raw:=/cam0/image_raw'


def test_other_topics_of_the_type_are_named():
    others = {f'/cam{i}/color': (end('/cam', IMAGE),) for i in range(3)}
    [finding] = bad({CAMERA: (), '/scan': (end('/x', 'sensor_msgs/msg/LaserScan'),), **others})
    assert finding.remedy == (
        'remap camera/image_raw:=/cam0/color; of that type also: /cam1/color, /cam2/color'
    )


def test_the_compressed_sibling_is_meant():
    [finding] = bad(
        {
            CAMERA: (),
            f'{CAMERA}/compressed': (end('/camera', COMPRESSED),),
            '/a/image_raw': (end('/a', IMAGE),),
        }
    )
    assert finding.remedy == (
        f'set cameras[0].topic to camera/image_raw/compressed and .type to {COMPRESSED} '
        'in the contract'
    )


def test_the_raw_sibling_of_a_compressed_topic_is_meant():
    camera = replace(CONTRACT.cameras[0], topic='camera/image_raw/compressed', type=COMPRESSED)
    contract = replace(CONTRACT, cameras=(camera,))
    [finding] = bad(contract=contract)
    assert finding.subject == f'{CAMERA}/compressed'
    assert finding.remedy == (
        f'set cameras[0].topic to camera/image_raw and .type to {IMAGE} in the contract'
    )


def test_a_wrong_type_fails():
    [finding] = bad({CAMERA: (end('/camera', COMPRESSED),)})
    assert finding.level == 'fail'
    assert f'/camera publishes with type {COMPRESSED}, expected {IMAGE}' in finding.problem
    assert finding.remedy == f'set cameras[0].type to {COMPRESSED} in the contract'


def test_a_wrong_type_may_mean_another_topic():
    [finding] = bad({STATE: (end('/arm', STRING),), '/arm/joint_states': (end('/a', JOINTS),)})
    assert 'remap joint_states:=/arm/joint_states' in finding.remedy
    [finding] = bad({STATE: (end('/arm', STRING),)})
    assert finding.remedy == f'remap joint_states to a topic of type {JOINTS}'


def test_a_stranger_of_another_type_on_the_topic_is_named():
    [finding] = bad({STATE: (end('/arm', JOINTS), end('/odd', STRING))})
    assert finding.level == 'warn'
    assert '/odd' in finding.problem


def test_a_controller_of_another_type_fails():
    [finding] = bad(subscribers={COMMAND: (end('/controller', ARRAY),)})
    assert finding.level == 'fail'
    assert finding.remedy == 'set action.type to multi_array in the contract'


@pytest.mark.parametrize('listeners', [(), (end('/left/recorder', TRAJECTORY),)])
def test_a_command_topic_without_a_controller_fails(listeners):
    [finding] = bad(subscribers={COMMAND: listeners})
    assert (finding.level, finding.problem) == ('fail', 'nobody listens')
    assert 'start the controller' in finding.remedy


def test_a_controller_in_another_namespace_is_meant_and_a_guard_is_not():
    topic = '/arm_controller/follow'
    guarded = {COMMAND: (), '/left/policy/command': (end('/left/guard', TRAJECTORY),)}
    [finding] = bad(subscribers=guarded)
    assert 'start the controller' in finding.remedy
    [finding] = bad(subscribers={**guarded, topic: (end('/arm_controller', TRAJECTORY),)})
    assert finding.remedy == f'remap joint_trajectory:={topic}'


def test_two_publishers_of_commands_fail():
    [finding] = bad({COMMAND: (end('/guard', TRAJECTORY), end('/rqt', TRAJECTORY))})
    assert (finding.level, finding.subject) == ('fail', COMMAND)
    assert '/guard, /rqt' in finding.problem


def test_two_publishers_of_a_sensor_are_to_look_at():
    [finding] = bad({STATE: (end('/arm', JOINTS), end('/gripper', JOINTS))})
    assert finding.level == 'warn'
    assert 'every message must name every joint' in finding.remedy


def test_nobody_needs_to_command_yet():
    assert not bad({COMMAND: ()})


@pytest.mark.parametrize(
    ('topic', 'publisher', 'subscriber', 'level', 'words'),
    [
        (CAMERA, (False, False), (True, False), 'warn', 'reliable'),
        (CAMERA, (True, False), (True, True), 'warn', 'transient-local'),
        (COMMAND, (False, False), (True, False), 'fail', 'reliable'),
        (COMMAND, (True, False), (True, True), 'fail', 'transient-local'),
        (SENTENCE, (False, True), (True, True), 'fail', 'reliable'),
    ],
)
def test_who_does_not_hear_whom_is_named(topic, publisher, subscriber, level, words):
    kind = PUBLISHERS[topic][0].type
    [finding] = bad(
        {topic: (end('/from', kind, *publisher),)}, {topic: (end('/to', kind, *subscriber),)}
    )
    assert (finding.level, finding.subject) == (level, topic)
    assert '/to hears nothing of /from' in finding.problem
    assert f'make the publisher {words}' in finding.remedy


@pytest.mark.parametrize(
    ('publishers', 'subscribers', 'node'),
    [
        ({SENTENCE: (end('/voice', STRING, reliable=False),)}, {SENTENCE: ()}, '/voice'),
        ({COMMAND: ()}, {COMMAND: (end('/controller', TRAJECTORY, latched=True),)}, '/controller'),
    ],
)
def test_what_our_nodes_will_not_hear_fails_before_they_start(publishers, subscribers, node):
    [finding] = bad(publishers, subscribers)
    assert finding.level == 'fail'
    assert node in finding.problem


def test_a_node_that_subscribes_twice_hears_by_one():
    latched, volatile = end('/policy', STRING, latched=True), end('/policy', STRING)
    assert unheard(end('/pub', STRING), [latched, volatile]) == []
    assert unheard(end('/pub', STRING), [latched]) == [latched]
    other = replace(latched, node='/other')
    assert unheard(end('/pub', STRING), [other, volatile]) == [other]


def test_lacking_joints_are_named_with_those_that_are_there():
    joints = tuple(f'ur_{joint}' for joint in CONTRACT.state.joints)
    [finding] = bad(joints=joints)
    assert (finding.level, finding.subject) == ('fail', STATE)
    assert 'lacks shoulder_pan, shoulder_lift, elbow, wrist_1 and 3 more' in finding.problem
    assert ', '.join(joints) in finding.problem
    assert 'elbow -> ur_elbow' in finding.remedy


def test_a_partial_joint_state_is_to_be_completed():
    [finding] = bad(joints=CONTRACT.state.joints[:-1])
    assert 'lacks gripper' in finding.problem
    assert finding.remedy == 'publish every joint in every message'
    [finding] = bad(joints=())
    assert 'no joint' in finding.problem


def test_more_joints_than_needed_are_well():
    assert not bad(joints=('door', *reversed(CONTRACT.state.joints)))
