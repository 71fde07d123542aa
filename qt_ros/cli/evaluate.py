# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros evaluate`: return and success rate of a checkpoint, in simulation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qt_ros.reach import BASELINES, VIDEO_EPISODES, evaluate_direct, evaluate_through_ros

if TYPE_CHECKING:
    from qt_core.policies import Choice
    from qt_ros.evaluation import EvaluationReport

MAX_SEED = 2**31 - 1  # of the simulator's parameter
UNSEEN_SEED = 1_000_000  # demonstrations use seeds below this one, evaluations those from it on
REACH_ONLY = ('sentences', 'instruction_override', 'contract', 'video', 'video_episodes')
GYMNASIUM_ONLY = ('sentence', 'max_steps')


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the `qt-ros` command."""
    parser = subparsers.add_parser(
        'evaluate',
        help='measure the success rate of a checkpoint in simulation',
        description='Measure return and success rate of a checkpoint with 95% intervals, in '
        'the embedded simulator, by default on layouts and wordings that no demonstration has, '
        'or in a Gymnasium environment.',
    )
    parser.add_argument('checkpoint', help='checkpoint folder, or random, or demonstrator')
    parser.add_argument('--task', default='reach', help='reach, or gymnasium:ID')
    parser.add_argument('--episodes', type=int, default=50)
    parser.add_argument('--through', default='direct', choices=['ros', 'direct'])
    parser.add_argument('--seed', type=int, default=UNSEEN_SEED, help='seed of the first episode')
    parser.add_argument('--body', default='', help='of a policy with several bodies, which')
    parser.add_argument('--out', type=Path, help='JSON report to write')
    reach = parser.add_argument_group('reach')
    reach.add_argument('--sentences', choices=['train', 'unseen'], help='unseen when left out')
    reach.add_argument(
        '--instruction-override',
        metavar='SENTENCE',
        help='give this sentence instead, {other} being a colour that the task did not name; '
        "success is still judged by the task's own sentence",
    )
    reach.add_argument(
        '--contract',
        type=Path,
        help="must equal the checkpoint's; the baselines', when the tabletop's is not meant",
    )
    reach.add_argument('--video', type=Path, help='mp4 of the first episodes to write')
    reach.add_argument('--video-episodes', type=int, help=f'{VIDEO_EPISODES} when left out')
    suite = parser.add_argument_group('gymnasium')
    suite.add_argument('--sentence', help='what the policy is told in every episode')
    suite.add_argument('--max-steps', type=int, help="the environment's own when left out")
    choice = parser.add_argument_group('how actions are chosen, as far as the policy knows it')
    choice.add_argument('--beam', type=int, default=1, help='prefixes kept; 1 is greedy')
    choice.add_argument('--guidance', type=float, default=1.0, help='classifier-free; 1 is none')
    choice.add_argument(
        '--exploration', type=float, default=0.0, help='probability of a random bin, per dimension'
    )
    choice.add_argument(
        '--temperature', type=float, default=0.0, help='of drawing bins; 0 is greedy'
    )
    choice.add_argument(
        '--prompted', action='store_true', help='show a successful episode before each'
    )
    choice.add_argument(
        '--target-return',
        type=float,
        nargs='+',
        metavar='RATIO',
        help='return to ask for, in multiples of the best in the data; several give a table of '
        'what was achieved for each',
    )
    parser.add_argument('--plot', type=Path, help='PNG of a table of target returns to write')
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    from qt_core.configuration import ConfigurationError
    from qt_core.environments.tasks import gymnasium_id
    from qt_core.policies import Choice
    from qt_ros.evaluation import TargetReturnSweep

    if arguments.episodes < 1:
        raise ConfigurationError(f'--episodes is {arguments.episodes}, expected at least 1')
    if not 0 <= arguments.seed <= MAX_SEED - arguments.episodes:
        raise ConfigurationError(f'--seed is {arguments.seed}, expected 0..{MAX_SEED}')
    for name, suffix in (('video', '.mp4'), ('plot', '.png')):
        path = getattr(arguments, name)
        if path and path.suffix != suffix:
            raise ConfigurationError(f'--{name} is {path}, expected a name that ends in {suffix}')
    environment = gymnasium_id(arguments.task)
    refuse_options(arguments, REACH_ONLY if environment else GYMNASIUM_ONLY)
    targets = arguments.target_return or [Choice().target_return]
    if arguments.plot:
        if len(targets) < 2:
            raise ConfigurationError('--plot shows several returns: give them to --target-return')
        import_module('matplotlib')  # that it is there is to be known before the episodes are run
    if arguments.video and len(targets) > 1:
        raise ConfigurationError('--video is of one --target-return, not of several')
    choices = [
        Choice(
            beam=arguments.beam,
            guidance=arguments.guidance,
            exploration=arguments.exploration,
            temperature=arguments.temperature,
            target_return=target,
            prompted=arguments.prompted,
        )
        for target in targets
    ]
    if arguments.checkpoint in BASELINES:
        plain = all(choice == Choice() for choice in choices) and not arguments.target_return
        if arguments.body or not plain:
            raise ConfigurationError(
                f'{arguments.checkpoint} has one body and its own way of choosing actions: leave '
                'out --body, and how they are to be chosen'
            )
        if arguments.through == 'ros':
            raise ConfigurationError(f'{arguments.checkpoint} runs with --through direct only')
    elif arguments.target_return:
        require_asking(arguments.checkpoint, choices, arguments.body)
    seeds = range(arguments.seed, arguments.seed + arguments.episodes)
    reports = [_evaluate(arguments, environment, seeds, choice) for choice in choices]
    result = reports[0] if len(reports) == 1 else TargetReturnSweep(tuple(reports))
    print(result.summary())
    if arguments.out:
        result.save(arguments.out)
    if isinstance(result, TargetReturnSweep) and arguments.plot:
        result.plot(arguments.plot)
    return 0


def _evaluate(
    arguments: argparse.Namespace, environment: str | None, seeds: range, choice: Choice
) -> EvaluationReport:
    from qt_core.configuration import ConfigurationError

    if environment is not None:
        if arguments.through == 'ros':
            raise ConfigurationError(f'--through ros is for reach, not for {arguments.task}')
        if arguments.checkpoint == 'demonstrator':
            raise ConfigurationError(f'the demonstrator knows reach, not {arguments.task}')
        from qt_ros.gymnasium_tasks import evaluate_gymnasium

        return evaluate_gymnasium(
            arguments.checkpoint,
            environment,
            seeds,
            choice=choice,
            body=arguments.body,
            sentence=arguments.sentence or '',
            max_steps=arguments.max_steps,
        )
    video_episodes = arguments.video_episodes
    options: dict[str, Any] = {
        'sentences': arguments.sentences or 'unseen',
        'override': arguments.instruction_override or '',
        'contract': arguments.contract,
        'video': arguments.video,
        'video_episodes': VIDEO_EPISODES if video_episodes is None else video_episodes,
        'choice': choice,
        'body': arguments.body,
    }
    if arguments.through == 'ros':
        return evaluate_through_ros(Path(arguments.checkpoint), seeds, **options)
    return evaluate_direct(arguments.checkpoint, seeds, **options)


def refuse_options(arguments: argparse.Namespace, names: Sequence[str]) -> None:
    """Refuse options that do not go with the task.

    Raises:
        ConfigurationError: One of them was given.
    """
    from qt_core.configuration import ConfigurationError

    for name in names:
        if getattr(arguments, name) is not None:
            option = '--' + name.replace('_', '-')
            raise ConfigurationError(f'{option} does not go with --task {arguments.task}')


def require_asking(checkpoint: str, choices: Sequence[Choice], body: str = '') -> None:
    """Refuse target returns for a policy that asks for none.

    Raises:
        ConfigurationError: It does not.
    """
    from qt_core.configuration import ConfigurationError
    from qt_core.policies import load_policy

    policy = load_policy(checkpoint, body=body)
    for choice in choices:
        policy.choose(choice)
        if getattr(policy, 'asked_return', None) is None:
            raise ConfigurationError(
                f'{checkpoint} asks for no return: leave out --target-return, or train a '
                'decision_transformer with return_conditioned'
            )
