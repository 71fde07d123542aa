# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What every node of this package shares: parameters, QoS, start and end of the process."""

from __future__ import annotations

import importlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String

from qt_core.contract import RobotContract
from qt_ros.diagnostics import Status

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
COMMAND = QoSProfile(depth=1)
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SENSOR = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
# Warnings of incompatible QoS come from the check of the graph; rclpy's own cost every wait.
QUIET = SubscriptionEventCallbacks(use_default_callbacks=False)
QUIET_PUBLISHER = PublisherEventCallbacks(use_default_callbacks=False)


@dataclass(frozen=True)
class Parameter:
    """One parameter: its name, default, what it means, and the range of a number."""

    name: str
    default: Any
    description: str
    low: float | None = None
    high: float | None = None
    read_only: bool = True


def declare(node: Node, parameters: Sequence[Parameter]) -> None:
    """Declare parameters with descriptions and ranges."""
    for parameter in parameters:
        descriptor = ParameterDescriptor(
            description=parameter.description, read_only=parameter.read_only
        )
        if parameter.low is not None and parameter.high is not None:
            if isinstance(parameter.default, int):
                low, high = int(parameter.low), int(parameter.high)
                descriptor.integer_range = [IntegerRange(from_value=low, to_value=high)]
            else:
                low_, high_ = float(parameter.low), float(parameter.high)
                descriptor.floating_point_range = [
                    FloatingPointRange(from_value=low_, to_value=high_)
                ]
        node.declare_parameter(parameter.name, parameter.default, descriptor)


def load_contract(node: Node) -> RobotContract:
    """Load the file that the `contract` parameter names.

    Raises:
        ValueError: It names none, or the file is not a valid contract.
    """
    path = node.get_parameter('contract').value
    if not path:
        raise ValueError(f"contract is not set: give {node.get_name()} the robot's contract file")
    return RobotContract.load(path)


def subscribe_instruction(
    node: Node, topic: str, callback: Callable[[Any], None], *, raw: bool = False
) -> list[Any]:
    """Subscribe to sentences, latched or not: `callback` may get the same message twice.

    `ros2 topic pub` is volatile, which a transient-local subscription never matches.
    """
    return [
        node.create_subscription(String, topic, callback, qos, raw=raw, event_callbacks=QUIET)
        for qos in (LATCHED, QoSProfile(depth=1))
    ]


def message_class(name: str) -> Any:
    """Import a message class by its ROS name, such as `sensor_msgs/msg/Image`."""
    package, _, kind = name.split('/')
    return getattr(importlib.import_module(f'{package}.msg'), kind)


def json_string(content: Any) -> String:
    """Wrap content as a std_msgs/String of JSON."""
    return String(data=json.dumps(content))


def diagnostic_array(node: Node, hardware: str, statuses: Sequence[Status]) -> DiagnosticArray:
    """Make a message for /diagnostics (REP 107); names begin with the node's, namespace included.

    Args:
        node: Who speaks.
        hardware: Name of the robot.
        statuses: What it says.
    """
    name = node.get_fully_qualified_name().lstrip('/')
    array = DiagnosticArray(
        status=[
            DiagnosticStatus(
                name=f'{name}: {status.name}',
                hardware_id=hardware,
                level=bytes([status.level]),
                message=status.message,
                values=[KeyValue(key=key, value=value) for key, value in status.values.items()],
            )
            for status in statuses
        ]
    )
    array.header.stamp = node.get_clock().now().to_msg()
    return array


def run_node(make: Callable[[], Node], finish: Callable[[Any], None] = lambda node: None) -> int:
    """Run a node until Ctrl-C, SIGTERM or shutdown.

    Args:
        make: Builds the node; what is the user's to mend becomes one line and exit code 1.
        finish: Called with the node while the context is still valid, to say the last word.

    Returns:
        The process's exit code.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    try:
        # Ctrl-C must leave the context valid long enough for the stop command.
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:  # a parameter file or a remapping that rcl cannot parse
        return _refuse(error)
    try:
        node = make()
    except (ValueError, OSError, ParameterException, NameValidationException) as error:
        return _refuse(error)
    except KeyboardInterrupt:
        rclpy.try_shutdown()
        return 0
    try:
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        # From here on only noted: an exception in the midst of a callback would surface as
        # whatever a library that it passes through makes of it.
        stopped = threading.Event()
        for number in STOP_SIGNALS:
            signal.signal(number, lambda *_: stopped.set())
        while rclpy.ok() and not stopped.is_set():
            executor.spin_once(timeout_sec=0.2)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        finish(node)
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


def _refuse(error: Exception) -> int:
    print(f'qt-ros: {" ".join(str(error).split())}', file=sys.stderr, flush=True)
    rclpy.try_shutdown()
    return 1
