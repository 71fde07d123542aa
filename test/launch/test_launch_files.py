# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The launch files, run against stand-ins of launch and launch_ros, which PyPI does not have."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from qt_core.share import share_path
from qt_ros.graphs import FAST_DDS_VARIABLES, GRAPHS, STANDARD

LAUNCH = Path(__file__).resolve().parents[2] / 'launch'
NAMES = ('policy', 'teleop', 'record', 'sim', 'demo')
ACTIONS = ('DeclareLaunchArgument', 'OpaqueFunction', 'SetEnvironmentVariable', 'Shutdown')


def recorder(name):
    def __init__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs

    return type(name, (), {'__init__': __init__})


@pytest.fixture
def launch(monkeypatch):
    """What launch files see as `launch` and `launch_ros`: classes that keep their arguments."""
    modules = {
        'launch': ('LaunchDescription',),
        'launch.actions': ACTIONS,
        'launch_ros': (),
        'launch_ros.actions': ('Node', 'LifecycleNode'),
    }
    for name, classes in modules.items():
        module = ModuleType(name)
        for kind in classes:
            setattr(module, kind, recorder(kind))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, 'qt_ros.launching', raising=False)
    for variable in FAST_DDS_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    yield
    sys.modules.pop('qt_ros.launching', None)


def actions(name):
    path = LAUNCH / f'{name}.launch.py'
    spec = importlib.util.spec_from_file_location(f'{name}_launch', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (listed,) = module.generate_launch_description().args
    return listed


def of_kind(listed, kind):
    return [action for action in listed if type(action).__name__ == kind]


def started(listed, **given):
    """The node actions, with the arguments that a user gives and the declared defaults."""
    values = {a.args[0]: a.kwargs['default_value'] for a in of_kind(listed, ACTIONS[0])}
    (opaque,) = of_kind(listed, 'OpaqueFunction')
    context = SimpleNamespace(launch_configurations={**values, **given})
    return opaque.kwargs['function'](context)


@pytest.mark.usefixtures('launch')
@pytest.mark.parametrize('name', NAMES)
def test_arguments_are_those_of_the_graph(name):
    declared = of_kind(actions(name), 'DeclareLaunchArgument')
    assert [action.args[0] for action in declared] == list(GRAPHS[name].arguments)
    assert {action.args[0] for action in declared} >= set(STANDARD)
    for action in declared:
        assert isinstance(action.kwargs['default_value'], str)
        assert action.kwargs['description']
        choices = action.kwargs['choices']
        assert choices is None or action.kwargs['default_value'] in choices


@pytest.mark.usefixtures('launch')
@pytest.mark.parametrize('name', NAMES)
def test_nodes_are_the_processes_of_the_graph(name, tmp_path):
    given = {
        'namespace': 'left',
        'use_sim_time': 'true',
        'autostart': 'false',
        'log_level': 'debug',
        'contract': str(tmp_path / 'contract.yaml'),
        'checkpoint': str(tmp_path / 'checkpoint'),
    }
    nodes = started(actions(name), **given)
    processes = GRAPHS[name].processes_from_text(given)
    assert len(nodes) == len(processes) > 0
    for node, process in zip(nodes, processes, strict=True):
        assert type(node).__name__ == ('LifecycleNode' if process.lifecycle else 'Node')
        shutdown = node.kwargs.pop('on_exit')
        assert type(shutdown).__name__ == 'Shutdown'
        assert node.args == ()
        assert node.kwargs == {
            'package': 'qt_ros',
            'executable': process.executable,
            'name': process.name,
            'namespace': 'left',
            'parameters': [str(process.params_file), process.parameters],
            'remappings': [],
            'ros_arguments': ['--log-level', 'debug'],
            'output': 'screen',
            'sigterm_timeout': str(process.patience),
        }


@pytest.mark.usefixtures('launch')
def test_the_policy_starts_itself_unless_told_not_to(tmp_path):
    for given, expected in (({}, True), ({'autostart': 'false'}, False)):
        _, node = started(actions('policy'), checkpoint=str(tmp_path), **given)
        assert node.kwargs['parameters'][1]['autostart'] is expected


@pytest.mark.usefixtures('launch')
@pytest.mark.parametrize('name', NAMES)
def test_the_fast_dds_profile_is_set_before_any_node(name):
    listed = actions(name)
    variables = of_kind(listed, 'SetEnvironmentVariable')
    profile = str(share_path('config/fastdds.xml'))
    assert [action.args for action in variables] == [(v, profile) for v in FAST_DDS_VARIABLES]
    assert type(listed[-1]).__name__ == 'OpaqueFunction'


@pytest.mark.usefixtures('launch')
def test_there_is_one_launch_file_per_graph_that_a_user_starts():
    files = {path.name.removesuffix('.launch.py') for path in LAUNCH.glob('*.py')}
    assert files == set(NAMES) <= set(GRAPHS)
