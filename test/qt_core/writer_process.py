# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A process that writes the same episodes whenever it is started, until it is done or killed.

python -m test.qt_core.writer_process FOLDER EPISODES SHARD_STEPS
"""

import sys
from pathlib import Path

import numpy as np

from qt_core.replay import ReplayEpisode, ReplayWriter
from qt_core.spec import Camera, Spec

SPEC = Spec(
    cameras=(Camera(name='front', height=64, width=64),),
    state_dim=2,
    num_actions=2,
    action_bins=9,
)


def episode(number, steps=None, images=None):
    random = np.random.default_rng(number)
    steps = 3 + number % 5 if steps is None else steps
    if images is None:
        images = random.integers(0, 256, (steps + 1, 64, 64, 3), np.uint8)
    return ReplayEpisode(
        images={'front': images},
        state=random.normal(size=(steps + 1, 2)).astype(np.float32),
        bins=random.integers(0, 9, (steps, 2)),
        reward=random.random(steps, np.float32),
        terminal=number % 2 == 0,
        timeout=number % 2 == 1,
        instruction=f'sentence {number % 3}',
        source=f'episode {number}',
        source_hash=f'{number:032x}',
        outcome=('success', 'failure', 'unlabeled')[number % 3],
        quality={'number': number} if number % 4 else None,
    )


def embed(sentences):
    return np.array([[len(s), ord(s[-1]), 0.5] for s in sentences], np.float32)


def write(folder, episodes, shard_steps, **options):
    """Add what is not there yet; say the number of each."""
    with ReplayWriter(
        folder, SPEC, embed, shard_steps=shard_steps, append=True, **options
    ) as writer:
        print('open', flush=True)
        for number in range(episodes):
            if f'{number:032x}' not in writer.sources:
                writer.add(episode(number))
                print(number, flush=True)
        print('added', flush=True)
        sys.stdin.read()


if __name__ == '__main__':
    write(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
