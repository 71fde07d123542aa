# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from qt_core.share import share_path
from qt_ros.graphs import (
    FAST_DDS_VARIABLES,
    GRAPHS,
    STANDARD,
    ArgumentError,
    environment,
)


@pytest.fixture
def checkpoint(tmp_path):
    return str(tmp_path / 'checkpoint')


def by_name(processes):
    return {process.name: process for process in processes}


@pytest.mark.parametrize(
    ('graph', 'names'),
    [
        ('policy', ['guard', 'policy']),
        ('teleop', ['guard', 'recorder']),
        ('record', ['recorder']),
        ('sim', ['simulator']),
        ('demo', ['simulator', 'policy', 'recorder']),
        ('collect', ['simulator', 'demonstrator', 'recorder']),
    ],
)
def test_each_graph_has_its_nodes_in_one_namespace(graph, names):
    arguments = {'contract': 'robot.yaml', 'checkpoint': 'trained', 'namespace': 'left'}
    processes = GRAPHS[graph].processes(**arguments)
    assert [process.name for process in processes] == names
    for process in processes:
        assert process.executable == f'{process.name}_node'
        assert process.namespace == 'left'
        assert process.parameters['contract'] == 'robot.yaml'
        assert process.params_file == share_path('config/nodes.yaml')
        assert process.lifecycle == (process.name == 'policy')


def test_simulated_graphs_follow_the_clock_that_the_simulator_makes(checkpoint):
    processes = by_name(GRAPHS['demo'].processes(checkpoint=checkpoint))
    assert {n: p.parameters['use_sim_time'] for n, p in processes.items()} == {
        'simulator': False,
        'policy': True,
        'recorder': True,
    }
    for process in GRAPHS['policy'].processes(checkpoint=checkpoint):
        assert process.parameters['use_sim_time'] is False
    for process in GRAPHS['policy'].processes(checkpoint=checkpoint, use_sim_time=True):
        assert process.parameters['use_sim_time'] is True


def test_the_policy_answers_each_simulated_observation_but_is_left_alone_on_a_robot(checkpoint):
    policy = by_name(GRAPHS['demo'].processes(checkpoint=checkpoint))['policy']
    assert policy.parameters['trigger'] == 'observation'
    assert policy.parameters['stamp_commands'] is True
    _, policy = GRAPHS['policy'].processes(checkpoint=checkpoint)
    assert set(policy.parameters) == {'use_sim_time', 'checkpoint', 'autostart', 'guarded'}


def test_the_guard_has_the_contract_of_the_policy_unless_there_is_none(checkpoint):
    guard, policy = GRAPHS['policy'].processes(checkpoint=checkpoint)
    assert guard.parameters['checkpoint'] == policy.parameters['checkpoint'] == checkpoint
    assert guard.parameters['source'] == 'policy'
    assert policy.parameters['guarded'] is True
    (policy,) = GRAPHS['policy'].processes(checkpoint=checkpoint, guard=False)
    assert 'guarded' not in policy.parameters


def test_a_rendered_picture_may_stand_still_unless_the_user_minds(checkpoint, tmp_path):
    params_file = tmp_path / 'mine.yaml'
    params_file.write_text('/**/policy: {ros__parameters: {frozen_after: 2.0}}')
    for arguments, expected in (
        ({}, None),
        ({'use_sim_time': True}, 0.0),
        ({'use_sim_time': True, 'params_file': str(params_file)}, None),
        ({'params_file': str(share_path('config/nodes.yaml')), 'use_sim_time': True}, 0.0),
    ):
        _, policy = GRAPHS['policy'].processes(checkpoint=checkpoint, **arguments)
        assert policy.parameters.get('frozen_after') == expected


@pytest.mark.parametrize(
    ('given', 'names'),
    [
        ({}, ['guard', 'recorder']),
        ({'input': 'keyboard'}, ['guard', 'recorder']),
        ({'input': 'joy', 'urdf': 'arm.urdf'}, ['guard', 'recorder', 'teleop']),
        ({'input': 'leader'}, ['guard', 'recorder', 'teleop']),
    ],
)
def test_a_person_drives_through_the_guard(given, names):
    processes = by_name(GRAPHS['teleop'].processes(contract='robot.yaml', **given))
    assert list(processes) == names
    assert processes['guard'].parameters['source'] == 'teleop'
    if 'teleop' in processes:
        asked = {k: v for k, v in processes['teleop'].parameters.items() if k in given}
        assert asked == given
    with pytest.raises(ArgumentError, match='contract is not set'):
        GRAPHS['teleop'].processes(**given)


def test_what_is_given_reaches_the_node_it_is_for():
    processes = by_name(
        GRAPHS['collect'].processes(
            output='bags/new', noise=0.5, seed=7, sentences='unseen', lock_step=False
        )
    )
    assert processes['recorder'].parameters['output'] == 'bags/new'
    assert processes['demonstrator'].parameters['noise'] == 0.5
    simulator = processes['simulator'].parameters
    assert (simulator['seed'], simulator['sentences']) == (7, 'unseen')
    assert simulator['lock_step'] is False


def test_collecting_is_in_lock_step_unless_told_otherwise():
    simulator = by_name(GRAPHS['collect'].processes())['simulator']
    assert simulator.parameters['lock_step'] is True
    assert simulator.parameters['contract'] == str(share_path('config/contracts/tabletop.yaml'))


def test_a_parameter_file_replaces_the_shipped_one_and_its_contract(tmp_path):
    params_file = tmp_path / 'mine.yaml'
    params_file.write_text('/**/recorder: {ros__parameters: {contract: robot.yaml}}')
    (recorder,) = GRAPHS['record'].processes(params_file=str(params_file))
    assert recorder.params_file == params_file
    assert 'contract' not in recorder.parameters


def test_a_copy_of_the_shipped_parameter_file_changes_nothing_else(tmp_path):
    params_file = tmp_path / 'mine.yaml'
    params_file.write_text(share_path('config/nodes.yaml').read_text())
    (given,) = GRAPHS['sim'].processes(params_file=str(params_file))
    (default,) = GRAPHS['sim'].processes()
    assert given.parameters == default.parameters
    assert 'contract' in given.parameters
    with pytest.raises(ArgumentError, match='contract is not set'):
        GRAPHS['record'].processes(params_file=str(params_file))


def test_a_policy_that_waits_to_be_activated_does_not_announce_itself(checkpoint):
    _, policy = GRAPHS['policy'].processes(checkpoint=checkpoint, autostart=False)
    assert policy.parameters['autostart'] is False
    assert not policy.announces
    (recorder,) = GRAPHS['record'].processes(contract='robot.yaml', autostart=False)
    assert recorder.announces
    (recorder,) = GRAPHS['record'].processes(contract='robot.yaml', log_level='warn')
    assert not recorder.announces


def test_every_graph_takes_the_standard_arguments():
    for graph in GRAPHS.values():
        assert graph.arguments[: len(STANDARD)] == STANDARD
        for option in graph.options:
            assert option.description.endswith('.')
            assert option.parse(option.default_text) == option.default


def test_arguments_as_text_mean_the_same():
    graph = GRAPHS['collect']
    texts = {
        'use_sim_time': 'False',
        'lock_step': 'true',
        'seed': '3',
        'noise': '0.25',
        'contract': '',
        'output': 'true',
        'of_another_graph': 'x',
    }
    assert graph.processes_from_text(texts) == graph.processes(
        use_sim_time=False, lock_step=True, seed=3, noise=0.25, output='true'
    )


@pytest.mark.parametrize(
    ('graph', 'texts', 'error'),
    [
        ('sim', {'seed': 'x'}, "seed is 'x', expected a value of type int"),
        ('sim', {'lock_step': 'maybe'}, "lock_step is 'maybe', expected true or false"),
        ('sim', {'use_sim_time': ''}, "use_sim_time is '', expected true or false"),
        ('sim', {'sentences': 'new'}, "sentences is 'new', expected train or unseen"),
        ('sim', {'log_level': 'loud'}, "log_level is 'loud', expected debug or info"),
        ('record', {}, "contract is not set; give the robot's contract file"),
        ('sim', {'params_file': 'none.yaml'}, "params_file is 'none.yaml', which is not a file"),
        ('sim', {'namespace': 'left-arm'}, "namespace is 'left-arm', expected letters, digits"),
    ],
)
def test_bad_arguments_are_named(graph, texts, error):
    with pytest.raises(ArgumentError, match=error):
        GRAPHS[graph].processes_from_text(texts)


def test_an_argument_of_another_graph_is_refused():
    with pytest.raises(ArgumentError, match='noise is not an argument; allowed: namespace, '):
        GRAPHS['sim'].processes(noise=0.5)


def test_the_profile_for_camera_images_is_set_unless_the_user_has_one():
    profile = str(share_path('config/fastdds.xml'))
    assert environment({}) == dict.fromkeys(FAST_DDS_VARIABLES, profile)
    first, second = FAST_DDS_VARIABLES
    assert environment({first: 'mine.xml'}) == {second: profile}


def test_only_where_the_simulator_stands_still_streams_need_no_rate():
    for graph in ('demo', 'collect'):
        recorder = by_name(GRAPHS[graph].processes())['recorder']
        assert recorder.parameters['start_gate'] == 'alive'
    (recorder,) = GRAPHS['record'].processes(contract='robot.yaml')
    assert {'start_gate', 'compression'}.isdisjoint(recorder.parameters)
    given = {'contract': 'robot.yaml', 'start_gate': 'alive', 'compression': 'none'}
    (recorder,) = GRAPHS['record'].processes_from_text(given)
    assert recorder.parameters['start_gate'] == 'alive'
    assert recorder.parameters['compression'] == 'none'
    with pytest.raises(ArgumentError, match="compression is 'gzip', expected zstd or none"):
        GRAPHS['record'].processes_from_text({**given, 'compression': 'gzip'})
