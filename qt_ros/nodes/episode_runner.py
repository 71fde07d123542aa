# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Runs episodes on a graph of simulator, driver and recorder; a client of their services."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import rclpy
from rcl_interfaces.srv import SetParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from std_msgs.msg import String
from std_srvs.srv import Trigger

from qt_ros.nodes.node_support import LATCHED

ENDED = ('success', 'failure', 'timeout')


class GraphError(RuntimeError):
    """A node of the graph that does not answer, or refuses."""


@dataclass(frozen=True)
class EpisodeResult:
    """One episode through ROS.

    Attributes:
        seed: Which episode.
        instruction: The sentence that was given.
        target: What the task asked for.
        outcome: `success`, `failure` or `timeout`, by the task's own sentence.
        steps: Actions taken.
        published: Observations published in this episode.
        latency_ms: Wall time from publishing each observation to receiving its command.
        seconds: Wall time from the start to the outcome.
        bag: The recorded bag, or ''.
    """

    seed: int
    instruction: str
    target: str
    outcome: str
    steps: int
    published: int
    latency_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0
    bag: str = ''


class EpisodeRunner:
    """Used as a context manager; has a ROS context of its own.

    Args:
        driver: Node that acts: `policy` or `demonstrator`.
        record: Whether a recorder takes part.
        timeout: Seconds until a node that does not answer is an error.
        episode_timeout: Wall seconds until an episode that does not end is one.
    """

    def __init__(
        self,
        driver: str,
        *,
        record: bool,
        timeout: float = 60.0,
        episode_timeout: float = 120.0,
    ) -> None:
        self.driver, self.record = driver, record
        self.timeout, self.episode_timeout = timeout, episode_timeout

    def __enter__(self) -> EpisodeRunner:
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('episode_runner', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.instructions = self.node.create_publisher(String, 'instruction', LATCHED)
        self.episode: dict[str, Any] = {}
        self.node.create_subscription(String, 'simulator/episode', self._on_episode, LATCHED)
        self.clients: dict[str, Any] = {}
        return self

    def __exit__(self, *error: object) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self.context)

    def run(
        self, seed: int, override: Callable[[str], str] = lambda sentence: sentence
    ) -> EpisodeResult:
        """Run the episode of `seed`.

        Args:
            seed: Which episode.
            override: Turns the task's sentence into the one that is given.

        Raises:
            GraphError: A node does not answer or refuses; says which and why.
        """
        self._set_seed(seed)
        scene = self._call('simulator/reset')
        sentence = override(scene['instruction'])
        self.instructions.publish(String(data=sentence))
        expected = {'instruction': sentence}
        if self.driver == 'demonstrator':
            expected['seed'] = seed
        self._call_until(f'{self.driver}/reset', expected)
        bag = ''
        if self.record:
            bag = self._call_until(
                'recorder/start', {'instruction': sentence}, 'recorder/discard'
            )['bag']
        self.episode = {}  # it may still tell how this seed ended the last time
        begun = time.monotonic()
        self._call('simulator/start')
        self._spin_until(
            lambda: self.episode.get('seed') == seed and self.episode['outcome'] in ENDED,
            self.episode_timeout,
            f'simulator: episode {seed} did not end',
        )
        episode, seconds = self.episode, time.monotonic() - begun
        if self.record:
            self._call(f'recorder/{episode["outcome"]}')
        return EpisodeResult(
            seed=seed,
            instruction=sentence,
            target=scene['target'],
            outcome=episode['outcome'],
            steps=episode['steps'],
            published=episode['published'] - scene['published'],
            latency_ms=episode['latency_ms'],
            seconds=seconds,
            bag=bag,
        )

    def _set_seed(self, seed: int) -> None:
        parameter = Parameter('seed', Parameter.Type.INTEGER, seed).to_parameter_msg()
        request = SetParameters.Request(parameters=[parameter])
        answer = self._send('simulator/set_parameters', SetParameters, request)
        if not answer.results[0].successful:
            raise GraphError(f'simulator: seed {seed} refused ({answer.results[0].reason})')

    def _call(self, service: str) -> dict[str, Any]:
        answer = self._send(service, Trigger, Trigger.Request())
        if not answer.success:
            raise GraphError(f'{service}: {answer.message or "refused"}')
        return json.loads(answer.message) if answer.message else {}

    def _call_until(
        self, service: str, expected: dict[str, Any], undo: str = ''
    ) -> dict[str, Any]:
        """Call until the answer holds `expected`: topics and services have no common order."""
        deadline = time.monotonic() + self.timeout
        while True:
            answer = self._send(service, Trigger, Trigger.Request())
            message = json.loads(answer.message) if answer.success else {}
            if answer.success and expected.items() <= message.items():
                return message
            if time.monotonic() > deadline:
                raise GraphError(f'{service}: {answer.message}, expected {expected}')
            if answer.success and undo:
                self._call(undo)
            self.executor.spin_once(timeout_sec=0.01)

    def _send(self, service: str, kind: Any, request: Any) -> Any:
        if service not in self.clients:
            self.clients[service] = self.node.create_client(kind, service)
        client = self.clients[service]
        if not client.service_is_ready():
            self._spin_until(
                client.service_is_ready, self.timeout, f"service '{service}' is not there"
            )
        future = client.call_async(request)
        self._spin_until(future.done, self.timeout, f"service '{service}' does not answer")
        return future.result()

    def _spin_until(self, done: Callable[[], bool], timeout: float, problem: str) -> None:
        deadline = time.monotonic() + timeout
        while not done():
            if time.monotonic() > deadline:
                raise GraphError(f'{problem} within {timeout:g} s')
            self.executor.spin_once(timeout_sec=0.05)

    def _on_episode(self, message: String) -> None:
        self.episode = json.loads(message.data)
