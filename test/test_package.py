# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The package as it is installed, and the layers inside it."""

import configparser
import re
import shutil
import stat
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

import qt_ros

ROOT = Path(__file__).resolve().parents[1]
NODES = (
    'policy_node',
    'guard_node',
    'teleop_node',
    'recorder_node',
    'simulator_node',
    'demonstrator_node',
)
LAUNCH_FILES = ('policy', 'teleop', 'record', 'sim', 'demo')
MANIFEST = ElementTree.parse(ROOT / 'package.xml').getroot()
# Not part of the message packages' names, but imported beside them.
ROS_PYTHON = {'rclpy', 'launch', 'launch_ros'}


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp('source')
    for folder in ('qt_core', 'qt_ros', 'launch', 'config', 'resource'):
        ignore = shutil.ignore_patterns('__pycache__')
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for name in ('setup.py', 'setup.cfg', 'pyproject.toml', 'package.xml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source)
    built = tmp_path_factory.mktemp('wheel')
    command = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', str(built)]
    subprocess.run([*command, '--no-build-isolation', str(source)], check=True)
    with zipfile.ZipFile(next(built.glob('qt_ros-*.whl'))) as archive:
        yield archive


def test_the_manifest_is_one_that_colcon_accepts():
    assert MANIFEST.get('format') == '3'
    assert MANIFEST.findtext('name') == 'qt_ros'
    assert re.fullmatch(r'\d+\.\d+\.\d+', MANIFEST.findtext('version'))
    assert MANIFEST.findtext('license') == 'Apache-2.0'
    assert MANIFEST.findtext('export/build_type') == 'ament_python'
    # colcon takes a package with an invalid address for plain Python, without a word.
    email = MANIFEST.find('maintainer').get('email')
    assert re.fullmatch(
        r'[-a-zA-Z0-9_%+]+(\.[-a-zA-Z0-9_%+]+)*@[-a-zA-Z0-9%]+(\.[-a-zA-Z0-9]+)+', email
    )
    assert 'nothing to do with the Qt toolkit' in MANIFEST.findtext('description')
    assert (
        'http://download.ros.org/schema/package_format3.xsd' in (ROOT / 'package.xml').read_text()
    )


def test_every_ros_package_that_is_imported_is_a_dependency():
    declared = {element.text for element in MANIFEST.findall('exec_depend')}
    sources = '\n'.join(path.read_text() for path in (ROOT / 'qt_ros').rglob('*.py'))
    imported = set(
        re.findall(r'^\s*(?:from|import) (\w+(?:_msgs|_srvs|_interfaces))\b', sources, re.M)
    )
    imported |= set(re.findall(r"'(\w+_msgs)/msg/\w+'", sources))
    assert imported
    assert imported | ROS_PYTHON <= declared


def test_the_version_is_one_everywhere(wheel):
    metadata = wheel.read(next(n for n in wheel.namelist() if n.endswith('/METADATA'))).decode()
    assert MANIFEST.findtext('version') == qt_ros.__version__
    assert f'\nVersion: {qt_ros.__version__}\n' in metadata
    assert f'## {qt_ros.__version__}' in (ROOT / 'CHANGELOG.md').read_text()


def test_the_wheel_holds_what_ros2_launch_and_ros2_run_look_for(wheel):
    data = f'qt_ros-{qt_ros.__version__}.data/data/'
    names = set(wheel.namelist())
    assert data + 'share/ament_index/resource_index/packages/qt_ros' in names
    assert data + 'share/qt_ros/package.xml' in names
    for name in LAUNCH_FILES:
        assert f'{data}share/qt_ros/launch/{name}.launch.py' in names
    for path in (ROOT / 'config').rglob('*'):
        if path.suffix in ('.yaml', '.xml', '.urdf', '.safetensors', '.json'):
            assert f'{data}share/qt_ros/{path.relative_to(ROOT)}' in names
    for node in NODES:
        program = wheel.getinfo(f'{data}lib/qt_ros/{node}')
        assert wheel.read(program).startswith(b'#!/usr/bin/env python3\n')
        assert program.external_attr >> 16 & stat.S_IXUSR
        assert f'from qt_ros.nodes.{node} import main' in wheel.read(program).decode()


def test_the_wheel_holds_every_module_and_program(wheel):
    names = set(wheel.namelist())
    for package in ('qt_core', 'qt_ros'):
        assert f'{package}/py.typed' in names
        for module in (ROOT / package).rglob('*.py'):
            if '__pycache__' not in module.parts:
                assert str(module.relative_to(ROOT)) in names
    assert not [name for name in names if name.startswith(('test/', 'docs/', 'bench/'))]
    scripts = configparser.ConfigParser()
    scripts.read_string(
        wheel.read(next(n for n in names if n.endswith('/entry_points.txt'))).decode()
    )
    assert scripts['console_scripts']['qt-ros'] == 'qt_ros.cli.main:main'
    assert set(NODES) <= set(scripts['console_scripts'])


def test_an_installed_package_finds_its_files(wheel, tmp_path):
    """Like pip does: modules to site-packages, data below the prefix; no ROS, no checkout."""
    site = tmp_path / 'lib/python3/site-packages'
    data = f'qt_ros-{qt_ros.__version__}.data/data/'
    for name in wheel.namelist():
        target = tmp_path / name.removeprefix(data) if name.startswith(data) else site / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(wheel.read(name))
    script = """
    from qt_core.share import share_path
    print(share_path('config/contracts/tabletop.yaml'))
    try:
        share_path('config/absent.yaml')
    except FileNotFoundError as error:
        print('absent:', error)
    """
    lines = _python(script, cwd=site).splitlines()
    assert lines[0] == str(tmp_path / 'share/qt_ros/config/contracts/tabletop.yaml')
    assert lines[1].startswith('absent: config/absent.yaml is not in share/qt_ros')


def test_setup_cfg_tells_colcon_where_programs_go():
    content = configparser.ConfigParser()
    content.read(ROOT / 'setup.cfg')
    assert content['develop']['script_dir'] == '$base/lib/qt_ros'
    assert content['install']['install_scripts'] == '$base/lib/qt_ros'
    assert content['build_scripts']['executable'] == '/usr/bin/env python3'


def test_tool_settings_leave_the_metadata_to_setup_py():
    assert 'project' not in tomllib.loads((ROOT / 'pyproject.toml').read_text())


def test_the_parameter_file_names_nodes_of_the_graphs():
    nodes = yaml.safe_load((ROOT / 'config/nodes.yaml').read_text())
    assert {name.removeprefix('/**/') + '_node' for name in nodes} == set(NODES)


@pytest.mark.parametrize(
    ('package', 'blocked'),
    [
        ('qt_core', ('rclpy', 'rosbags', 'qt_ros', 'launch', 'launch_ros')),
        ('qt_ros', ('rclpy', 'launch', 'launch_ros')),
    ],
)
def test_layers(package, blocked):
    """Everything imports on a machine without ROS, but the nodes and the launch translator."""
    exempt = ('qt_ros.nodes.', 'qt_ros.launching', 'qt_ros.__main__')
    script = f"""
    import importlib, importlib.abc, pkgutil, sys

    class Absent(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            top = name.partition('.')[0]
            if top in {blocked!r} or top.endswith(('_msgs', '_srvs', '_interfaces')):
                raise ModuleNotFoundError(f'{{name}} is blocked', name=name)

    sys.meta_path.insert(0, Absent())
    import {package}

    def fail(name):
        raise

    count = 0
    for module in pkgutil.walk_packages({package}.__path__, '{package}.', onerror=fail):
        if not module.name.startswith({exempt!r}):
            importlib.import_module(module.name)
            count += 1
    print(count)
    """
    assert int(_python(script, cwd=ROOT)) > 15


def test_help_is_quick_because_nothing_heavy_is_imported():
    script = """
    import contextlib, sys
    from qt_ros.cli.main import main
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(None):
        main(['--help'])
    print([name for name in ('torch', 'rclpy', 'mujoco', 'cv2', 'rosbags') if name in sys.modules])
    """
    assert _python(script, cwd=ROOT).strip() == '[]'


def _python(script, cwd):
    result = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(script)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
