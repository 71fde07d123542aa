# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Nodes as processes of their own, and a peer in this process that talks to them over DDS."""

import json
import signal
import subprocess
import sys
import time

import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from std_srvs.srv import Trigger

from qt_ros.isolation import isolated_graph

DEADLINE = 30.0  # s


@pytest.fixture
def isolated():
    """Keep this test's graph apart from every other."""
    with isolated_graph():
        yield


@pytest.fixture
def node_process(isolated):
    """Give what starts `qt_ros.nodes.NAME` with parameters; ends every process afterwards."""
    started = []

    def start(name, **parameters):
        words = [sys.executable, '-m', f'qt_ros.nodes.{name}', '--ros-args']
        for key, value in parameters.items():
            words += ['-p', f'{key}:={value}']
        started.append(
            subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors='replace',
            )
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stderr.close()


class Peer:
    """A node in this process: spins until something has happened, calls services."""

    def __init__(self):
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('peer', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.clients = {}

    def close(self):
        """Leave the graph."""
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()

    def listen(self, kind, topic, qos=10):
        """Give the list that messages of a topic are put into."""
        messages = []
        self.node.create_subscription(kind, topic, messages.append, qos)
        return messages

    def spin_until(self, done, what):
        """Spin until `done()`, or fail."""
        deadline = time.monotonic() + DEADLINE
        while not done():
            assert time.monotonic() < deadline, f'{what}: not in time'
            self.executor.spin_once(timeout_sec=0.02)

    def spin_for(self, seconds):
        """Spin for a while, to see that something does not happen."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=left)

    def send(self, kind, service, request):
        """Call a service of any kind."""
        if service not in self.clients:
            self.clients[service] = self.node.create_client(kind, service)
        client = self.clients[service]
        self.spin_until(client.service_is_ready, f'service {service}')
        future = client.call_async(request)
        self.spin_until(future.done, f'answer of {service}')
        return future.result()

    def call(self, service):
        """Call a std_srvs/Trigger; give success and the message, decoded where it is JSON."""
        answer = self.send(Trigger, service, Trigger.Request())
        content = answer.message
        return answer.success, json.loads(content) if content.startswith('{') else content


@pytest.fixture
def peer(isolated):
    """Join the graph."""
    peer = Peer()
    yield peer
    peer.close()
