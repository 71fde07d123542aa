# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros doctor` beside a robot in a process of its own, over DDS, and on poorer machines."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qt_core.contract import ContractError
from qt_core.share import share_path
from qt_ros.cli import doctor
from qt_ros.graphs import FAST_DDS_VARIABLES, ArgumentError

CONTRACT = share_path('config/contracts/tabletop.yaml')
CHECKPOINT = share_path('config/policies/reach')
ROOT = Path(__file__).parents[3]
CAMERA, STATE, COMMAND = '/camera/image_raw', '/joint_states', '/joint_trajectory'
PROGRAM = """
import argparse, sys
from qt_ros.cli import doctor
parser = argparse.ArgumentParser()
doctor.add_parser(parser.add_subparsers())
parsed = parser.parse_args(['doctor', *sys.argv[1:]])
sys.exit(parsed.run(parsed))
"""


@pytest.fixture
def robot(isolated):
    """Give what starts a robot with faults."""
    started = []

    def start(**faults):
        words = [sys.executable, '-m', 'test.qt_ros.flawed_robot', json.dumps(faults)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(words, stdin=pipe, stdout=pipe, cwd=ROOT))
        assert started[-1].stdout.readline() == b'ready\n'

    yield start
    for process in started:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


@pytest.fixture
def examine(monkeypatch, capsys, tmp_path):
    """Give what runs the doctor here: exit status and findings by group, as it printed them."""
    for name in FAST_DDS_VARIABLES:
        monkeypatch.setenv(name, str(share_path('config/fastdds.xml')))

    def run(*words):
        written = tmp_path / 'found.json'
        parser = argparse.ArgumentParser()
        doctor.add_parser(parser.add_subparsers())
        parsed = parser.parse_args(['doctor', '--seconds', '3', '--json', str(written), *words])
        status = parsed.run(parsed)
        printed = capsys.readouterr().out
        found = json.loads(written.read_text())
        for group in ('machine', 'graph', 'contract', 'nodes'):
            for finding in found.get(group, ()):
                assert f'{finding["subject"]}: ' in printed
                assert ' '.join(finding['remedy'].split()) in printed
        return status, found

    return run


def bad(found, *groups):
    """Findings as (level, subject, problem, remedy), those that are well left out."""
    findings = [f for group in groups for f in found[group] if f['level'] != 'ok']
    return [
        (f['level'], f['subject'], f['problem'], f['remedy'])
        for f in findings
        if 'was silent' not in f['problem']  # as this machine may be under other programs' load
    ]


def one(findings, level, subject, problem):
    """The remedy of the one finding that says so."""
    fitting = [f[3] for f in findings if f[:2] == (level, subject) and problem in f[2]]
    assert len(fitting) == 1, findings
    return fitting[0]


@pytest.mark.parametrize('prefix', ['', '/left'])
def test_a_healthy_robot_is_well(robot, examine, prefix):
    robot(namespace=prefix)
    status, found = examine('--contract', str(CONTRACT), '--namespace', prefix)
    assert bad(found, 'graph', 'contract', 'nodes') == []
    assert status == 0
    assert found['counts']['fail'] == 0
    lines = [f'{f["subject"]}: {f["problem"]}' for f in found['contract']]
    assert any(line.startswith(f'{prefix}{CAMERA}: 64x64 rgb8 at ') for line in lines)
    assert any(line.startswith(f'{prefix}{STATE}: 7 joints at ') for line in lines)
    assert f'{prefix}/instruction: "tap the red cube"' in lines
    assert f'nodes: 1: {prefix}/robot' in [
        f'{f["subject"]}: {f["problem"]}' for f in found['graph']
    ]


def test_wrong_type_lacking_joint_clocks_that_disagree_and_qos_are_found(robot, examine):
    joints = ['shoulder_pan', 'shoulder_lift', 'elbow', 'wrist_1', 'wrist_2', 'wrist_3', 'hand']
    robot(compressed=True, joints=joints, offset=-5.0, latched=True)
    status, found = examine('--checkpoint', str(CHECKPOINT))
    assert status == 1
    findings = bad(found, 'contract')
    remedy = one(findings, 'fail', CAMERA, 'type sensor_msgs/msg/CompressedImage, expected')
    assert 'set cameras[0].type to sensor_msgs/msg/CompressedImage' in remedy
    remedy = one(findings, 'fail', STATE, 'lacks gripper; it has shoulder_pan, ')
    assert 'name the joints in the contract' in remedy
    remedy = one(findings, 'fail', STATE, 's behind the clock here')
    assert 'synchronise the clocks' in remedy
    assert 'state.stamp to receive' in remedy
    remedy = one(findings, 'fail', COMMAND, '/robot hears nothing of')
    assert 'make the publisher transient-local or the subscription volatile' in remedy
    assert len(findings) == 4


def test_a_missing_camera_a_slow_arm_and_a_clock_that_stands_are_found(robot, examine):
    robot(camera='left/camera/image_raw', rates=[30.0, 1.0], sim_time=True, position=2.5)
    status, found = examine('--contract', str(CONTRACT))
    assert status == 1
    findings = bad(found, 'contract')
    remedy = one(findings, 'fail', CAMERA, 'nobody publishes')
    assert 'remap camera/image_raw:=/left/camera/image_raw' in remedy
    remedy = one(findings, 'fail', STATE, 'Hz, expected 10')
    assert 'set state.rate in the contract' in remedy
    assert 'publish rad' in one(findings, 'warn', STATE, 'shoulder_pan at 2.5 is not in -1.5..1.5')
    remedy = one(bad(found, 'graph'), 'fail', '/robot', 'use_sim_time is true')
    assert 'set use_sim_time to false' in remedy


def test_a_robot_that_does_not_follow_the_simulation_is_found(robot, examine):
    robot(clock=True)
    status, found = examine('--contract', str(CONTRACT))
    assert status == 1
    [finding] = bad(found, 'graph')
    assert finding[:3] == (
        'fail',
        '/robot',
        'use_sim_time is false, and /world publishes /clock',
    )
    # Rates and stamps are measured by the simulated clock, which only stamps disagree with.
    findings = bad(found, 'contract')
    assert [f[1] for f in findings] == [CAMERA, STATE]
    assert all('s ahead of the clock here' in f[2] for f in findings)


def test_a_policy_without_its_guard_and_what_it_complains_of_are_found(robot, examine):
    robot(policy=True, encoding='yuv422')
    status, found = examine('--contract', str(CONTRACT))
    assert status == 1
    one(bad(found, 'contract'), 'fail', CAMERA, "image encoding is 'yuv422', expected one of")
    findings = bad(found, 'nodes')
    remedy = one(findings, 'fail', '/policy', 'for a guard, and there is none')
    assert 'start the guard' in remedy
    assert 'lifecycle set /policy activate' in one(findings, 'warn', '/policy', 'inactive')
    one(findings, 'fail', 'policy: policy', 'complains: no joint states')


def test_a_guard_that_is_stopped_and_a_deadline_are_found(robot, examine):
    robot(policy=True, source='estop', deadline=True)
    _, found = examine('--contract', str(CONTRACT))
    findings = bad(found, 'nodes')
    assert 'qt-ros call guard/estop_reset' in one(findings, 'warn', '/guard', 'stopped')
    assert not [f for f in findings if 'there is none' in f[2]]
    [finding] = bad(found, 'graph')
    assert finding[:2] == ('warn', CAMERA)
    assert '/robot hears nothing of /robot: ' in finding[2]
    assert 'deadline' in finding[2]


def test_without_a_contract_and_a_robot_it_says_so(isolated, examine):
    status, found = examine()
    assert status == 1
    assert 'ROS_DOMAIN_ID' in one(bad(found, 'graph'), 'fail', 'nodes', 'none is seen')
    assert '--contract' in one(bad(found, 'contract'), 'warn', 'contract', 'none given')


@pytest.mark.parametrize(
    ('lacking', 'subject', 'remedy'),
    [
        ('rclpy', 'rclpy', "pip install 'qt_ros[ros]'"),
        ('torch', 'torch', 'pip install torch'),
        ('cv2', 'opencv', 'pip install opencv-python'),
    ],
)
def test_a_machine_that_lacks_something_is_told_so(isolated, tmp_path, lacking, subject, remedy):
    blocked = tmp_path / 'blocked' / lacking
    blocked.mkdir(parents=True)
    (blocked / '__init__.py').write_text(
        f"raise ModuleNotFoundError('No module named {lacking}', name='{lacking}')\n"
    )
    words = ['--contract', str(CONTRACT), '--seconds', '0.5', '--json', str(tmp_path / 'found')]
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM, *words],
        env={**os.environ, 'PYTHONPATH': f'{blocked.parent}:{ROOT}'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    found = json.loads((tmp_path / 'found').read_text())
    [finding] = [f for f in found['machine'] if f['level'] == 'fail']
    assert finding['subject'] == subject
    assert lacking in finding['problem']
    assert remedy in finding['remedy']
    # The rest is looked at all the same.
    assert {'python', 'clock', 'rclpy', 'torch'} <= {f['subject'] for f in found['machine']}
    assert len(found['graph']) >= 1


def test_a_middleware_that_is_not_installed_is_a_finding(isolated, monkeypatch, examine):
    monkeypatch.setenv('RMW_IMPLEMENTATION', 'rmw_nobody_cpp')
    status, found = examine('--contract', str(CONTRACT))
    assert status == 1
    remedy = one(bad(found, 'machine'), 'fail', 'rclpy', 'rmw_nobody_cpp')
    assert remedy == 'install rmw_nobody_cpp, or unset RMW_IMPLEMENTATION'
    assert bad(found, 'graph')[0][0] == 'warn'


def test_bad_input_is_an_error_of_one_line(isolated, examine, tmp_path):
    with pytest.raises(ContractError, match=r'nowhere\.yaml'):
        examine('--contract', str(tmp_path / 'nowhere.yaml'))
    (tmp_path / 'config.json').write_text('{}')
    with pytest.raises(ContractError, match='holds no contract'):
        examine('--checkpoint', str(tmp_path))
    with pytest.raises(ArgumentError, match="namespace is 'a b'"):
        examine('--namespace', 'a b')
    with pytest.raises(SystemExit):
        examine('--seconds', '0')
