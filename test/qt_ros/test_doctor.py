# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the doctor makes of what it was told, apart from how that was found out."""

from dataclasses import replace

import numpy as np
import pytest
from rosbags.typesys import Stores, get_typestore

from qt_core.contract import RobotContract
from qt_core.share import share_path
from qt_ros.conversions import fill_command, fill_image, set_stamp
from qt_ros.doctor import machine, middleware
from qt_ros.doctor.machine import Torch, clock_finding, processor_finding, torch_findings
from qt_ros.doctor.middleware import Rclpy, discovery_findings, profile_findings, rclpy_findings
from qt_ros.doctor.participants import Observed, Said, check_graph, check_nodes
from qt_ros.doctor.traffic import Heard, Listening, Traffic, check_traffic, joint_names
from qt_ros.finding import Finding
from qt_ros.graph_check import Endpoint, Snapshot, needs
from qt_ros.graphs import FAST_DDS_VARIABLES

PROFILE = str(share_path('config/fastdds.xml'))
CONTRACT = RobotContract.load(share_path('config/contracts/tabletop.yaml'))
WANTED = needs(CONTRACT, lambda topic: f'/{topic}')
CAMERA, STATE, SENTENCE, COMMAND = WANTED
STORE = get_typestore(Stores.ROS2_JAZZY)
SECOND = 1_000_000_000


def levels(findings):
    return [(f.level, f.subject) for f in findings]


# Machine.


@pytest.mark.parametrize(
    ('torch', 'driver', 'expected', 'words'),
    [
        (Torch('', 'no torch'), False, [('fail', 'torch')], 'no torch'),
        (Torch('2.9'), False, [('ok', 'torch'), ('ok', 'GPU')], 'on the CPU'),
        (Torch('2.9'), True, [('ok', 'torch'), ('warn', 'GPU')], 'built with CUDA'),
        (Torch('2.9', cuda='12.8'), True, [('ok', 'torch'), ('warn', 'GPU')], 'for CUDA 12.8'),
        (
            Torch('2.9', cuda='12.8', devices=('H100, 80 GiB',)),
            True,
            [('ok', 'torch'), ('ok', 'GPU')],
            'H100, 80 GiB',
        ),
        (
            Torch('2.9', cuda='12.8', broken=('cuda:0 does not work (no kernel image)',)),
            True,
            [('ok', 'torch'), ('fail', 'GPU')],
            'no kernel image',
        ),
    ],
)
def test_torch_and_gpu(torch, driver, expected, words):
    findings = list(torch_findings(torch, driver))
    assert levels(findings) == expected
    assert words in str(findings[-1])


@pytest.mark.parametrize(
    ('limit', 'threads', 'level', 'words'),
    [
        (None, '', 'ok', '4 processors'),
        (None, '4', 'ok', 'OMP_NUM_THREADS=4'),
        (None, '5', 'warn', 'OMP_NUM_THREADS=4'),
        (1.5, '', 'warn', 'export OMP_NUM_THREADS=1'),
        (1.5, '1', 'ok', 'time of 1.5'),
        (None, 'many', 'warn', 'OMP_NUM_THREADS=4'),
        (None, '0', 'warn', 'OMP_NUM_THREADS=4'),
    ],
)
def test_threads_are_held_against_processors(limit, threads, level, words):
    finding = processor_finding(4, limit, {'OMP_NUM_THREADS': threads} if threads else {})
    assert finding.level == level
    assert words in str(finding)


def test_a_python_that_is_too_old_fails():
    assert machine.python_finding((3, 10)).level == 'fail'
    assert machine.python_finding((3, 11)).level == 'ok'


@pytest.mark.parametrize(
    ('now', 'good', 'level'),
    [(0.0, True, 'fail'), (2e9, True, 'ok'), (2e9, None, 'ok'), (2e9, False, 'warn')],
)
def test_a_clock_that_is_not_kept_is_to_look_at(now, good, level):
    assert clock_finding(now, good).level == level


def test_free_disk_is_that_of_the_folder_to_be(tmp_path, monkeypatch):
    asked, sizes = [], [100 << 30, 1 << 30, 100 << 20]

    def usage(folder):
        asked.append(folder)
        return type('Usage', (), {'free': sizes[len(asked) - 1]})

    monkeypatch.setattr(machine.shutil, 'disk_usage', usage)
    found = [machine.disk_finding(tmp_path / 'not' / 'yet').level for _ in sizes]
    assert found == ['ok', 'warn', 'fail']
    assert asked == [tmp_path] * 3


# Middleware.


@pytest.mark.parametrize(
    ('variables', 'level', 'words'),
    [
        ({}, 'ok', 'domain 0, range SUBNET'),
        ({'ROS_DOMAIN_ID': '7'}, 'ok', 'domain 7'),
        ({'ROS_DOMAIN_ID': '102'}, 'fail', "'102'"),
        ({'ROS_DOMAIN_ID': 'x'}, 'fail', 'export ROS_DOMAIN_ID='),
        ({'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}, 'ok', 'this machine only'),
        ({'ROS_AUTOMATIC_DISCOVERY_RANGE': 'local'}, 'fail', 'SUBNET'),
        ({'ROS_AUTOMATIC_DISCOVERY_RANGE': 'OFF'}, 'fail', 'ROS_STATIC_PEERS'),
        ({'ROS_AUTOMATIC_DISCOVERY_RANGE': 'OFF', 'ROS_STATIC_PEERS': '10.0.0.1'}, 'ok', 'OFF'),
    ],
)
def test_discovery(variables, level, words):
    [finding] = discovery_findings(variables)
    assert finding.level == level
    assert words in str(finding)


def test_a_profile_that_is_not_set_is_to_be_exported():
    findings = list(profile_findings({}, ''))
    assert levels(findings) == [('warn', name) for name in FAST_DDS_VARIABLES]
    assert f'export {FAST_DDS_VARIABLES[0]}={PROFILE}' in findings[0].remedy
    # A distribution reads one of the two.
    assert levels(profile_findings({}, 'jazzy')) == [('warn', FAST_DDS_VARIABLES[0])]
    assert levels(profile_findings({}, 'lyrical')) == [('warn', FAST_DDS_VARIABLES[1])]


@pytest.mark.parametrize(
    ('content', 'level', 'words'),
    [
        (None, 'fail', 'No such file'),
        ('<dds', 'fail', 'cannot be read'),
        ('<dds/>', 'warn', '512 KiB'),
        ('<dds><segment_size>33554432</segment_size></dds>', 'ok', '32 MiB'),
    ],
)
def test_a_profile_is_read(tmp_path, content, level, words):
    path = tmp_path / 'profile.xml'
    if content is not None:
        path.write_text(content)
    [finding] = profile_findings({FAST_DDS_VARIABLES[0]: str(path)}, 'jazzy')
    assert finding.level == level
    assert words in str(finding)


def test_shared_memory_is_held_against_the_segments(tmp_path, monkeypatch):
    size = middleware.segment({FAST_DDS_VARIABLES[0]: PROFILE})
    assert size == 32 << 20
    assert middleware.segment({}) == 512 << 10
    usage = type('Usage', (), {'free': 64 << 20})  # what docker gives
    monkeypatch.setattr(middleware.shutil, 'disk_usage', lambda path: usage)
    finding = middleware.memory_finding(size, tmp_path)
    assert finding.level == 'warn'
    assert '--shm-size' in finding.remedy
    assert middleware.memory_finding(512 << 10, tmp_path).level == 'ok'
    monkeypatch.undo()
    assert middleware.memory_finding(size, tmp_path / 'nowhere').level == 'warn'


def test_another_ros_than_the_one_that_is_sourced_is_to_look_at():
    fast = Rclpy('rmw_fastrtps_cpp')
    installed = middleware.distribution({})
    other = 'kilted' if installed != 'kilted' else 'jazzy'
    assert levels(rclpy_findings(fast, {'ROS_DISTRO': installed})) == [
        ('ok', 'rclpy'),
        ('ok', 'RMW'),
    ]
    if installed:
        [finding, _] = rclpy_findings(fast, {'ROS_DISTRO': other})
        assert finding.level == 'warn'


# Traffic.


def image(stamp=0, size=(64, 64)):
    message = STORE.types['sensor_msgs/msg/Image']
    header = STORE.types['std_msgs/msg/Header']
    time = STORE.types['builtin_interfaces/msg/Time']
    empty = message(header(time(0, 0), ''), 0, 0, '', 0, 0, np.zeros(0, np.uint8))
    filled = fill_image(empty, np.zeros((*size, 3), np.uint8), stamp, 'optical')
    filled.data = np.frombuffer(filled.data, np.uint8)
    return bytes(STORE.serialize_cdr(filled, 'sensor_msgs/msg/Image'))


def state(joints=CONTRACT.state.joints, positions=None, stamp=0):
    header = STORE.types['std_msgs/msg/Header']
    time = STORE.types['builtin_interfaces/msg/Time']
    positions = np.zeros(len(joints)) if positions is None else np.array(positions, float)
    message = STORE.types['sensor_msgs/msg/JointState'](
        header(time(0, 0), ''), list(joints), positions, np.zeros(0), np.zeros(0)
    )
    set_stamp(message.header.stamp, stamp)
    return bytes(STORE.serialize_cdr(message, 'sensor_msgs/msg/JointState'))


def command(joints):
    kind = 'trajectory_msgs/msg/JointTrajectory'
    header = STORE.types['std_msgs/msg/Header']
    time = STORE.types['builtin_interfaces/msg/Time']
    duration = STORE.types['builtin_interfaces/msg/Duration']
    none = np.zeros(0)
    point = STORE.types['trajectory_msgs/msg/JointTrajectoryPoint'](
        none, none, none, none, duration(0, 0)
    )
    message = STORE.types[kind](header(time(0, 0), ''), [], [])
    action = replace(CONTRACT.action, joints=joints)
    fill_command(message, point, action, np.zeros(len(joints)), 0.1)
    point.positions = np.array(point.positions)
    return bytes(STORE.serialize_cdr(message, kind))


LISTENING = Listening(3.0, 3.0)
WELL = {
    CAMERA.topic: Heard(30, 0, 10.0, 0.1, 0.01, image()),
    STATE.topic: Heard(30, 0, 10.0, 0.1, 0.01, state()),
}


def judge(need=None, *, contract=CONTRACT, listening=LISTENING, published=(), **heard):
    """Findings about one topic, of a robot that is well but for what is given of it."""
    changed = dict(WELL)
    if need is not None:
        changed[need.topic] = replace(WELL.get(need.topic, Heard()), **heard)
    there = {n.topic: n.topic in WELL for n in WANTED} | dict(published)
    return [
        f
        for f in check_traffic(contract, WANTED, changed, there, listening)
        if need is None or f.subject == need.topic
    ]


def test_traffic_as_the_contract_has_it_is_well():
    assert [str(finding) for finding in judge()] == [
        f'{CAMERA.topic}: 64x64 rgb8 at 10 Hz, stamped 10 ms ago',
        f'{STATE.topic}: 7 joints at 10 Hz, stamped 10 ms ago',
    ]


def test_traffic_is_summed_up():
    traffic = Traffic(STATE)
    assert traffic.heard() == Heard()
    traffic.add(state(), 0.0, SECOND)
    assert traffic.heard().rate is None
    traffic.clear()
    assert traffic.heard() == Heard(newest=state())
    for tick, late in ((0, 1), (1, 5), (4, 2)):
        stamp = (10 + tick) * SECOND
        traffic.add(state(stamp=stamp), float(tick), stamp + late * SECOND)
    traffic.lost = 2
    heard = traffic.heard()
    assert (heard.messages, heard.lost, heard.rate, heard.gap) == (3, 2, 0.5, 3.0)
    assert heard.delay == 2.0
    traffic.clear()
    traffic.add(state(stamp=0), 0.0, SECOND)
    assert traffic.heard().delay is None


@pytest.mark.parametrize(
    ('rate', 'expected'),
    [(7.5, 'warn'), (1.5, 'fail'), (7.8, 'ok'), (100.0, 'ok')],
)
def test_a_topic_below_its_rate_is_found(rate, expected):
    [finding] = judge(STATE, rate=rate)
    assert finding.level == expected
    assert expected == 'ok' or 'state.rate in the contract' in finding.remedy


def test_a_rate_of_its_own_counts():
    camera = replace(CONTRACT.cameras[0], rate=30.0)
    [finding] = judge(CAMERA, contract=replace(CONTRACT, cameras=(camera,)))
    assert 'comes at 10 Hz, expected 30' in finding.problem


def test_images_that_get_lost_mean_the_profile():
    [finding] = judge(CAMERA, rate=4.0, messages=12, lost=18)
    assert finding.level == 'warn'
    assert '18 of 30' in finding.problem
    assert 'Fast DDS profile' in finding.remedy


def test_a_pause_is_to_look_at():
    [finding] = judge(CAMERA, gap=0.6)
    assert finding.level == 'warn'
    assert 'silent for 0.60 s' in finding.problem


@pytest.mark.parametrize(
    ('delay', 'level', 'words'),
    [
        (0.2, 'ok', ''),
        (0.3, 'warn', '0.30 s behind'),
        (5.0, 'fail', '5.00 s behind'),
        (-5.0, 'fail', '5.00 s ahead of'),
    ],
)
def test_stamps_are_held_against_the_clock(delay, level, words):
    [finding] = judge(STATE, delay=delay)
    assert finding.level == level
    assert words in finding.problem
    assert level == 'ok' or 'state.stamp to receive' in finding.remedy
    received = replace(CONTRACT, state=replace(CONTRACT.state, stamp='receive'))
    assert judge(STATE, delay=delay, contract=received)[0].level == 'ok'


def test_a_publisher_that_is_silent_fails_unless_a_simulation_stands_still():
    [finding] = judge(STATE, newest=None, messages=0, rate=None)
    assert finding.level == 'fail'
    assert 'firewall' in finding.remedy
    still = Listening(3.0, 0.0, simulated=True)
    [finding] = judge(STATE, newest=None, messages=0, rate=None, listening=still)
    assert finding.level == 'warn'
    [finding] = judge(STATE, messages=0, rate=None, listening=still)
    assert finding.level == 'ok'


def test_one_message_is_no_rate():
    [finding] = judge(STATE, messages=1, rate=None)
    assert 'comes at 0.333 Hz, expected 10' in finding.problem


def test_content_that_cannot_be_used_fails():
    [finding] = judge(CAMERA, newest=image()[:-9])
    assert finding.level == 'fail'
    [finding] = judge(STATE, newest=state(['a', 'b'], [0.0, np.nan]))
    assert "position of joint 'b' is nan" in finding.problem
    depth = replace(CONTRACT.cameras[0], depth_range=(0.1, 1.0))
    [finding] = judge(CAMERA, contract=replace(CONTRACT, cameras=(depth,)))
    assert 'depth_range' in finding.problem


def test_images_smaller_than_the_policys_are_to_look_at():
    [finding] = judge(CAMERA, newest=image(size=(64, 32)))
    assert finding.level == 'warn'
    assert '32x64 rgb8, and the policy sees 64x64' in finding.problem


def test_degrees_are_noticed():
    degrees = [0.0, 0.0, 90.0, 0.0, 0.0, 0.0, 0.0]
    [finding] = judge(STATE, newest=state(positions=degrees))
    assert finding.level == 'warn'
    assert finding.problem == 'elbow at 90 is not in -0.2..2.6'
    assert 'rad' in finding.remedy


def test_the_sentence_is_said_back():
    def said(text):
        return bytes(STORE.serialize_cdr(STORE.types[SENTENCE.type](text), SENTENCE.type))

    [finding] = judge(SENTENCE, newest=said('tap the cube'))
    assert (finding.level, finding.problem) == ('ok', '"tap the cube"')
    assert judge(SENTENCE, newest=said(' '))[0].level == 'warn'
    assert judge(SENTENCE) == []
    [finding] = judge(SENTENCE, published={SENTENCE.topic: True})
    assert 'transient-local' in finding.remedy


def test_commands_are_read():
    assert judge(COMMAND) == []
    [finding] = judge(COMMAND, newest=command(CONTRACT.action.joints), messages=3, rate=1.0)
    assert finding.level == 'ok'
    [finding] = judge(COMMAND, newest=command(CONTRACT.action.joints[1:]))
    assert (finding.level, finding.subject) == ('fail', COMMAND.topic)
    assert "lacks joint 'shoulder_pan'" in finding.problem


def test_joint_names_are_those_of_the_newest_message():
    assert joint_names(WELL[STATE.topic], STATE.type) == CONTRACT.state.joints
    assert joint_names(Heard(), STATE.type) is None
    assert joint_names(Heard(newest=b'1'), STATE.type) is None


# Nodes.


def observed(*nodes, **changes):
    plain = Observed('/', nodes, Snapshot({}, {}), {}, Listening(3.0, 3.0))
    return replace(plain, **changes)


def bad(findings):
    return [f for f in findings if f.level != 'ok']


def test_names_that_are_there_twice_are_found():
    findings = bad(check_graph(observed('/policy', '/policy', '/a', '/a', '/b'), ()))
    assert levels(findings) == [('warn', '/a'), ('fail', '/policy')]
    assert '2 nodes' in findings[0].problem


def test_nodes_that_go_by_another_clock_are_found():
    publishers = {STATE.topic: (Endpoint('/arm', STATE.type, True, False),)}
    graph = observed(
        '/arm',
        '/rviz',
        '/sim',
        snapshot=Snapshot(publishers, {}),
        clocks=('/sim',),
        simulated={'/arm': False, '/rviz': False, '/sim': False, '/policy': True, '/hung': None},
    )
    findings = bad(check_graph(graph, [STATE.topic]))
    assert levels(findings) == [('warn', '/hung'), ('fail', '/arm'), ('warn', '/rviz')]
    findings = bad(check_graph(replace(graph, clocks=()), [STATE.topic]))
    assert levels(findings) == [('warn', '/hung'), ('fail', '/policy')]
    still = replace(graph, simulated={}, listening=Listening(3.0, 0.1, simulated=True))
    assert levels(bad(check_graph(still, ()))) == [('warn', '/clock')]


def test_what_does_not_fit_in_quality_is_passed_on():
    finding = Finding('warn', 'x', 'deadline')
    assert bad(check_graph(observed('/a', quality=(finding,)), ())) == [finding]


def relayed(listener=False):
    command = '/policy/command'
    kind = 'trajectory_msgs/msg/JointTrajectory'
    ends = {command: (Endpoint('/guard', kind, True, False),)} if listener else {}
    return Snapshot({command: (Endpoint('/policy', kind, True, False),)}, ends)


@pytest.mark.parametrize(
    ('graph', 'expected', 'words'),
    [
        (observed('/policy', snapshot=relayed()), [('fail', '/policy')], 'start the guard'),
        (observed('/policy'), [], ''),
        (
            observed('/policy', '/guard', source='policy', snapshot=relayed(listener=True)),
            [],
            '',
        ),
        (
            observed('/policy', '/guard', source='policy'),
            [('warn', '/policy')],
            'set guarded to true',
        ),
        (observed('/guard', source='policy'), [('warn', '/guard')], 'waits for a policy'),
        (observed('/guard', source='teleop'), [], ''),
        (observed('/guard', source='hold'), [('warn', '/guard')], 'call guard/policy'),
        (observed('/guard'), [('warn', '/guard')], 'does not say'),
        (observed('/left/policy', '/x'), [('warn', 'namespace')], '--namespace /left'),
    ],
)
def test_policy_and_guard_belong_together(graph, expected, words):
    findings = bad(check_nodes(graph))
    assert levels(findings) == expected
    assert words in ''.join(map(str, findings))


def test_lifecycle_states():
    states = {'/policy': 'inactive', '/arm': 'unconfigured', '/hung': None, '/well': 'active'}
    findings = bad(check_nodes(observed(*states, states=states)))
    assert levels(findings) == [('warn', '/arm'), ('warn', '/hung'), ('warn', '/policy')]
    assert 'lifecycle set /policy activate' in findings[2].remedy


def test_what_nodes_say_of_themselves():
    said = (
        Said('left/policy: policy', 2, 'no camera'),
        Said('left/recorder: disk', 1, 'slow'),
        Said('driver: motor', 2, 'hot'),
        Said('left/guard: guard', 0, 'guarding'),
    )
    findings = bad(check_nodes(observed('/left/policy', namespace='/left', diagnostics=said)))
    assert levels(findings) == [
        ('fail', 'left/policy: policy'),
        ('warn', 'left/recorder: disk'),
        ('warn', 'driver: motor'),
    ]
    assert 'complains: no camera' in findings[0].problem
