# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Records episodes: one MCAP bag each, raw messages straight from the subscriptions."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from rclpy.task import Future
from std_msgs.msg import String
from std_srvs.srv import Trigger

from qt_ros.bags import BagError, EpisodeBagWriter, EpisodeRecord
from qt_ros.bags.audit import LiveRates
from qt_ros.bags.episode import SourceChange
from qt_ros.bags.repair import repair_all
from qt_ros.bags.writer import COMPRESSIONS, RESERVED
from qt_ros.conversions import COMMAND_TYPES
from qt_ros.nodes.adaptive_subscriptions import AdaptiveSubscriptions
from qt_ros.nodes.node_support import (
    LATCHED,
    Parameter,
    declare,
    json_string,
    load_contract,
    run_node,
    subscribe_instruction,
)
from qt_ros.recording import Limits, Recording
from qt_ros.streams import observed_streams

SOURCE, SOURCE_KIND = 'guard/source', 'std_msgs/msg/String'  # who drives
START_GATES = ('rate', 'alive')
PARAMETERS = (
    Parameter('contract', '', 'Contract file of the robot.'),
    Parameter('output', 'bags', 'Folder that episodes are written into.'),
    Parameter('extra_topics', [''], 'Topics to record besides those of the contract.'),
    Parameter('compression', 'zstd', 'Compression of the bags: zstd or none.'),
    Parameter('start_gate', 'rate', 'An episode needs every stream alive, or at its rate too.'),
    Parameter('min_free_mib', 512, 'End an episode before less disk is free, MiB.', 0, 2**31 - 1),
    Parameter('queue_mib', 512, 'Most that may wait for the disk, MiB.', 1, 2**20),
    Parameter('flush_interval', 1.0, 'Most that a crash may lose, s.', 0.05, 60.0),
)
STATUS_INTERVAL = 0.2  # s, and 5 times that while idle
SETTLE = 0.05  # s without a message until the last ones are taken to have arrived
SETTLE_LIMIT = 1.0  # s
IDLE = 'no episode is being recorded; call ~/start first'


class RecorderNode(Node):
    """Subscribes to every topic of the contract and writes while an episode is on."""

    def __init__(self) -> None:
        super().__init__('recorder')
        declare(self, PARAMETERS)
        self.contract = contract = load_contract(self)
        self.compression = self._choice('compression', COMPRESSIONS)
        self.gated = self._choice('start_gate', START_GATES) == 'rate'
        self.output = Path(self.get_parameter('output').value)
        self.limits = Limits(
            queue=self.get_parameter('queue_mib').value << 20,
            flush_interval=self.get_parameter('flush_interval').value,
            min_free=self.get_parameter('min_free_mib').value << 20,
        )
        self.output.mkdir(parents=True, exist_ok=True)
        observed = {stream.topic: stream.type for stream in observed_streams(contract)}
        topics = observed | {
            contract.action.topic: COMMAND_TYPES[contract.action.type],
            contract.instruction.topic: 'std_msgs/msg/String',
        }
        self.names = {self.resolve_topic_name(t): t for t in topics}
        self.topics = {full: topics[t] for full, t in self.names.items()}
        rates = {camera.topic: camera.rate for camera in contract.cameras}
        rates[contract.state.topic] = contract.state.rate
        # Commands may wait for the start.
        self.expected = {
            self.resolve_topic_name(topic): rates[topic] or contract.rate for topic in observed
        }
        self.rates = LiveRates(self.topics, self.expected)
        self.instruction_topic = self.resolve_topic_name(contract.instruction.topic)
        self.instruction: bytes | None = None
        # A sentence may be said once, by someone who leaves; the others must be there.
        required = {t: kind for t, kind in self.topics.items() if t != self.instruction_topic}
        self.required = list(required)
        extra = [t for t in self.get_parameter('extra_topics').value if t]
        # Recorded when something publishes them; their types are known only then.
        self.source_topic = self.resolve_topic_name(SOURCE)
        unknown = dict.fromkeys(map(self.resolve_topic_name, (SOURCE, *extra)))
        self.streams = AdaptiveSubscriptions(
            self, {**unknown, **required}, self.on_message, self.on_loss
        )
        self.recording: Recording | None = None
        self.begun = 0  # ns
        self.last_message = 0.0
        self.problem = ''
        self.repaired = repair_all(self.output)
        for line in self.repaired:
            self.get_logger().warning(line)
        self.status = self.create_publisher(String, '~/status', LATCHED)
        subscribe_instruction(self, self.instruction_topic, self.on_instruction, raw=True)
        # Services wait for the last messages: those must arrive meanwhile, in another group.
        group = MutuallyExclusiveCallbackGroup()
        for name, answer in {
            'start': self.on_start,
            'success': self._ending('success', 'terminal'),
            'failure': self._ending('failure', 'terminal'),
            'timeout': self._ending('failure', 'timeout'),
            'discard': self.on_discard,
            'redo': self.on_redo,
        }.items():
            self.create_service(Trigger, f'~/{name}', answer, callback_group=group)
        self.ticks = 0
        self._every(STATUS_INTERVAL, self.tick)
        self.publish_status()
        self.get_logger().info('recorder ready')

    def on_message(self, topic: str, data: bytes) -> None:
        """Count a message and record it while an episode is on."""
        now = self._now()
        self.rates.add(topic, now)
        if topic in self.topics:
            self.last_message = time.monotonic()
        recording = self.recording
        if recording is not None:
            if topic not in recording.writer.counts:
                recording.add_topic(topic, self.streams.kinds[topic])
            if topic == self.source_topic and self.streams.kinds[topic] == SOURCE_KIND:
                recording.note_source(now, _text(data))
            recording.put(topic, now, data)

    def on_loss(self, topic: str, count: int) -> None:
        """Take note of messages that DDS has overwritten while this process was busy."""
        if self.recording is not None:
            self.recording.lose(topic, count)

    def on_instruction(self, data: bytes) -> None:
        """Take the sentence that is in force from now on."""
        if data == self.instruction:
            return  # the same message, through the other subscription
        self.instruction = data
        if self.recording is not None:
            self.recording.note_instruction(self._now(), self._sentence())
        self.on_message(self.instruction_topic, data)

    def tick(self) -> None:
        """Follow the publishers, notice a recording that ended by itself, say how it goes."""
        recording = self.recording
        if recording is not None and recording.over:
            self._retire(recording)
            recording = None
        self.streams.follow(recording is not None)
        self.ticks += 1
        if recording is not None or self.ticks % 5 == 0:
            self.publish_status()

    def on_start(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Answer `~/start`: begin an episode, if every stream of the contract is there."""
        if self.recording is not None:
            response.message = 'an episode is being recorded; end it first'
            return response
        return self._start(self._next_path(), response)

    async def on_discard(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        """Answer `~/discard`: delete the episode being recorded."""
        recording = self.recording
        if recording is None:
            response.message = self._idle()
            return response
        recording.discard()
        await self._over(recording)
        self._retire(recording)
        response.success = recording.path is None and not recording.error
        response.message = self.problem
        return response

    async def on_redo(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        """Answer `~/redo`: delete the episode being recorded and begin it again."""
        path = self.recording.writer.path if self.recording is not None else None
        response = await self.on_discard(request, response)
        if path is None or not response.success:
            return response
        response.success = False
        response = self._start(path, response)
        if not response.success:
            response.message = f'discarded, but not begun again: {response.message}'
        return response

    def publish_status(self) -> None:
        """Publish what the recorder is doing."""
        recording, now = self.recording, self._now()
        state = 'idle' if recording is None else 'recording'
        content: dict[str, Any] = {'state': state}
        if recording is not None:
            audits = recording.writer.audits
            content |= recording.status()
            content['elapsed'] = round((now - self.begun) / 1e9, 2)
            content['gaps'] = {t: audits[t].gap(self.begun, now) for t in self.expected}
            content['repeated'] = {t: audits[t].repeated for t in self.expected}
            content['jumps'] = {t: audits[t].jumps for t in self.expected}
            content['lost'] = {t: audits[t].lost for t in self.topics}
        content |= {
            'rates': self.rates.measured(now),
            'slow': self._slow(),
            'free_mib': self._free() >> 20,
            'repaired': self.repaired,
            'problem': self.problem,
        }
        self.status.publish(json_string(content))

    def _ending(self, outcome: str, ended_by: str) -> Any:
        async def end(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            recording = self.recording
            if recording is None:
                response.message = self._idle()
                return response
            stop = self._now()
            settled = await self._settled()
            if settled and self.get_parameter('use_sim_time').value:
                stop = self._now()  # /clock may have waited behind the call
            recording.end(outcome, ended_by, stop)
            await self._over(recording)
            self._retire(recording)
            response.success = not self.problem
            response.message = self.problem or json.dumps(
                {'bag': str(recording.path), 'outcome': outcome}
            )
            return response

        return end

    def _start(self, path: Path, response: Trigger.Response) -> Trigger.Response:
        response.message = self._obstacle()
        if response.message:
            return response
        self.begun = self._now()
        record = EpisodeRecord(
            instruction=self._sentence(),
            outcome='unlabeled',
            ended_by='timeout',
            contract=self.contract.to_text(),
            start=self.begun,
            sources=tuple(SourceChange(time=self.begun, source=s) for s in self._sources()),
        )
        kinds = {t: k for t, k in self.streams.kinds.items() if k is not None}
        try:
            writer = EpisodeBagWriter(
                path,
                self.topics | kinds,
                self.names,
                expected=self.expected,
                compression=self.compression,
                record=record,
            )
        except (BagError, OSError) as error:
            response.message = str(error)
            return response
        self.problem = ''
        recording = Recording(writer, record, self.limits)
        recording.put(self.instruction_topic, self.begun, self.instruction)
        for topic, messages in self.streams.latched().items():
            for data in messages:
                recording.put(topic, self.begun, data)
        self.recording = recording
        response.success = True
        response.message = json.dumps({'instruction': record.instruction, 'bag': str(path)})
        self.publish_status()
        return response

    def _obstacle(self) -> str:
        """Say why no episode can begin; '' when one can."""
        for topic in self.required:
            problem = self.streams.problem(topic)
            if problem:
                return problem
        if self.instruction is None:
            return f"no instruction received on '{self.instruction_topic}'"
        if slow := self._slow():
            return slow[0]
        if not self.output.is_dir():
            return f'{self.output} is no folder any more'
        free, needed = self._free(), self.limits.min_free + RESERVED
        if free < needed:
            return f'{free >> 20} MiB free in {self.output}, expected {needed >> 20}'
        return self.streams.latched_problem()

    def _retire(self, recording: Recording) -> None:
        """Let go of a recording that is over, and say what became of it."""
        if self.recording is not recording:
            return
        self.recording = None
        writer = recording.writer
        if recording.error:
            self.problem = f'{writer.partial}: {recording.damage or recording.error}'
            self.problem += '; left to be repaired at the next start of the recorder'
        elif recording.damage:
            counted = f'{recording.dropped} messages lost' if recording.dropped else 'none lost'
            self.problem = f'{writer.path} ended as damaged: {recording.damage} ({counted})'
        if self.problem:
            self.get_logger().error(self.problem)
        elif recording.dropped:
            self.get_logger().warning(
                f'{writer.path}: {recording.dropped} messages were lost on the way to the recorder'
            )
        self.publish_status()

    def _settled(self) -> Future:
        """Give a future of whether no message came for a while; False when they keep coming."""
        begun = self.last_message = time.monotonic()

        def ask() -> bool | None:
            now = time.monotonic()
            settled = now - self.last_message > SETTLE
            return settled if settled or now - begun > SETTLE_LIMIT else None

        return self._answer(ask)

    def _over(self, recording: Recording) -> Future:
        return self._answer(lambda: recording.over or None)

    def _answer(self, ask: Callable[[], bool | None]) -> Future:
        """Give a future of the first answer that is not None."""
        future = Future()

        def check() -> None:
            answer = ask()
            if answer is not None:
                timer.cancel()
                self.destroy_timer(timer)
                future.set_result(answer)

        timer = self._every(SETTLE / 5, check)
        return future

    def _every(self, seconds: float, callback: Callable[[], None]) -> Any:
        return self.create_timer(seconds, callback, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _next_path(self) -> Path:
        taken = [p.name.split('.')[0].rpartition('_')[2] for p in self.output.glob('episode_*')]
        last = max((int(number) for number in taken if number.isdigit()), default=-1)
        return self.output / f'episode_{last + 1:06d}'

    def _choice(self, name: str, allowed: tuple[str, ...]) -> str:
        value = self.get_parameter(name).value
        if value not in allowed:
            raise ValueError(f'{name} is {value!r}, expected {" or ".join(allowed)}')
        return value

    def _idle(self) -> str:
        return f'{IDLE} ({self.problem})' if self.problem else IDLE

    def _slow(self) -> list[str]:
        return self.rates.slow(self._now()) if self.gated else []

    def _sentence(self) -> str:
        return _text(self.instruction)

    def _sources(self) -> list[str]:
        """Give who drives now; none where no guard says so."""
        said = self.streams.latched().get(self.source_topic, [])
        here = self.count_publishers(self.source_topic) > 0
        known = here and self.streams.kinds[self.source_topic] == SOURCE_KIND
        return list(map(_text, said[-1:])) if known else []

    def _free(self) -> int:
        try:
            return shutil.disk_usage(self.output).free
        except OSError:  # somebody removed the folder
            return 0

    def _now(self) -> int:
        return int(self.get_clock().now().nanoseconds)


def _text(data: bytes) -> str:
    return deserialize_message(data, String).data


def _end_recording(node: RecorderNode) -> None:
    """Keep what was recorded when the process is told to go."""
    recording = node.recording
    if recording is None:
        return
    recording.end('unlabeled', 'timeout')
    recording.join()
    problem = recording.error or recording.damage
    kept = f'{recording.path} kept, unlabeled' if recording.path else recording.writer.partial
    print(f'recorder: {kept}{f": {problem}" if problem else ""}', file=sys.stderr)


def main() -> None:
    """Run the node."""
    sys.exit(run_node(RecorderNode, _end_recording))


if __name__ == '__main__':
    main()
