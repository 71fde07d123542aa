# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The recorder as a process of its own: every message published over DDS ends up in the bag."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'

import rclpy
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosbags.rosbag2 import Reader
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from qt_core.share import share_path
from qt_ros.bags import EpisodeBag, find_bags
from qt_ros.bags.converter import convert_episode
from qt_ros.conversions import fill_command, fill_image, set_stamp
from test.qt_ros.synthetic_bags import CONTRACT, START, STORE, draw_episode

PERIOD = 100_000_000
DEADLINE = 30.0  # s
SENSOR = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Robot:
    """A camera, an arm and a teleoperator in this process, and the recorder in another."""

    def __init__(self, output, domain, *, namespace='', arguments=(), camera='camera/image_raw'):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node('robot', namespace=namespace, context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.image = self.node.create_publisher(Image, camera, SENSOR)
        self.state = self.node.create_publisher(JointState, 'joint_states', SENSOR)
        self.command = self.node.create_publisher(JointTrajectory, 'joint_trajectory', 1)
        self.instruction = self.node.create_publisher(String, 'instruction', LATCHED)
        self.clients = {}
        self.status = {}
        self.node.create_subscription(String, 'recorder/status', self.on_status, LATCHED)
        contract = share_path('config/contracts/tabletop.yaml')
        self.recorder = subprocess.Popen(
            [
                *(sys.executable, '-m', 'qt_ros.nodes.recorder_node', '--ros-args'),
                *('-p', f'contract:={contract}', '-p', f'output:={output}'),
                *('-p', 'start_gate:=alive'),
                *('-r', f'__ns:=/{namespace}', *arguments),
            ],
            env={**os.environ, 'ROS_DOMAIN_ID': str(domain)},
            stderr=subprocess.PIPE,
            text=True,
        )

    def close(self):
        """End the recorder and leave the graph."""
        if self.recorder.poll() is None:
            self.recorder.kill()
            self.recorder.wait()
        self.recorder.stderr.close()
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self.context)

    def on_status(self, message):
        """Store what the recorder says of itself."""
        self.status = json.loads(message.data)

    def spin_until(self, done, what):
        """Spin until `done()`, or fail."""
        deadline = time.monotonic() + DEADLINE
        while not done():
            assert time.monotonic() < deadline, what
            assert self.recorder.poll() is None, self.recorder.stderr.read()
            self.executor.spin_once(timeout_sec=0.02)

    def call(self, name):
        """Call a service of the recorder."""
        if name not in self.clients:
            self.clients[name] = self.node.create_client(Trigger, f'recorder/{name}')
            self.spin_until(self.clients[name].service_is_ready, f'no service {name}')
        future = self.clients[name].call_async(Trigger.Request())
        self.spin_until(future.done, f'{name} does not answer')
        return future.result()

    def start(self):
        """Start an episode as soon as the recorder lets us."""
        deadline = time.monotonic() + DEADLINE
        while not (answer := self.call('start')).success:
            assert time.monotonic() < deadline, answer.message
            self.executor.spin_once(timeout_sec=0.05)
        return json.loads(answer.message)

    def refused(self, says):
        """Wait until `start` is refused with this reason."""
        deadline = time.monotonic() + DEADLINE
        while says not in (answer := self.call('start')).message:
            assert time.monotonic() < deadline, answer.message
            if answer.success:
                self.call('discard')
            self.executor.spin_once(timeout_sec=0.05)

    def play(self, episode, first=0):
        """Publish an episode with stamps, without waiting for anybody."""
        for index in range(len(episode.frames)):
            now = START + (first + index) * PERIOD
            state = JointState(name=list(CONTRACT.state.joints))
            state.position = episode.positions[index].tolist()
            set_stamp(state.header.stamp, now)
            self.state.publish(state)
            self.image.publish(fill_image(Image(), episode.frames[index], now, 'optical'))
            if index < len(episode.targets):
                command = fill_command(
                    JointTrajectory(),
                    JointTrajectoryPoint(),
                    CONTRACT.action,
                    episode.targets[index],
                    0.1,
                    now,
                )
                self.command.publish(command)
            time.sleep(0.005)  # the pace of a fast simulator; nothing is waited for


@pytest.fixture
def robot(tmp_path):
    """Give what starts a robot and its recorder; ends both afterwards."""
    robots = []

    def start(**options):
        domain = 1 + (os.getpid() + len(robots)) % 100
        robots.append(Robot(tmp_path / 'bags', domain, **options))
        return robots[-1]

    yield start
    for started in robots:
        started.close()


def check(path, episode):
    """Compare a bag frame by frame and joint by joint with what was published."""
    converted, stale = convert_episode(EpisodeBag(path))
    assert stale == 0
    assert np.array_equal(converted.images['front'], episode.frames)
    assert np.array_equal(converted.state, episode.positions.astype(np.float32))
    assert np.allclose(converted.action, episode.targets - episode.positions[:-1], atol=1e-6)
    return converted


def test_episodes_equal_what_was_published(robot, tmp_path):
    arm = robot()
    arm.refused('no instruction received')
    arm.instruction.publish(String(data='touch the red block'))

    first = draw_episode(0, steps=25)
    answer = arm.start()
    assert answer['instruction'] == 'touch the red block'
    assert not arm.call('start').success
    arm.play(first)
    ended = json.loads(arm.call('success').message)
    assert ended == {'bag': answer['bag'], 'outcome': 'success'}
    converted = check(tmp_path / 'bags/episode_000000', first)
    assert converted.instruction == 'touch the red block'
    assert (converted.terminal, converted.reward.sum()) == (True, 1.0)
    record = EpisodeBag(tmp_path / 'bags/episode_000000').record
    counts = {count.name: count.messages for count in record.counts}
    assert counts == {
        'camera/image_raw': 26,
        'joint_states': 26,
        'joint_trajectory': 25,
        'instruction': 1,
    }
    assert record.dropped == 0

    second = draw_episode(1, steps=10)
    arm.start()
    arm.play(second, first=100)
    assert arm.call('discard').success
    assert not arm.call('success').success
    assert len(find_bags([tmp_path / 'bags'])) == 1

    third = draw_episode(2, steps=10)
    arm.start()
    arm.play(third, first=200)
    # The next sentence may come before the episode is ended; it belongs to the next one.
    arm.instruction.publish(String(data='touch the blue block'))
    assert arm.call('timeout').success
    record = EpisodeBag(tmp_path / 'bags/episode_000001').record
    assert record.instruction == 'touch the red block'
    assert (record.outcome, record.ended_by) == ('failure', 'timeout')

    arm.node.destroy_publisher(arm.image)
    arm.refused("nothing publishes '/camera/image_raw'")
    assert not list((tmp_path / 'bags').glob('*.partial'))


def test_a_sentence_said_once_by_someone_who_leaves_is_enough(robot, tmp_path):
    """As `ros2 topic pub --once` does: volatile, and gone before the episode starts."""
    arm = robot()
    arm.node.destroy_publisher(arm.instruction)
    arm.refused('no instruction received')
    passer_by = arm.node.create_publisher(String, 'instruction', 1)
    arm.spin_until(passer_by.get_subscription_count, 'nobody listens')
    passer_by.publish(String(data='tap the red cube'))
    arm.spin_until(lambda: passer_by.wait_for_all_acked(Duration(seconds=0.1)), 'not received')
    arm.node.destroy_publisher(passer_by)
    episode = draw_episode(4, steps=5)
    assert arm.start()['instruction'] == 'tap the red cube'
    arm.play(episode)
    assert arm.call('success').success
    assert check(tmp_path / 'bags/episode_000000', episode).instruction == 'tap the red cube'


@pytest.mark.parametrize('stop', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_namespaced_remapped_and_interrupted(robot, tmp_path, stop):
    remap = ('-r', 'camera/image_raw:=/usb/image', '-p', 'extra_topics:=[note]')
    arm = robot(namespace='left', arguments=remap, camera='/usb/image')
    arm.instruction.publish(String(data='tap the red cube'))
    episode = draw_episode(3, steps=8)
    notes = arm.node.create_publisher(String, 'note', 10)
    arm.spin_until(lambda: notes.get_subscription_count(), 'note is not recorded')
    arm.start()
    arm.play(episode)
    for text in 'abc':
        notes.publish(String(data=text))
    path = tmp_path / 'bags/episode_000000'
    arm.spin_until(
        lambda: (
            arm.status.get('counts')
            == {
                '/usb/image': 9,
                '/left/joint_states': 9,
                '/left/joint_trajectory': 8,
                '/left/instruction': 1,
                '/left/note': 3,
            }
        ),
        'not everything was recorded',
    )
    arm.recorder.send_signal(stop)
    assert arm.recorder.wait(DEADLINE) == 0
    converted = check(path, episode)
    assert converted.instruction == 'tap the red cube'
    assert EpisodeBag(path).record.outcome == 'unlabeled'
    assert (converted.timeout, converted.reward.sum()) == (True, 0.0)


def test_a_bag_says_who_drove(robot, tmp_path):
    arm = robot()
    arm.instruction.publish(String(data='tap the red cube'))
    arm.start()
    arm.play(draw_episode(3, steps=3))
    assert arm.call('success').success
    assert EpisodeBag(tmp_path / 'bags/episode_000000').record.sources == ()

    guard = arm.node.create_publisher(String, 'guard/source', LATCHED)
    guard.publish(String(data='policy'))
    arm.spin_until(guard.get_subscription_count, 'nobody hears who drives')
    started = arm.start()
    for source in ('teleop', 'teleop', 'policy'):
        guard.publish(String(data=source))
    arm.spin_until(lambda: arm.status.get('counts', {}).get('/guard/source') == 4, 'sources')
    assert arm.call('success').success
    path = tmp_path / 'bags/episode_000001'
    assert started['bag'] == str(path)
    record = EpisodeBag(path).record
    assert [change.source for change in record.sources] == ['policy', 'teleop', 'policy']
    times = [change.time for change in record.sources]
    assert times[0] == record.start
    assert times == sorted(times)
    assert times[-1] <= record.stop
    with Reader(path) as reader:
        source = [c for c in reader.connections if c.topic == '/guard/source']
        said = [STORE.deserialize_cdr(d, c.msgtype) for c, _, d in reader.messages(source)]
    assert [message.data for message in said] == ['policy', 'teleop', 'teleop', 'policy']

    # A guard that has gone says nothing any more.
    arm.node.destroy_publisher(guard)
    arm.spin_until(lambda: not arm.node.count_publishers('guard/source'), 'a guard that left')
    arm.start()
    assert arm.call('timeout').success
    assert EpisodeBag(tmp_path / 'bags/episode_000002').record.sources == ()


def test_full_disk_is_refused(robot, tmp_path):
    arm = robot(arguments=('-p', 'min_free_mib:=2000000000'))
    arm.instruction.publish(String(data='tap the red cube'))
    arm.refused('expected 2000000004')
    assert list((tmp_path / 'bags').iterdir()) == []
