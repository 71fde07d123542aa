# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Records episodes: one MCAP bag each, raw messages straight from the subscriptions."""

from __future__ import annotations

import json
import queue
import shutil
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rclpy.task import Future
from std_msgs.msg import String
from std_srvs.srv import Trigger

from qt_ros.bags import BagError, EpisodeBagWriter, EpisodeRecord
from qt_ros.conversions import COMMAND_TYPES
from qt_ros.nodes.node_support import (
    LATCHED,
    Parameter,
    declare,
    json_string,
    load_contract,
    message_class,
    run_node,
    subscribe_instruction,
)

PARAMETERS = (
    Parameter('contract', '', 'Contract file of the robot.'),
    Parameter('output', 'bags', 'Folder that episodes are written into.'),
    Parameter('extra_topics', [''], 'Topics to record besides those of the contract.'),
    Parameter('min_free_mib', 512, 'Refuse to record with less free disk space.', 0, 2**31 - 1),
)
QUEUE_SIZE = 2000  # messages waiting for the writer thread
MATCHING = 0.5  # s from creating a subscription until publishers have surely found it
SETTLE = 0.05  # s without a message until the last ones are taken to have arrived
SETTLE_LIMIT = 1.0  # s


@dataclass
class Stream:
    """A subscription and when it was made (monotonic s)."""

    subscription: Any
    qos: QoSProfile
    since: float


class Recording:
    """One episode being written, by a thread of its own."""

    def __init__(
        self, path: Path, topics: dict[str, str], names: dict[str, str], instruction: str
    ) -> None:
        self.writer = EpisodeBagWriter(path, topics, names)
        self.instruction = instruction
        self.queue: queue.Queue[tuple[str, int, bytes] | None] = queue.Queue(QUEUE_SIZE)
        self.dropped = 0
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._write, name='bag writer')
        self.thread.start()

    def put(self, topic: str, received: int, data: bytes) -> None:
        """Hand over a message; counts it as dropped when the writer is too far behind."""
        try:
            self.queue.put_nowait((topic, received, data))
        except queue.Full:
            self.dropped += 1

    def join(self) -> None:
        """Wait until everything handed over is written."""
        self.queue.put(None)
        self.thread.join()

    def _write(self) -> None:
        while (item := self.queue.get()) is not None:
            if self.error is None:
                try:
                    self.writer.write(*item)
                except Exception as error:  # reported when the episode ends; keep draining
                    self.error = error


class RecorderNode(Node):
    """Subscribes to every topic of the contract and writes while an episode is on."""

    def __init__(self) -> None:
        super().__init__('recorder')
        declare(self, PARAMETERS)
        self.contract = load_contract(self)
        self.output = Path(self.get_parameter('output').value)
        self.min_free = self.get_parameter('min_free_mib').value * 2**20
        self.output.mkdir(parents=True, exist_ok=True)
        contract = self.contract
        topics = {camera.topic: camera.type for camera in contract.cameras}
        topics[contract.state.topic] = 'sensor_msgs/msg/JointState'
        topics[contract.action.topic] = COMMAND_TYPES[contract.action.type]
        topics[contract.instruction.topic] = 'std_msgs/msg/String'
        self.topics = {self.resolve_topic_name(t): kind for t, kind in topics.items()}
        self.names = {self.resolve_topic_name(t): t for t in topics}
        self.instruction_topic = self.resolve_topic_name(contract.instruction.topic)
        # A sentence may be said once, by someone who leaves; the others must be there.
        self.required = [t for t in self.topics if t != self.instruction_topic]
        # Recorded when something publishes them; their types are known only then.
        extra = [t for t in self.get_parameter('extra_topics').value if t]
        self.extra_topics = [self.resolve_topic_name(t) for t in extra]
        self.extra: dict[str, str] = {}
        self.instruction: bytes | None = None
        subscribe_instruction(
            self, self.instruction_topic, self._receiver(self.instruction_topic), raw=True
        )
        self.streams: dict[str, Stream] = {}
        self.recording: Recording | None = None
        self.last_message = 0.0
        self.status = self.create_publisher(String, '~/status', LATCHED)
        # Services wait for the last messages: those must arrive meanwhile, in another group.
        group = MutuallyExclusiveCallbackGroup()
        self.create_service(Trigger, '~/start', self.on_start, callback_group=group)
        for name, outcome, ended_by in (
            ('success', 'success', 'terminal'),
            ('failure', 'failure', 'terminal'),
            ('timeout', 'failure', 'timeout'),
        ):
            self.create_service(
                Trigger, f'~/{name}', self._ending(outcome, ended_by), callback_group=group
            )
        self.create_service(Trigger, '~/discard', self.on_discard, callback_group=group)
        self.create_timer(
            0.2, self.follow_publishers, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )
        self.publish_status('idle')
        self.get_logger().info('recorder ready')

    def follow_publishers(self) -> None:
        """Subscribe to topics as their publishers appear, with QoS that all of them satisfy."""
        if self.recording is not None:
            self.publish_status('recording')
            return
        for topic in (*self.required, *self.extra_topics):
            infos = self.get_publishers_info_by_topic(topic)
            if not infos:
                continue
            kind = self.topics.get(topic) or infos[0].topic_type
            try:
                message = message_class(kind)
            except (ImportError, AttributeError):
                self.get_logger().error(f"'{topic}' is {kind}, which is not installed", once=True)
                continue
            if topic not in self.topics:
                self.extra[topic] = kind
            profiles = [info.qos_profile for info in infos]
            reliable = all(p.reliability == ReliabilityPolicy.RELIABLE for p in profiles)
            latched = all(p.durability == DurabilityPolicy.TRANSIENT_LOCAL for p in profiles)
            qos = QoSProfile(
                depth=100,
                reliability=ReliabilityPolicy.RELIABLE
                if reliable
                else ReliabilityPolicy.BEST_EFFORT,
                durability=DurabilityPolicy.TRANSIENT_LOCAL
                if latched
                else DurabilityPolicy.VOLATILE,
            )
            known = self.streams.get(topic)
            if known is not None:
                if known.qos == qos:
                    continue
                self.destroy_subscription(known.subscription)
            subscription = self.create_subscription(
                message, topic, self._receiver(topic), qos, raw=True
            )
            self.streams[topic] = Stream(subscription, qos, time.monotonic())

    def on_start(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Answer `~/start`: begin an episode, if every stream of the contract is there."""
        problem = self._problem()
        if problem:
            response.message = problem
            return response
        assert self.instruction is not None
        sentence = deserialize_message(self.instruction, String).data
        path = self._next_path()
        try:
            topics = self.topics | self.extra
            self.recording = Recording(path, topics, self.names, sentence)
        except (BagError, OSError) as error:
            response.message = str(error)
            return response
        self.recording.put(self.instruction_topic, self._now(), self.instruction)
        response.success = True
        response.message = json.dumps({'instruction': sentence, 'bag': str(path)})
        self.publish_status('recording')
        return response

    async def on_discard(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        """Answer `~/discard`: delete the episode being recorded."""
        recording, self.recording = self.recording, None
        response.success = recording is not None
        if recording is None:
            response.message = 'no episode is being recorded; call ~/start first'
        else:
            recording.join()
            recording.writer.discard()
            self.publish_status('idle')
        return response

    def finish(self, outcome: str, ended_by: str, stop: int = 0) -> Path:
        """Complete the episode being recorded, which ended at `stop` ns; 0: with its last message.

        Raises:
            BagError: Something could not be written; what was stays in the `.partial` folder.
        """
        recording, self.recording = self.recording, None
        assert recording is not None
        recording.join()
        self.publish_status('idle')
        if recording.error is not None:
            raise BagError(f'{recording.writer.partial}: {recording.error}')
        path = recording.writer.finish(
            EpisodeRecord(
                instruction=recording.instruction,
                outcome=outcome,
                ended_by=ended_by,
                stop=stop,
                contract=self.contract.to_text(),
                dropped=recording.dropped,
            )
        )
        if recording.dropped:
            self.get_logger().error(f'{path}: {recording.dropped} messages were not written')
        return path

    def publish_status(self, state: str) -> None:
        """Publish what the recorder is doing."""
        recording = self.recording
        content: dict[str, Any] = {'state': state}
        if recording is not None:
            content |= {'bag': str(recording.writer.path), 'counts': recording.writer.counts}
        self.status.publish(json_string(content))

    def _ending(self, outcome: str, ended_by: str) -> Any:
        async def end(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            if self.recording is None:
                response.message = 'no episode is being recorded; call ~/start first'
                return response
            stop = self._now()
            settled = await self._settled()
            if settled and self.get_parameter('use_sim_time').value:
                stop = self._now()  # /clock may have waited behind the call
            try:
                path = self.finish(outcome, ended_by, stop)
            except (BagError, OSError) as error:
                response.message = str(error)
                return response
            response.success = True
            response.message = json.dumps({'bag': str(path), 'outcome': outcome})
            return response

        return end

    def _settled(self) -> Future:
        """Give a future of whether no message came for a while; False when they keep coming."""
        future = Future()
        begun = self.last_message = time.monotonic()

        def check() -> None:
            now = time.monotonic()
            settled = now - self.last_message > SETTLE
            if settled or now - begun > SETTLE_LIMIT:
                timer.cancel()
                self.destroy_timer(timer)
                future.set_result(settled)

        timer = self.create_timer(SETTLE / 5, check, clock=Clock(clock_type=ClockType.STEADY_TIME))
        return future

    def _problem(self) -> str:
        if self.recording is not None:
            return 'an episode is being recorded; end it first'
        now = time.monotonic()
        for topic in self.required:
            stream = self.streams.get(topic)
            if stream is None or stream.subscription.get_publisher_count() == 0:
                return f"nothing publishes '{topic}'"
            if now - stream.since < MATCHING:
                return f"still connecting to '{topic}'"
        if self.instruction is None:
            return f"no instruction received on '{self.instruction_topic}'"
        free = shutil.disk_usage(self.output).free
        if free < self.min_free:
            return f'{free >> 20} MiB free in {self.output}, expected {self.min_free >> 20}'
        return ''

    def _next_path(self) -> Path:
        taken = [p.name.split('.')[0].rpartition('_')[2] for p in self.output.glob('episode_*')]
        last = max((int(number) for number in taken if number.isdigit()), default=-1)
        return self.output / f'episode_{last + 1:06d}'

    def _receiver(self, topic: str) -> Any:
        def receive(data: bytes) -> None:
            if topic == self.instruction_topic:
                if data == self.instruction:
                    return  # the same sentence, through the other subscription
                self.instruction = data
            if self.recording is not None:
                if topic in self.topics:
                    self.last_message = time.monotonic()
                self.recording.put(topic, self._now(), data)

        return receive

    def _now(self) -> int:
        return int(self.get_clock().now().nanoseconds)


def _end_recording(node: RecorderNode) -> None:
    """Keep what was recorded when the process is told to go."""
    if node.recording is None:
        return
    try:
        print(f'recorder: {node.finish("unlabeled", "timeout")} kept, unlabeled', file=sys.stderr)
    except (BagError, OSError) as error:
        print(f'recorder: {error}', file=sys.stderr)


def main() -> None:
    """Run the node."""
    sys.exit(run_node(RecorderNode, _end_recording))


if __name__ == '__main__':
    main()
