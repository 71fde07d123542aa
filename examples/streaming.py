# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Act frame by frame: a session, beam search, guidance and a given prefix.

A policy looks at the last six frames. A session encodes only the newest at each control step and
keeps the tokens of the others; the values are those of a full pass. The network is untrained, so
what it chooses means nothing; load a trained one by `QRoboticTransformer.from_pretrained(folder)`.
"""

import argparse
import time

import torch

from qt_core import QRoboticTransformer

parser = argparse.ArgumentParser(description='act frame by frame')
parser.add_argument('--steps', type=int, default=30, help='control steps')
parser.add_argument('--quick', action='store_true', help='8 control steps')
args = parser.parse_args()
steps = 8 if args.quick else args.steps

torch.set_num_threads(1)  # a network this small gains nothing from more
torch.manual_seed(0)
model = QRoboticTransformer(
    cameras=[{'name': 'wrist', 'height': 64, 'width': 64}],
    vit={'dim': 32, 'depth': [1, 1, 1], 'window_size': 4, 'dim_head': 32},
    frames=6,
    num_actions=8,
    action_bins=256,
    depth=2,
    cond_drop_prob=0.1,  # there is a null sentence, so that guidance works
).eval()
sentence = ['put the red block into the bowl']
frames = torch.randint(256, (steps, 64, 64, 3), dtype=torch.uint8)

# One frame at a time.

session = model.session(sentence)
took = []
for frame in frames:
    start = time.perf_counter()
    bins, values = session.act({'wrist': frame})
    took.append(time.perf_counter() - start)

# The same by a full pass over the last six frames, (B, C, F, H, W).

video = frames[-6:].permute(3, 0, 1, 2)[None]
start = time.perf_counter()
again, same = model.get_optimal_actions(video, sentence, return_q_values=True)
full = time.perf_counter() - start
difference = (values - same).abs().max().item()
print(f'session   {bins[0].tolist()}, {1e3 * sorted(took)[steps // 2]:.1f} ms per step')
print(f'full pass {again[0].tolist()}, {1e3 * full:.1f} ms; values differ by {difference:.0e}')

# Variants of the same call. `model.session(..., beam=4, cond_scale=2.0)` takes the first two.


def show(name: str, **how) -> None:
    """Print the action chosen and the value of its last dimension."""
    bins, values = model.get_optimal_actions(video, sentence, return_q_values=True, **how)
    print(f'{name:9} {bins[0].tolist()}, value {values[0, -1].max():.4f}')


show('greedy')
show('beam', beam=4)  # keeps the 4 best prefixes at each dimension
show('guided', cond_scale=2.0)  # further from what it would do without a sentence
show('prefix', actions=torch.tensor([[7, 200]]))  # the first two dimensions are given
