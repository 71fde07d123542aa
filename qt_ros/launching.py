# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Turns a graph into launch actions; the one module that imports launch and launch_ros."""

from __future__ import annotations

import os
from typing import Any

from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    OpaqueFunction,
    SetEnvironmentVariable,
    Shutdown,
)
from launch_ros.actions import LifecycleNode, Node

from qt_ros.graphs import GRAPHS, Process, environment


def launch_description(name: str) -> LaunchDescription:
    """Describe the graph `name` for `ros2 launch`.

    The processes are listed when the launch arguments have their values, by the same function that
    `qt-ros up` calls.
    """
    declarations = [
        DeclareLaunchArgument(
            option.name,
            default_value=option.default_text,
            description=option.description,
            choices=_choices(option.choices, option.default_text),
        )
        for option in GRAPHS[name].options
    ]

    def start(context: Any) -> list[Any]:
        return node_actions(GRAPHS[name].processes_from_text(context.launch_configurations))

    variables = [SetEnvironmentVariable(*item) for item in environment(os.environ).items()]
    return LaunchDescription([*declarations, *variables, OpaqueFunction(function=start)])


def node_actions(processes: tuple[Process, ...]) -> list[Any]:
    """One node action per process; as with `qt-ros up`, the end of one is the end of all."""
    return [
        (LifecycleNode if process.lifecycle else Node)(
            package='qt_ros',
            executable=process.executable,
            name=process.name,
            namespace=process.namespace,
            parameters=[str(process.params_file), dict(process.parameters)],
            remappings=list(process.remappings),
            ros_arguments=['--log-level', process.log_level],
            output='screen',
            sigterm_timeout=str(process.patience),
            on_exit=Shutdown(reason=f'{process.name} has ended'),
        )
        for process in processes
    ]


def _choices(choices: tuple[str, ...], default: str) -> list[str] | None:
    # The default must be among them, and '' stands for "not set".
    return list(dict.fromkeys((default, *choices))) if choices else None
