# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The example of the public `q-transformer` package's README, with the import changed.

An agent explores an environment and writes what it saw into a replay folder; a learner trains the
model on the folder; the model says which actions are best. The environment is a mock: noise to
look at, and nothing to learn.

Sizes are small by default, since the README's take hours on a CPU and want a GPU; `--full` has
those. Apart from sizes, one line differs: sentences are embedded by the encoder that comes with
qt_core, 384 numbers wide, so that nothing is downloaded (`text_embed_shape`).
"""

import argparse
import tempfile
from pathlib import Path

import torch

from qt_core import Agent, QLearner, QRoboticTransformer, ReplayMemoryDataset
from qt_core.mocks import MockEnvironment

parser = argparse.ArgumentParser(description="the public package's README example")
parser.add_argument('--image', type=int, default=64, help='side of the images, pixels')
parser.add_argument('--window', type=int, default=4, help="side of MaxViT's windows")
parser.add_argument('--dim', type=int, default=16, help="channels of MaxViT's first stage")
parser.add_argument('--depth', type=int, nargs='+', default=[1, 1, 1], help='blocks per stage')
parser.add_argument('--bins', type=int, default=256, help='bins of each of the 8 actions')
parser.add_argument('--episodes', type=int, default=20)
parser.add_argument('--episode-steps', type=int, default=30, help='at most, per episode')
parser.add_argument('--train-steps', type=int, default=50)
parser.add_argument('--batch-size', type=int, default=4)
parser.add_argument('--accumulate', type=int, default=2, help='batches per gradient step')
parser.add_argument('--out', help='folder for data and checkpoints; none is kept without')
parser.add_argument('--quick', action='store_true', help='sizes that take seconds')
parser.add_argument('--full', action='store_true', help="the README's sizes")
if (sizes := parser.parse_known_args()[0]).quick:
    parser.set_defaults(image=32, dim=8, depth=[1, 1], bins=16, episodes=3, train_steps=3)
elif sizes.full:
    parser.set_defaults(image=224, window=7, dim=64, depth=[2, 2, 5, 2], episodes=1000)
    parser.set_defaults(episode_steps=100, train_steps=10000, accumulate=16)
args = parser.parse_args()
if not args.full:
    torch.set_num_threads(1)  # networks this small gain nothing from more

# the attention model

model = QRoboticTransformer(
    cameras=[{'height': args.image, 'width': args.image}],  # 224 x 224 without this line
    vit={
        'num_classes': 1000,
        'dim_conv_stem': args.dim,
        'dim': args.dim,
        'dim_head': args.dim,
        'depth': args.depth,
        'window_size': args.window,
        'mbconv_expansion_rate': 4,
        'mbconv_shrinkage_rate': 0.25,
        'dropout': 0.1,
    },
    num_actions=8,
    action_bins=args.bins,
    depth=1,
    heads=8,
    dim_head=64,
    cond_drop_prob=0.2,
    dueling=True,
)

# the environment; yours overrides `init` and `forward` of qt_core.BaseEnvironment

env = MockEnvironment(state_shape=(3, 6, args.image, args.image), text_embed_shape=(384,))

unkept = tempfile.TemporaryDirectory()
out = Path(args.out or unkept.name)

# the agent lets the model act in the environment, and writes a replay folder

agent = Agent(
    model,
    environment=env,
    memories_dataset_folder=out / 'replay_memories_data',
    num_episodes=args.episodes,
    max_num_steps_per_episode=args.episode_steps,
)

agent()

# Q-learning on the replay folder

dataset = ReplayMemoryDataset(out / 'replay_memories_data')
print(f'{len(dataset)} steps of {len(dataset.episodes)} episodes in {dataset.folder.folder}')

q_learner = QLearner(
    model,
    dataset=dataset,
    checkpoint_folder=out / 'checkpoints',
    num_train_steps=args.train_steps,
    learning_rate=3e-4,
    batch_size=args.batch_size,
    grad_accum_every=args.accumulate,
)

history = q_learner()
print(f'loss {history["loss"][0][1]:.4f} at first, {history["loss"][-1][1]:.4f} at last')

# after much learning, your robot should be better at choosing actions

video = 2 * torch.rand(2, 3, 6, args.image, args.image) - 1

instructions = ['bring me that apple sitting on the table', 'please pass the butter']

actions = model.get_optimal_actions(video, instructions)

for instruction, bins in zip(instructions, actions.tolist(), strict=True):
    print(f'{instruction}: {bins}')
