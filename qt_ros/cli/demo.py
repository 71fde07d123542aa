# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros demo`: the whole loop once, on a real ROS graph.

shipped policy ─ simulator, policy, recorder on ROS ─▶ bags ─▶ replay folder ─▶ training
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

VIDEO_EPISODES = 6
MARKER = '.qt_ros_demo'  # in a folder that a demo may replace


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the `qt-ros` command."""
    parser = subparsers.add_parser(
        'demo',
        help='run, record, convert and train once, in simulation',
        description='Run the shipped policy through ROS on unseen layouts and sentences, record '
        'the episodes, convert the bags, train on them from scratch for a few hundred steps, and '
        'write summary.json, a video and a picture of the Q-values.',
    )
    parser.add_argument(
        '--out', type=Path, default=Path('out/demo'), help='replaced when it exists'
    )
    parser.add_argument('--episodes', type=int, default=60)
    parser.add_argument('--checkpoint', type=Path, help='another policy than the shipped one')
    parser.add_argument('--num-train-steps', type=int, help='overrides config/train/demo.yaml')
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    from qt_core.configuration import ConfigurationError
    from qt_core.learning.checkpoint import load_checkpoint
    from qt_core.learning.run import load_run, make_trainer
    from qt_core.share import share_path
    from qt_ros.bags import find_bags
    from qt_ros.cli.convert import convert_with_progress
    from qt_ros.cli.evaluate import UNSEEN_SEED
    from qt_ros.cli.train import train_with_progress
    from qt_ros.evaluation import write_json
    from qt_ros.reach import evaluate_direct, evaluate_through_ros

    if arguments.episodes < 1:
        raise ConfigurationError(f'--episodes is {arguments.episodes}, expected at least 1')
    checkpoint = arguments.checkpoint or share_path('config/policies/reach')
    load_checkpoint(checkpoint)
    training = load_run(
        share_path('config/train/demo.yaml'), num_train_steps=arguments.num_train_steps
    )
    out = _fresh(arguments.out)
    seeds = range(UNSEEN_SEED, UNSEEN_SEED + arguments.episodes)
    print('1/4 the policy on ROS: simulator, policy and recorder in processes of their own')
    report = evaluate_through_ros(
        checkpoint,
        seeds,
        video=out / 'episodes.mp4',
        video_episodes=VIDEO_EPISODES,
        bags=out / 'bags',
    )
    print(report.summary())
    print('2/4 what to compare with: random actions, and the demonstrator')
    chance = evaluate_direct('random', seeds)
    expert = evaluate_direct('demonstrator', seeds)
    picture_values(checkpoint, out / 'bags', out / 'values.png')
    print('3/4 bags to a replay folder')
    conversion = convert_with_progress(find_bags([out / 'bags']), out / 'replay')
    print(
        f'{conversion.episodes} episodes, {conversion.steps} steps', *conversion.failures, sep='\n'
    )
    print('4/4 training from scratch on those episodes')
    trainer = make_trainer(training, [out / 'replay'], out / 'run')
    losses = train_with_progress(trainer)['loss']
    published, recorded = _count_frames(report, out / 'bags')
    summary = {
        'checkpoint': str(checkpoint),
        'task': report.task,
        'through': report.through,
        'sentences': report.sentences,
        'episodes': len(report.episodes),
        'success_rate': report.success_rate,
        'success_interval': list(report.success_interval),
        'random_success_rate': chance.success_rate,
        'demonstrator_success_rate': expert.success_rate,
        'control_rate_hz': report.control_rate_hz,
        'observation_to_command_ms': report.latency_percentiles(),
        'frames_published': published,
        'frames_recorded': recorded,
        'episodes_recorded': conversion.episodes + len(conversion.failures),
        'replay_steps': conversion.steps,
        'num_train_steps': trainer.step,
        'train_loss_first': losses[0][1],
        'train_loss_last': losses[-1][1],
    }
    write_json(out / 'summary.json', summary)
    for name, value in summary.items():
        print(f'  {name}: {value}')
    print(f'written to {out}: summary.json, episodes.mp4, values.png, bags/, replay/, run/')
    return 0


def picture_values(checkpoint: Path, bags: Path, picture: Path) -> None:
    """Draw what the policy thought in the middle of the first recorded episode."""
    from qt_core.policies import load_policy
    from qt_ros.bags import EpisodeBag, find_bags
    from qt_ros.bags.converter import convert_episode
    from qt_ros.reach import camera_frames
    from qt_ros.video import plot_values

    policy = load_policy(checkpoint)
    bag = EpisodeBag(find_bags([bags])[0])
    episode, _ = convert_episode(bag)
    middle = len(episode.bins) // 2
    policy.reset(episode.instruction)
    for observation in episode.observations()[: middle + 1]:
        decision = policy.act(observation)
    assert decision.values is not None
    plot_values(
        picture,
        list(camera_frames(bag.path, bag.contract))[middle],
        decision.values,
        decision.bins,
        bag.contract.action.joints,
        episode.instruction,
    )


def _count_frames(report: Any, bags: Path) -> tuple[int, int]:
    """Count camera frames that the simulator published and that the bags hold."""
    from qt_ros.bags import EpisodeBag, find_bags

    recorded = 0
    for path in find_bags([bags]):
        bag = EpisodeBag(path)
        topic = bag.contract.cameras[0].topic
        recorded += sum(c.messages for c in bag.record.counts if c.topic.endswith(f'/{topic}'))
    return report.frames_published, recorded


def _fresh(out: Path) -> Path:
    """Empty the folder of an earlier demo; refuse to touch anything else."""
    from qt_core.configuration import ConfigurationError

    marker = out / MARKER
    if out.exists() and any(out.iterdir()):
        if not marker.is_file():
            raise ConfigurationError(f'--out {out} is not empty and not a demo; choose another')
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    marker.touch()
    return out
