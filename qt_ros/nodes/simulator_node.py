# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The embedded simulator on the ROS graph, in real time or in lock step."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from visualization_msgs.msg import Marker, MarkerArray

from qt_core.environments.demonstrator import BLOCK_SIZE
from qt_core.environments.tabletop import COLOURS, MAX_STEPS, SENTENCES, Tabletop
from qt_ros.conversions import (
    COMMAND_TYPES,
    ConversionError,
    command_targets,
    fill_image,
    nanoseconds,
    set_stamp,
)
from qt_ros.nodes.node_support import (
    COMMAND,
    LATCHED,
    Parameter,
    declare,
    json_string,
    load_contract,
    message_class,
    run_node,
)

PARAMETERS = (
    Parameter('contract', '', 'Contract file of the simulated arm.'),
    Parameter('task', 'reach', 'Task to simulate: reach.'),
    Parameter('seed', 0, 'Episode that the next ~/reset lays out.', 0, 2**31 - 1, read_only=False),
    Parameter(
        'sentences', 'train', 'Wordings of the sentences: train or unseen.', read_only=False
    ),
    Parameter('lock_step', False, 'Wait for the command that answers each observation.'),
    Parameter('camera_height', 128, 'Rows of the published image.', 16, 2048),
    Parameter('camera_width', 128, 'Columns of the published image.', 16, 2048),
    Parameter('max_steps', MAX_STEPS, 'Control steps until the episode times out.', 1, 100000),
)
RESEND_AFTER = 1.0  # s of wall time without an answer in lock step


class SimulatorNode(Node):
    """Publishes what the arm senses and does what it is commanded."""

    def __init__(self) -> None:
        super().__init__('simulator')
        declare(self, PARAMETERS)
        self.contract = load_contract(self)
        cameras = self.contract.cameras
        if len(cameras) != 1 or cameras[0].type != 'sensor_msgs/msg/Image':
            raise ValueError(
                f'the simulator has one camera of sensor_msgs/msg/Image, but contract '
                f'{self.contract.name} asks for {", ".join(c.type for c in cameras)}'
            )
        self.simulation = Tabletop(self.contract, task=self._value('task'))
        self.lock_step = self._value('lock_step')
        self.size = (self._value('camera_height'), self._value('camera_width'))
        self.max_steps = self._value('max_steps')
        action, camera = self.contract.action, self.contract.cameras[0]
        self.images = self.create_publisher(Image, camera.topic, 5)
        info = camera.topic.rpartition('/')[0]
        self.infos = self.create_publisher(CameraInfo, f'{info}/camera_info'.lstrip('/'), 5)
        self.joints = self.create_publisher(JointState, self.contract.state.topic, 10)
        self.clocks = self.create_publisher(Clock, '/clock', 10)
        self.blocks = self.create_publisher(MarkerArray, '~/blocks', LATCHED)
        self.episodes = self.create_publisher(String, '~/episode', LATCHED)
        kind = message_class(COMMAND_TYPES[action.type])
        self.create_subscription(kind, action.topic, self.on_command, COMMAND)
        self.create_service(Trigger, '~/reset', self.on_reset)
        self.create_service(Trigger, '~/start', self.on_start)
        self.create_service(Trigger, '~/success', self.on_success)
        self.period = round(1e9 * self.contract.period)
        self.stamp = self.period  # never 0, which would mean "no stamp"
        self.ticks = 0
        self.state = 'ready'
        self.targets = self._measured()
        self.reset()
        if self.lock_step:
            self.create_timer(RESEND_AFTER, self.resend)
        else:
            self.create_timer(self.contract.period, self.tick)
        self.get_logger().info('simulator ready')

    def reset(self) -> dict[str, Any]:
        """Lay out the episode of the `seed` parameter.

        Raises:
            ValueError: The `sentences` parameter is not one of `SENTENCES`.
        """
        sentences = self._value('sentences')
        if sentences not in SENTENCES:
            raise ValueError(f'sentences is {sentences!r}, expected {" or ".join(SENTENCES)}')
        self.scene = self.simulation.reset(self._value('seed'), sentences=sentences)
        self.targets = self._measured()
        self.steps = 0
        self.latency: list[float] = []
        self.publish_blocks()
        self.publish_episode('ready')
        return {
            'seed': self.scene.seed,
            'instruction': self.scene.instruction,
            'target': self.scene.target,
            'published': self.ticks,
        }

    def on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Answer `~/reset`."""
        try:
            response.message, response.success = json.dumps(self.reset()), True
        except ValueError as error:
            response.message = str(error)
        return response

    def on_start(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Answer `~/start`: the episode begins with the next observation."""
        response.success = self.state == 'ready'
        if not response.success:
            response.message = f'the episode is {self.state}; call ~/reset first'
            return response
        self.steps = 0  # in real time, the arm was free to move before
        self.publish_episode('running')
        if self.lock_step:
            self.stamp += self.period
            self.publish_observation()
        return response

    def on_success(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Answer `~/success`: whether the named block has been touched first."""
        response.success = self.simulation.outcome == 'success'
        response.message = json.dumps({'outcome': self.state, 'target': self.scene.target})
        return response

    def on_command(self, message: Any) -> None:
        """Take a command; in lock step, the one that answers the observation moves time on."""
        try:
            targets = command_targets(message, self.contract.action)
        except ConversionError as error:
            self.get_logger().error(f'command ignored: {error}', throttle_duration_sec=1.0)
            return
        header = getattr(message, 'header', None)
        answered = nanoseconds(header.stamp) if header is not None else 0
        if not self.lock_step:
            self.targets = targets
            return
        if self.state != 'running' or answered not in (0, self.stamp):
            return
        self.latency.append(1e3 * (time.monotonic() - self.published))
        self.targets = targets
        self.step()
        self.publish_observation()
        self.judge()

    def tick(self) -> None:
        """Advance one control period in real time."""
        self.step()
        self.publish_observation()
        if self.state == 'running':
            self.judge()

    def step(self) -> None:
        """Advance the physics by one control period."""
        self.simulation.advance(self.targets)
        self.stamp += self.period
        self.steps += 1

    def judge(self) -> None:
        """End the episode when the task is over or time is out."""
        outcome = self.simulation.outcome
        if outcome != 'running':
            self.publish_episode(outcome)
        elif self.steps >= self.max_steps:
            self.publish_episode('timeout')

    def resend(self) -> None:
        """Repeat an observation that nobody answered: best-effort transport may lose one."""
        if self.state == 'running' and time.monotonic() - self.published > RESEND_AFTER:
            self.publish_observation()

    def publish_observation(self) -> None:
        """Publish clock, joints and image of the present moment, all with one stamp."""
        frame = self.simulation.render(*self.size)
        clock = Clock()
        set_stamp(clock.clock, self.stamp)
        state = JointState()
        set_stamp(state.header.stamp, self.stamp)
        positions, velocities = self.simulation.positions, self.simulation.velocities
        state.name = list(positions)
        state.position = list(positions.values())
        state.velocity = list(velocities.values())
        frame_id = f'{self.contract.cameras[0].name}_optical_frame'
        image = fill_image(Image(), frame, self.stamp, frame_id)
        self.published = time.monotonic()
        self.ticks += 1
        self.clocks.publish(clock)
        self.joints.publish(state)
        self.images.publish(image)
        self.infos.publish(self._camera_info(image))

    def publish_blocks(self) -> None:
        """Publish where the blocks lie; `text` names the seed they belong to."""
        markers = MarkerArray()
        for index, (colour, centre) in enumerate(self.scene.blocks.items()):
            marker = Marker(ns=colour, id=index, type=Marker.CUBE, text=str(self.scene.seed))
            marker.header.frame_id = 'base_link'
            set_stamp(marker.header.stamp, self.stamp)
            position = marker.pose.position
            position.x, position.y, position.z = centre
            marker.scale.x = marker.scale.y = marker.scale.z = BLOCK_SIZE
            rgb = COLOURS[colour]
            marker.color.r, marker.color.g, marker.color.b, marker.color.a = *rgb, 1.0
            markers.markers.append(marker)
        self.blocks.publish(markers)

    def publish_episode(self, state: str) -> None:
        """Publish how the episode stands."""
        self.state = state
        content = {
            'seed': self.scene.seed,
            'instruction': self.scene.instruction,
            'target': self.scene.target,
            'outcome': state,
            'steps': self.steps,
            'published': self.ticks,
        }
        if state in ('success', 'failure', 'timeout'):
            content['latency_ms'] = [round(x, 3) for x in self.latency]
        self.episodes.publish(json_string(content))

    def _camera_info(self, image: Image) -> CameraInfo:
        info = CameraInfo(header=image.header, height=image.height, width=image.width)
        focal = 0.5 * image.height / np.tan(np.deg2rad(self.simulation.fovy) / 2)
        cx, cy = image.width / 2, image.height / 2
        info.distortion_model = 'plumb_bob'
        info.d = [0.0] * 5
        info.k = [focal, 0.0, cx, 0.0, focal, cy, 0.0, 0.0, 1.0]
        info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        info.p = [focal, 0.0, cx, 0.0, 0.0, focal, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
        return info

    def _measured(self) -> np.ndarray:
        positions = self.simulation.positions
        return np.array([positions[joint] for joint in self.contract.action.joints])

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value


def main() -> None:
    """Run the node."""
    sys.exit(run_node(SimulatorNode))


if __name__ == '__main__':
    main()
