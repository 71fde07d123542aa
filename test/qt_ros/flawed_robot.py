# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A robot for the doctor: publishes the shipped contract's topics, with the faults it is told of.

Its only argument is JSON, what is to differ from `DEFAULTS`; it says `ready`, and ends with its
standard input.
"""

from __future__ import annotations

import json
import sys
import threading
import time

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock as SteadyClock
from rclpy.clock import ClockType
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from qt_core.contract import RobotContract
from qt_core.share import share_path
from qt_ros.conversions import fill_image, set_stamp

CONTRACT = RobotContract.load(share_path('config/contracts/tabletop.yaml'))
BEST_EFFORT = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
DEFAULTS = {
    'namespace': '',
    'camera': 'camera/image_raw',  # topic of the images
    'compressed': False,  # whether they are of the other type
    'encoding': 'rgb8',
    'joints': list(CONTRACT.state.joints),
    'position': 0.0,  # of every joint
    'offset': 0.0,  # s that the stamps of joint states are ahead
    'rates': [30.0, 30.0],  # Hz of images and of joint states
    'latched': False,  # whether the controller asks for latched commands
    'deadline': False,  # whether somebody asks for images at a guaranteed rate
    'sim_time': False,
    'policy': False,  # whether there is a policy too, without its guard, that is inactive
    'clock': False,  # whether a simulation runs beside it, at real time, since 1970
    'source': '',  # what a guard says, if there is one
}


def main():
    """Publish until standard input ends."""
    options = DEFAULTS | json.loads(sys.argv[1])
    rclpy.init()
    override = Parameter('use_sim_time', Parameter.Type.BOOL, options['sim_time'])
    node = rclpy.create_node(
        'robot', namespace=options['namespace'], parameter_overrides=[override]
    )
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    kind = CompressedImage if options['compressed'] else Image
    images = node.create_publisher(kind, options['camera'], BEST_EFFORT)
    states = node.create_publisher(JointState, 'joint_states', BEST_EFFORT)
    node.create_publisher(String, 'instruction', LATCHED).publish(String(data='tap the red cube'))
    qos = LATCHED if options['latched'] else QoSProfile(depth=1)
    node.create_subscription(JointTrajectory, 'joint_trajectory', lambda message: None, qos)
    if options['deadline']:
        qos = QoSProfile(
            depth=1, reliability=ReliabilityPolicy.BEST_EFFORT, deadline=Duration(seconds=1)
        )
        node.create_subscription(kind, options['camera'], lambda message: None, qos)
    picture = np.zeros((64, 64, 3), np.uint8)

    def show():
        if options['compressed']:
            images.publish(CompressedImage())
            return
        image = fill_image(Image(), picture, time.time_ns(), 'optical')
        image.encoding = options['encoding']
        images.publish(image)

    def measure():
        joints = options['joints']
        state = JointState(name=joints, position=[options['position']] * len(joints))
        set_stamp(state.header.stamp, time.time_ns() + round(1e9 * options['offset']))
        states.publish(state)

    steady = SteadyClock(clock_type=ClockType.STEADY_TIME)
    for rate, publish in zip(options['rates'], (show, measure), strict=True):
        node.create_timer(1 / rate, publish, clock=steady)
    if options['policy']:
        policy = LifecycleNode('policy')
        policy.create_publisher(JointTrajectory, '~/command', 1)
        policy.trigger_configure()
        executor.add_node(policy)
        diagnostics = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        status = DiagnosticStatus(
            name='policy: policy', level=DiagnosticStatus.ERROR, message='no joint states'
        )
        array = DiagnosticArray(status=[status])
        node.create_timer(0.5, lambda: diagnostics.publish(array), clock=steady)
    if options['clock']:
        world, begun = rclpy.create_node('world'), time.monotonic()
        clock = world.create_publisher(Clock, '/clock', 10)

        def tell():
            message = Clock()
            set_stamp(message.clock, round(1e9 * (time.monotonic() - begun + 1)))
            clock.publish(message)

        world.create_timer(0.02, tell, clock=steady)
        executor.add_node(world)
    if options['source']:
        guard = rclpy.create_node('guard')
        guard.create_subscription(JointTrajectory, 'policy/command', lambda message: None, 1)
        guard.create_publisher(JointTrajectory, 'joint_trajectory', 1)
        said = guard.create_publisher(String, '~/source', LATCHED)
        said.publish(String(data=options['source']))
        executor.add_node(guard)
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    print('ready', flush=True)
    while not ended.is_set():
        executor.spin_once(timeout_sec=0.2)


if __name__ == '__main__':
    main()
