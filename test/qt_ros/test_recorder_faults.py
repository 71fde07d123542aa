# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What happens to an episode when the recorder is killed, the disk fills or a stream misbehaves.

Recorder and robot are processes of their own; everything between them goes over DDS.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosbags.rosbag2 import Reader
from std_msgs.msg import String
from std_srvs.srv import Trigger

from qt_core.share import share_path
from qt_ros.bags import EpisodeBag, EpisodeRecord
from qt_ros.bags.converter import convert_episode
from qt_ros.bags.episode import STOPPED
from qt_ros.graphs import environment
from qt_ros.nodes.recorder_client import SERVICES

DEADLINE = 30.0  # s
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
IMAGE, STATE = '/camera/image_raw', '/joint_states'


class Rig:
    """A recorder and a robot, and what the recorder says of itself."""

    def __init__(self, peer, node_process, folder, camera_rate):
        content = yaml.safe_load(share_path('config/contracts/tabletop.yaml').read_text())
        content['cameras'][0]['rate'] = camera_rate
        self.contract = folder / 'contract.yaml'
        self.contract.write_text(yaml.safe_dump(content))
        self.peer, self.node_process = peer, node_process
        self.statuses = []  # (monotonic s, content)
        peer.node.create_subscription(String, '/recorder/status', self.on_status, LATCHED)
        # Known to the recorder before it answers: else an answer may find nobody.
        for name in SERVICES:
            service = f'/recorder/{name}'
            peer.clients[service] = peer.node.create_client(Trigger, service)
        self.robot = subprocess.Popen(
            [sys.executable, '-m', 'test.qt_ros.robot', self.contract],
            stdin=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        self.recorder = None

    def on_status(self, message):
        self.statuses.append((time.monotonic(), json.loads(message.data)))

    @property
    def status(self):
        return self.statuses[-1][1] if self.statuses else {}

    def record_into(self, folder, **parameters):
        """Start the recorder."""
        self.statuses.clear()
        self.recorder = self.node_process(
            'recorder_node',
            **{'contract': self.contract, 'output': folder, 'min_free_mib': 0, **parameters},
        )
        self.peer.spin_until(lambda: self.statuses, 'the recorder')

    def tell(self, **options):
        """Have the robot do otherwise."""
        self.robot.stdin.write(json.dumps(options) + '\n')
        self.robot.stdin.flush()

    def start(self):
        """Start an episode as soon as the recorder lets us; give its bag."""
        deadline = time.monotonic() + DEADLINE
        while not (answer := self.peer.call('/recorder/start'))[0]:
            assert time.monotonic() < deadline, answer
            self.peer.spin_for(0.05)
        return Path(answer[1]['bag'])

    def until(self, done, what):
        """Spin until the recorder's status is as wanted."""
        self.peer.spin_until(lambda: self.statuses and done(self.status), f'{what}')

    def images(self, count):
        """Wait until so many images are recorded."""
        self.until(lambda s: s.get('counts', {}).get(IMAGE, 0) >= count, f'{count} images')


@pytest.fixture
def profile(monkeypatch):
    """Give every process the shipped profile, without which large images get lost."""
    for name, value in environment({}).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def rig(profile, peer, node_process, tmp_path):
    """Give what starts a rig; ends the robot afterwards."""
    rigs = []

    def make(camera_rate=None):
        rigs.append(Rig(peer, node_process, tmp_path, camera_rate))
        return rigs[-1]

    yield make
    for made in rigs:
        assert made.recorder.poll() is None, made.recorder.stderr.read()
        made.robot.stdin.close()
        try:
            made.robot.wait(10)
        except subprocess.TimeoutExpired:
            made.robot.kill()
            made.robot.wait()


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of 24 MiB."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=24m', 'tmpfs', folder]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip('mounting a tmpfs is not permitted')
    yield folder
    subprocess.run(['umount', '-l', folder], check=True)


def read(path):
    """Count the messages of each topic that rosbags reads from a bag."""
    with Reader(path) as reader:
        topics = [connection.topic for connection, _, _ in reader.messages()]
    return {topic: topics.count(topic) for topic in topics}


def recorded(path):
    """Give the counts that the record claims."""
    return {count.topic: count.messages for count in EpisodeBag(path).record.counts}


@pytest.mark.parametrize(
    ('parameter', 'says'),
    [
        ({'compression': 'gzip'}, "compression is 'gzip', expected zstd or none"),
        ({'start_gate': 'open'}, "start_gate is 'open', expected rate or alive"),
    ],
)
def test_parameter_that_means_nothing(node_process, tmp_path, parameter, says):
    contract = share_path('config/contracts/tabletop.yaml')
    recorder = node_process('recorder_node', contract=contract, output=tmp_path, **parameter)
    assert recorder.wait(DEADLINE) == 1
    assert recorder.stderr.read() == f'qt-ros: {says}\n'


def test_killed_in_mid_episode_and_mid_chunk(rig, tmp_path):
    flush_interval = 0.4
    arm = rig()
    arm.record_into(tmp_path / 'bags', flush_interval=flush_interval)
    arm.tell(instruction='tap the red cube', rate=60)
    path = arm.start()
    arm.images(60)
    # More is written than is safe on disk: a chunk is being filled.
    arm.until(lambda s: sum(s['counts'].values()) > s['flushed'] > 0, 'in mid-chunk')
    arm.recorder.kill()
    killed = time.monotonic()
    arm.recorder.wait()
    safe = [s for at, s in arm.statuses if at < killed - flush_interval][-1]['counts']
    acknowledged = arm.status
    assert path.with_name('episode_000000.partial').is_dir()
    assert not path.exists()

    arm.record_into(tmp_path / 'bags', flush_interval=flush_interval)
    arm.until(lambda s: s['repaired'], 'nothing repaired')
    assert arm.status['repaired'] == [f'{path} repaired']
    counts = read(path)
    assert counts == {topic: n for topic, n in recorded(path).items() if n}
    assert all(counts.get(topic, 0) >= n for topic, n in safe.items()), (counts, safe)
    assert sum(counts.values()) >= acknowledged['flushed']
    record = EpisodeBag(path).record
    assert (record.damage, record.outcome, record.ended_by) == (STOPPED, 'unlabeled', 'timeout')
    assert record.instruction == 'tap the red cube'
    convert_episode(EpisodeBag(path))
    assert arm.start().name == 'episode_000001'
    assert arm.peer.call('/recorder/discard')[0]


def test_disk_that_fills_up_all_the_way(rig, small_disk):
    arm = rig()
    arm.record_into(small_disk)
    arm.tell(instruction='tap the red cube', size=[256, 256], rate=30)
    path = arm.start()
    arm.until(lambda s: s['state'] == 'idle' and s['problem'], 'the end of a full disk')
    problem = arm.status['problem']
    assert 'No space left' in problem
    record = EpisodeBag(path).record
    assert 'No space left' in record.damage
    assert (record.outcome, record.ended_by) == ('unlabeled', 'timeout')
    assert record.dropped > 0
    assert f'{record.dropped} messages lost' in problem
    counts = read(path)
    assert counts[IMAGE] > 20
    assert counts == {topic: n for topic, n in recorded(path).items() if n}
    convert_episode(EpisodeBag(path))
    refused = arm.peer.call('/recorder/success')
    assert not refused[0]
    assert 'No space left' in refused[1]
    # The recorder goes on as soon as there is space.
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    arm.start()
    arm.images(3)
    assert arm.peer.call('/recorder/success')[0]


def test_disk_is_left_alone_before_it_is_full(rig, small_disk):
    arm = rig()
    arm.record_into(small_disk, min_free_mib=10)
    arm.tell(instruction='tap the red cube', size=[128, 128], rate=60)
    path = arm.start()
    arm.until(lambda s: s['state'] == 'idle' and s['problem'], 'the end before the disk is full')
    record = EpisodeBag(path).record
    assert record.damage.startswith('the disk was filling')
    assert record.dropped == 0
    assert read(path) == {topic: n for topic, n in recorded(path).items() if n}
    success, reason = arm.peer.call('/recorder/start')
    assert not success
    assert 'MiB free' in reason


def test_messages_that_dds_overwrites_are_counted(rig, tmp_path):
    arm = rig()
    arm.record_into(tmp_path / 'bags')
    arm.tell(instruction='tap the red cube', rate=120)
    path = arm.start()
    arm.images(10)
    arm.recorder.send_signal(signal.SIGSTOP)  # as when the machine is busy with something else
    arm.peer.spin_for(2.0)
    arm.recorder.send_signal(signal.SIGCONT)
    arm.until(lambda s: s.get('dropped'), 'the loss')
    assert arm.peer.call('/recorder/success')[0]
    record = EpisodeRecord.load(path)
    assert record.dropped == sum(count.lost for count in record.counts) > 0
    assert (record.outcome, record.damage) == ('success', '')


def test_disk_that_is_too_slow(rig, tmp_path):
    arm = rig()
    arm.record_into(tmp_path / 'bags', queue_mib=1)
    arm.tell(instruction='tap the red cube', rate=20)
    path = arm.start()
    arm.images(3)
    arm.tell(size=[900, 1100], burst=8)
    arm.until(lambda s: s['state'] == 'idle' and s['problem'], 'the end of an overflow')
    record = EpisodeBag(path).record
    assert record.damage == 'the disk was too slow: over 1 MiB waited for it'
    assert record.dropped > 0
    assert f'{record.dropped} messages lost' in arm.status['problem']
    assert read(path) == {topic: n for topic, n in recorded(path).items() if n}
    arm.tell(size=[64, 64])
    assert arm.start().name == 'episode_000001'
    assert arm.peer.call('/recorder/discard')[0]


def test_camera_that_stutters_repeats_jumps_and_stops(rig, tmp_path):
    arm = rig(camera_rate=30.0)
    arm.record_into(tmp_path / 'bags')
    arm.tell(instruction='tap the red cube', rate=12)
    arm.until(lambda s: 10 < s['rates'][IMAGE] < 14, 'the rate of the camera')
    success, reason = arm.peer.call('/recorder/start')
    assert not success
    assert reason.startswith(f"'{IMAGE}' comes at 1")
    assert reason.endswith('Hz, expected 30')
    arm.tell(rate=30)
    path = arm.start()
    arm.until(lambda s: s['slow'] == [], 'a camera at its rate')
    arm.images(10)
    arm.tell(frozen=True)
    arm.until(lambda s: s['repeated'][IMAGE] > 5, 'repeated frames')
    assert arm.status['jumps'] == {IMAGE: 0, STATE: 0}
    arm.tell(frozen=False, offset=-0.5)
    arm.until(lambda s: s['jumps'][IMAGE] == 1, 'a stamp that went back')
    arm.tell(offset=4.0)
    arm.until(lambda s: s['jumps'][IMAGE] == 2, 'a stamp that leapt ahead')
    arm.tell(image=False)
    arm.until(lambda s: s['gaps'][IMAGE] > 0.7 and s['slow'], 'a camera that stopped')
    assert f"'{IMAGE}' comes at" in arm.status['slow'][0]
    arm.tell(image=True)
    count = arm.status['counts'][IMAGE]
    arm.images(count + 5)
    assert arm.peer.call('/recorder/success')[0]
    counts = {c.name: c for c in EpisodeBag(path).record.counts}
    camera, state = counts['camera/image_raw'], counts['joint_states']
    assert camera.expected == 30.0
    assert camera.rate < state.rate
    assert camera.largest_gap > 0.7 > state.largest_gap
    assert camera.repeated > 5
    assert (camera.jumps, state.jumps) == (2, 0)
    assert EpisodeBag(path).record.damage == ''


def test_latched_topics_changed_instructions_redo_and_other_qos(rig, peer, tmp_path):
    arm = rig()
    speakers = [peer.node.create_publisher(String, '/notes', LATCHED) for _ in range(2)]
    for speaker, text in zip(speakers, 'ab', strict=True):
        speaker.publish(String(data=text))
    scan = peer.node.create_publisher(String, '/scan', 10)
    arm.record_into(tmp_path / 'bags', extra_topics='[/notes, /scan]')
    assert not peer.call('/recorder/redo')[0]
    arm.tell(instruction='tap the red cube')
    peer.spin_until(scan.get_subscription_count, 'scan is not recorded')
    first = arm.start()
    arm.images(5)
    arm.tell(instruction='tap the blue cube')
    arm.until(lambda s: s['counts']['/instruction'] == 2, 'the second sentence')
    success, answer = peer.call('/recorder/redo')
    assert success
    assert answer == {'bag': str(first), 'instruction': 'tap the blue cube'}
    arm.images(5)
    before = EpisodeBag(first.with_name('episode_000000.partial') / first.name).record
    arm.tell(instruction='tap the green cube')
    arm.until(lambda s: s['counts']['/instruction'] == 2, 'the third sentence')
    # Somebody comes back with another QoS while the episode is on.
    scan.publish(String(data='reliable'))
    arm.until(lambda s: s['counts']['/scan'] == 1, 'a scan')
    peer.node.destroy_publisher(scan)
    unreliable = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    scan = peer.node.create_publisher(String, '/scan', unreliable)
    peer.spin_until(scan.get_subscription_count, 'nobody takes what is unreliable')
    scan.publish(String(data='unreliable'))
    arm.until(lambda s: s['counts']['/scan'] == 2, 'a scan of another QoS')
    assert peer.call('/recorder/success')[0]
    record = EpisodeBag(first).record
    assert before.damage == STOPPED  # as a crash would have left it
    assert before.instruction == record.instruction == 'tap the blue cube'
    assert [change.instruction for change in record.instructions] == ['tap the green cube']
    assert record.start < record.instructions[0].time < record.stop
    assert read(first)['/notes'] == 2

    peer.node.destroy_publisher(speakers[0])
    peer.spin_until(lambda: peer.node.count_publishers('/notes') == 1, 'a speaker that left')
    peer.spin_for(1.0)  # the recorder finds out by itself, which its status does not tell
    second = arm.start()
    arm.images(3)
    assert peer.call('/recorder/failure')[0]
    with Reader(second) as reader:
        notes = [c for c in reader.connections if c.topic == '/notes']
        texts = [bytes(data)[8:9] for _, _, data in reader.messages(connections=notes)]
    assert texts == [b'b']
