# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
import yaml

from qt_core.contract import ContractError, RobotContract, differing_fields, require_same


@pytest.fixture
def content(contract):
    return yaml.safe_load(contract.to_text())


def load(content):
    return RobotContract.from_text(yaml.safe_dump(content), 'robot.yaml')


def put(content, path, value):
    *parents, last = path
    for key in parents:
        content = content[key]
    content[last] = value


def test_round_trip(contract):
    assert RobotContract.from_text(contract.to_text()) == contract


def test_the_shipped_contract_says_what_its_comments_say(contract):
    assert contract.period == pytest.approx(0.1)
    assert contract.action.bins % 2 == 1
    assert contract.action.dimensions == 7
    done = dataclasses.replace(contract.action, terminate=True)
    assert done.dimensions == 8


@pytest.mark.parametrize(
    ('path', 'value', 'message'),
    [
        (('action', 'joints', 2), 'elbow2', "action.joints names 'elbow2', which is not in state"),
        (('rate',), 0, 'rate is 0.0, expected 0 < rate <= 1000 Hz'),
        (('rate',), 'fast', "rate is 'fast', expected float"),
        (('cameras',), [], r'cameras is \[\], expected at least one camera'),
        (('cameras', 0, 'height'), 0, r'cameras\[0\].height is 0, expected 1..4096'),
        (('cameras', 0, 'width'), 10**9, r'cameras\[0\].width is 1000000000, expected 1..4096'),
        (('cameras', 0, 'type'), 'Image', r"cameras\[0\].type is 'Image', expected sensor_msgs"),
        (('cameras', 0, 'topic'), '/camera', 'expected a relative topic name'),
        (('state', 'max_age'), -1, 'state.max_age is -1.0, expected a positive number'),
        (('state', 'joints', 1), 'shoulder_pan', 'expected each joint named once'),
        (('action', 'mode'), 'jump', "action.mode is 'jump', expected delta or absolute or veloc"),
        (('action', 'type'), 'twist', "action.type is 'twist', expected joint_trajectory or mult"),
        (('action', 'bins'), 1, 'action.bins is 1, expected 2..4096'),
        (
            ('action', 'low', 0),
            0.2,
            r'action.low\[0\] is 0.2, expected less than action.high\[0\]',
        ),
        (('action', 'high'), [1.0], r'action.high is \[1.0\], expected 7 numbers'),
        (('action', 'low', 3), float('nan'), r'action.low\[3\] is nan, expected a finite number'),
        (
            ('action', 'companding'),
            'log',
            "action.companding is 'log', expected uniform or mu_law",
        ),
        (('safety', 'max_step', 6), 0, r'safety.max_step\[6\] is 0.0, expected a positive number'),
        (('safety', 'velocity'), 1, 'safety.velocity is not a field; allowed: position_low'),
    ],
)
def test_errors_name_the_field_the_value_and_what_is_allowed(content, path, value, message):
    put(content, path, value)
    with pytest.raises(ContractError, match=message) as error:
        load(content)
    assert str(error.value).startswith('robot.yaml: ')
    assert '\n' not in str(error.value)


def test_missing_field_is_named(content):
    del content['state']['topic']
    with pytest.raises(ContractError, match=r'state\.topic is missing'):
        load(content)


@pytest.mark.parametrize('text', ['', 'a: [', '- 1', 'name'])
def test_text_that_is_no_contract_is_one_line(text):
    with pytest.raises(ContractError) as error:
        RobotContract.from_text(text, 'x.yaml')
    assert str(error.value).startswith('x.yaml: ')
    assert '\n' not in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(ContractError, match='cannot be read'):
        RobotContract.load(tmp_path / 'none.yaml')


def test_differences_are_listed_by_field(contract):
    camera = dataclasses.replace(contract.cameras[0], width=96)
    other = dataclasses.replace(contract, rate=20.0, cameras=(camera,))
    assert differing_fields(contract, contract) == []
    assert differing_fields(contract, other) == [
        'rate: 10.0 != 20.0',
        'cameras[0].width: 64 != 96',
    ]
    with pytest.raises(
        ContractError, match=r'bag was made under another contract than config: ra'
    ):
        require_same(contract, other, 'config', 'bag')
