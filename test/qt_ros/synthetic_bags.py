# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bags with known content, written without ROS through the recorder's own writer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rosbags.typesys import Stores, get_typestore

from qt_core.contract import RobotContract
from qt_ros.bags import EpisodeBagWriter, EpisodeRecord
from qt_ros.conversions import COMMAND_TYPES

CONTRACT = RobotContract.load(Path(__file__).parents[2] / 'config/contracts/tabletop.yaml')
STORE = get_typestore(Stores.ROS2_JAZZY)
TYPES = STORE.types
START = 5_000_000_000  # ns
SENTENCE = 'touch the red block'


def time_message(nanoseconds):
    """A builtin_interfaces/Time."""
    return TYPES['builtin_interfaces/msg/Time'](*divmod(nanoseconds, 1_000_000_000))


def header(nanoseconds):
    """A std_msgs/Header."""
    return TYPES['std_msgs/msg/Header'](time_message(nanoseconds), '')


def image_message(frame, stamp, encoding='rgb8'):
    """An Image of (H, W, C) pixels, rows not padded."""
    height, width = frame.shape[:2]
    step = frame.nbytes // height
    return TYPES['sensor_msgs/msg/Image'](
        header(stamp), height, width, encoding, 0, step, frame.reshape(-1)
    )


def state_message(names, positions, stamp):
    """A JointState."""
    nothing = np.zeros(0)
    return TYPES['sensor_msgs/msg/JointState'](
        header(stamp), list(names), np.array(positions, np.float64), nothing, nothing
    )


def trajectory_message(names, positions, stamp):
    """A JointTrajectory of one point."""
    nothing = np.zeros(0)
    duration = TYPES['builtin_interfaces/msg/Duration'](0, 100_000_000)
    point = TYPES['trajectory_msgs/msg/JointTrajectoryPoint'](
        np.asarray(positions, np.float64), nothing, nothing, nothing, duration
    )
    return TYPES['trajectory_msgs/msg/JointTrajectory'](header(stamp), list(names), [point])


@dataclass
class Episode:
    """What is put into a bag: one observation more than commands."""

    frames: np.ndarray  # (T+1, H, W, 3)
    positions: np.ndarray  # (T+1, S)
    targets: np.ndarray  # (T, N)


def draw_episode(seed, steps=6, size=64):
    """Draw random frames, poses and targets within one step of the pose."""
    random = np.random.default_rng(seed)
    frames = random.integers(0, 255, (steps + 1, size, size, 3), np.uint8)
    low, high = (np.array(bound) for bound in (CONTRACT.action.low, CONTRACT.action.high))
    positions = random.uniform(0.0, 0.02, (steps + 1, 7))
    return Episode(frames, positions, positions[:-1] + random.uniform(low, high, (steps, 7)))


def at_rate(rate):
    """The contract at another control rate, Hz."""
    return replace(CONTRACT, rate=rate)


def episode_messages(episode, contract=CONTRACT, *, period=100_000_000, prefix='/'):
    """Give an episode as (topic, type, receive time, message), all in lock step."""
    camera, state, action = contract.cameras[0], contract.state, contract.action
    names = list(reversed(state.joints))  # a robot's order need not be the contract's
    messages = []
    for index, (frame, positions) in enumerate(
        zip(episode.frames, episode.positions, strict=True)
    ):
        now = START + index * period
        message = state_message(names, positions[::-1], now)
        messages.append((prefix + state.topic, 'sensor_msgs/msg/JointState', now, message))
        messages.append((prefix + camera.topic, camera.type, now, image_message(frame, now)))
        if index < len(episode.targets):
            message = trajectory_message(action.joints, episode.targets[index], now)
            messages.append((prefix + action.topic, COMMAND_TYPES[action.type], now, message))
    return messages


def write_bag(
    path, messages, contract=CONTRACT, *, outcome='success', ended_by='terminal', stop=0
):
    """Write messages into a bag."""
    writer = EpisodeBagWriter(path, {topic: kind for topic, kind, _, _ in messages})
    for topic, kind, received, message in messages:
        writer.write(topic, received, bytes(STORE.serialize_cdr(message, kind)))
    return writer.finish(
        EpisodeRecord(
            instruction=SENTENCE,
            outcome=outcome,
            ended_by=ended_by,
            stop=stop,
            contract=contract.to_text(),
        )
    )
