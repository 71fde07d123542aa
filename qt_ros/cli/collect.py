# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros collect`: record the scripted demonstrator in simulation, through ROS."""

from __future__ import annotations

import argparse
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the `qt-ros` command."""
    parser = subparsers.add_parser(
        'collect',
        help='record demonstrations in simulation',
        description='Record episodes of the scripted demonstrator: simulator, demonstrator and '
        'recorder run as ROS nodes in lock step, and each episode becomes one bag.',
    )
    parser.add_argument('--episodes', type=int, required=True)
    parser.add_argument('--out', type=Path, required=True, help='folder of the bags')
    parser.add_argument('--seed', type=int, default=0, help='seed of the first episode')
    parser.add_argument('--noise', type=float, default=0.25, help='0: flawless; 1: mostly wrong')
    parser.add_argument('--contract', type=Path, help="the tabletop's when left out")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    from rich.progress import track

    from qt_core.configuration import ConfigurationError
    from qt_ros.cli.evaluate import UNSEEN_SEED
    from qt_ros.graphs import GRAPHS
    from qt_ros.isolation import isolated_graph
    from qt_ros.up import running

    out: Path = arguments.out
    if arguments.episodes < 1:
        raise ConfigurationError(f'--episodes is {arguments.episodes}, expected at least 1')
    last = arguments.seed + arguments.episodes - 1
    if not 0 <= arguments.seed <= last < UNSEEN_SEED:
        raise ConfigurationError(
            f'--seed is {arguments.seed}, expected all seeds in 0..{UNSEEN_SEED - 1}, '
            'which evaluations leave to demonstrations'
        )
    if out.exists() and any(out.iterdir()):
        raise ConfigurationError(f'--out {out} is not empty; choose another folder')
    graph = GRAPHS['collect'].processes(
        contract=str(arguments.contract.resolve()) if arguments.contract else None,
        output=str(out.resolve()),
        noise=arguments.noise,
    )
    outcomes: Counter[str] = Counter()
    steps = 0
    try:
        with isolated_graph():
            from qt_ros.nodes.episode_runner import EpisodeRunner

            with running(graph), EpisodeRunner('demonstrator', record=True) as runner:
                seeds = range(arguments.seed, arguments.seed + arguments.episodes)
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
