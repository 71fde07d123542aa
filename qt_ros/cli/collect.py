# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros collect`: record the scripted demonstrator through ROS, or a policy in Gymnasium."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

NOISE = 0.25
REACH_ONLY = ('noise', 'contract')
GYMNASIUM_ONLY = (
    *('policy', 'body', 'exploration', 'sentence'),
    *('action_bins', 'render', 'max_steps'),
)


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the `qt-ros` command."""
    parser = subparsers.add_parser(
        'collect',
        help='record demonstrations in simulation',
        description='Record episodes. Of reach: simulator, scripted demonstrator and recorder run '
        'as ROS nodes in lock step, and each episode becomes one bag. Of a Gymnasium environment: '
        'a policy acts, and the episodes become a replay folder.',
    )
    parser.add_argument('--task', default='reach', help='reach, or gymnasium:ID')
    parser.add_argument('--episodes', type=int, required=True)
    parser.add_argument('--out', type=Path, required=True, help='folder of the bags, or replay')
    parser.add_argument('--seed', type=int, default=0, help='seed of the first episode')
    reach = parser.add_argument_group('reach')
    reach.add_argument('--noise', type=float, help=f'0: flawless; 1: mostly wrong; else {NOISE}')
    reach.add_argument('--contract', type=Path, help="the tabletop's when left out")
    suite = parser.add_argument_group('gymnasium')
    suite.add_argument('--policy', metavar='CHECKPOINT', help='its folder; random when left out')
    suite.add_argument('--body', help='of a policy with several bodies, which')
    suite.add_argument(
        '--exploration', type=float, help='probability of a random bin, per dimension; else 0'
    )
    suite.add_argument('--sentence', help='what every episode is told, and stored with')
    suite.add_argument(
        '--action-bins', type=int, help="bins of a continuous action; the policy's, or 256"
    )
    suite.add_argument(
        '--render', metavar='HxW', help='store the rendered picture too, in this size: 64x64'
    )
    suite.add_argument('--max-steps', type=int, help="the environment's own when left out")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    from qt_core.configuration import ConfigurationError
    from qt_core.environments.tasks import gymnasium_id
    from qt_ros.cli.evaluate import UNSEEN_SEED, refuse_options

    out: Path = arguments.out
    if arguments.episodes < 1:
        raise ConfigurationError(f'--episodes is {arguments.episodes}, expected at least 1')
    last = arguments.seed + arguments.episodes - 1
    if not 0 <= arguments.seed <= last < UNSEEN_SEED:
        raise ConfigurationError(
            f'--seed is {arguments.seed}, expected all seeds in 0..{UNSEEN_SEED - 1}, '
            'which evaluations leave to demonstrations'
        )
    environment = gymnasium_id(arguments.task)
    refuse_options(arguments, REACH_ONLY if environment else GYMNASIUM_ONLY)
    if out.exists() and any(out.iterdir()):
        raise ConfigurationError(f'--out {out} is not empty; choose another folder')
    seeds = range(arguments.seed, arguments.seed + arguments.episodes)
    if environment is None:
        return _record_reach(arguments, seeds)
    return _record_gymnasium(arguments, environment, seeds)


def _record_reach(arguments: argparse.Namespace, seeds: range) -> int:
    from rich.progress import track

    from qt_ros.graphs import GRAPHS
    from qt_ros.isolation import isolated_graph
    from qt_ros.up import running

    out: Path = arguments.out
    graph = GRAPHS['collect'].processes(
        contract=str(arguments.contract.resolve()) if arguments.contract else None,
        output=str(out.resolve()),
        noise=NOISE if arguments.noise is None else arguments.noise,
    )
    outcomes: Counter[str] = Counter()
    steps = 0
    try:
        with isolated_graph():
            from qt_ros.nodes.episode_runner import EpisodeRunner

            with running(graph), EpisodeRunner('demonstrator', record=True) as runner:
                for seed in track(seeds, description='recording'):
                    result = runner.run(seed)
                    outcomes[result.outcome] += 1
                    steps += result.steps
    finally:
        with suppress(OSError):
            out.rmdir()  # only if nothing was recorded
    counts = ', '.join(f'{count} {outcome}' for outcome, count in outcomes.most_common())
    print(f'{out}: {arguments.episodes} episodes ({counts}), {steps} steps')
    return 0


def _record_gymnasium(arguments: argparse.Namespace, environment: str, seeds: range) -> int:
    import signal

    from rich.progress import track

    from qt_core.policies import Choice
    from qt_ros.gymnasium_tasks import RANDOM, collect_gymnasium, load_for

    policy, made = load_for(
        arguments.policy or RANDOM,
        environment,
        arguments.seed,
        Choice(exploration=arguments.exploration or 0.0),
        body=arguments.body or '',
        sentence=arguments.sentence or '',
        action_bins=arguments.action_bins,
        render=_size(arguments.render),
        max_steps=arguments.max_steps,
    )
    shown = track(seeds, description=f'recording {environment}')
    episodes = collect_gymnasium(policy, made, shown, arguments.out)
    mean = sum(episode.total_return for episode in episodes) / len(episodes)
    steps = sum(episode.steps for episode in episodes)
    print(f'{arguments.out}: {len(episodes)} episodes, mean return {mean:.4g}, {steps} steps')
    return 0 if len(episodes) == len(seeds) else 128 + signal.SIGINT


def _size(text: str | None) -> tuple[int, int] | None:
    """Read HxW, pixels."""
    from qt_core.configuration import ConfigurationError

    if text is None:
        return None
    match = re.fullmatch(r'(\d{1,5})x(\d{1,5})', text)
    if match is None:
        raise ConfigurationError(f'--render is {text!r}, expected HxW in pixels, such as 64x64')
    return int(match[1]), int(match[2])
