# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros up` with real nodes over DDS."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from qt_core.share import share_path
from qt_ros.graphs import GRAPHS
from qt_ros.up import ProcessError, command, running

ISOLATED = {'ROS_DOMAIN_ID': '53', 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'not in time'
        time.sleep(0.05)


class Up:
    """`qt-ros up` as a user runs it; collects what it prints."""

    def __init__(self, *words):
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'qt_ros', 'up', *words],
            env={**os.environ, **ISOLATED},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines = []

    def read_until(self, text):
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            if text in line:
                return
        raise AssertionError(f'{text!r} not printed: {self.lines}')

    def children(self):
        """Process ids of the nodes by node name, from the operating system."""
        listed = subprocess.run(
            ['ps', '-o', 'pid=,args=', '--ppid', str(self.process.pid)],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        found = re.findall(r'^\s*(\d+) .*qt_ros\.nodes\.(\w+)_node', listed, re.M)
        return {name: int(pid) for pid, name in found}

    def finish(self):
        rest = self.process.communicate(timeout=30)[1]
        self.lines += rest.splitlines()
        return self.process.returncode


@pytest.fixture
def up():
    started = []

    def start(*words):
        started.append(Up(*words))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.terminate()
            one.process.communicate(timeout=30)


def test_starts_reports_readiness_and_one_ctrl_c_ends_all(up, tmp_path):
    graph = up('collect', '--output', str(tmp_path), '--namespace', 'left')
    graph.read_until('qt-ros: simulator, demonstrator, recorder ready; Ctrl-C ends')
    for name in ('simulator', 'demonstrator', 'recorder'):
        ready = re.compile(rf'^\[{name}\] .*\[left\.{name}\]: {name} ready$')
        assert any(ready.match(line) for line in graph.lines), graph.lines
    children = graph.children()
    assert set(children) == {'simulator', 'demonstrator', 'recorder'}
    # The terminal sends Ctrl-C to the foreground group; the nodes are not in it.
    assert all(os.getpgid(pid) == pid for pid in children.values())
    graph.process.send_signal(signal.SIGINT)
    assert graph.finish() == 130
    assert not [name for name, pid in children.items() if alive(pid)]
    assert not [line for line in graph.lines if 'Traceback' in line], graph.lines


def test_a_dead_child_is_reported_and_ends_the_others(up, tmp_path):
    graph = up('collect', '--output', str(tmp_path))
    graph.read_until('Ctrl-C ends')
    children = graph.children()
    os.kill(children['recorder'], signal.SIGKILL)
    assert graph.finish() == 1
    assert graph.lines[-1] == 'qt-ros: recorder was ended by SIGKILL'
    assert not [name for name, pid in children.items() if alive(pid)]


def test_a_node_that_cannot_start_is_reported_with_its_own_line(up, tmp_path):
    contract = tmp_path / 'robot.yaml'
    contract.write_text('name: robot\n')
    graph = up('record', '--contract', str(contract))
    assert graph.finish() == 1
    assert re.fullmatch(
        rf'qt-ros: recorder exited with code 1: .*{re.escape(str(contract))}: .* is missing',
        graph.lines[-1],
    )


def test_sigterm_ends_the_nodes_too(up):
    graph = up('sim')
    graph.read_until('Ctrl-C ends')
    children = graph.children()
    graph.process.terminate()
    assert graph.finish() == 128 + signal.SIGTERM
    assert not alive(children['simulator'])


def no_answer(kill):
    """A block that gives up on its graph, whose simulator may be dead by then."""
    with running(GRAPHS['sim'].processes(), variables=ISOLATED) as graph:
        graph.check()
        if kill:
            os.kill(graph.children[0].pid, signal.SIGKILL)
            wait_until(lambda: not graph.children[0].alive)
        raise TimeoutError('no answer')


def test_a_dead_process_explains_what_went_wrong_in_the_block(capfd):
    with pytest.raises(ProcessError, match=r'^simulator was ended by SIGKILL$'):
        no_answer(kill=True)
    with pytest.raises(TimeoutError, match=r'^no answer$'):
        no_answer(kill=False)
    assert 'simulator ready' not in capfd.readouterr().err


@pytest.mark.parametrize('namespace', ['', 'left'])
def test_what_is_given_wins_over_the_parameter_file(tmp_path, namespace):
    params_file = tmp_path / 'mine.yaml'
    params_file.write_text(
        '/**: {ros__parameters: {contract: absent.yaml}}\n'
        '/**/simulator: {ros__parameters: {contract: absent.yaml}}\n'
    )
    given = {'params_file': str(params_file), 'namespace': namespace}
    contract = str(share_path('config/contracts/tabletop.yaml'))
    with running(GRAPHS['sim'].processes(contract=contract, **given), variables=ISOLATED) as graph:
        graph.check()
    processes = GRAPHS['sim'].processes(**given)
    with (
        pytest.raises(ProcessError, match=r'simulator exited with code 1: .*absent\.yaml'),
        running(processes, variables=ISOLATED),
    ):
        pass


def test_a_process_that_is_not_ready_in_time_is_named_and_ended():
    with (
        pytest.raises(ProcessError, match=r'simulator not ready after 0\.01 s'),
        running(GRAPHS['sim'].processes(), ready_timeout=0.01, variables=ISOLATED),
    ):
        pass


def test_the_command_says_everything_that_the_graph_does(tmp_path):
    (process,) = GRAPHS['sim'].processes(namespace='/left/', seed=3, log_level='warn')
    words = command(process, tmp_path)
    written = tmp_path / 'left.simulator.yaml'
    assert words[1:] == [
        '-m',
        'qt_ros.nodes.simulator_node',
        '--ros-args',
        '-r',
        '__node:=simulator',
        '-r',
        '__ns:=/left',
        '--params-file',
        str(process.params_file),
        '--params-file',
        str(written),
        '--log-level',
        'warn',
    ]
    assert written.read_text().startswith('/left/simulator:\n  ros__parameters:\n')
    assert 'seed: 3' in written.read_text()
