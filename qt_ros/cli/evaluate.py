# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros evaluate`: success rate of a checkpoint, in simulation."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qt_core.contract import RobotContract
    from qt_core.observation import Observation
    from qt_ros.evaluation import EvaluationReport

MAX_SEED = 2**31 - 1  # of the simulator's parameter
UNSEEN_SEED = 1_000_000  # demonstrations use seeds below this one, evaluations those from it on
BASELINES = ('random', 'demonstrator')


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the `qt-ros` command."""
    parser = subparsers.add_parser(
        'evaluate',
        help='measure the success rate of a checkpoint in simulation',
        description='Measure the success rate of a checkpoint in the embedded simulator, with its '
        '95%% Wilson interval; by default on layouts and wordings that no demonstration has.',
    )
    parser.add_argument('checkpoint', help='checkpoint folder, or random, or demonstrator')
    parser.add_argument('--task', default='reach', choices=['reach'])
    parser.add_argument('--episodes', type=int, default=50)
    parser.add_argument('--through', default='direct', choices=['ros', 'direct'])
    parser.add_argument('--seed', type=int, default=UNSEEN_SEED, help='seed of the first episode')
    parser.add_argument('--sentences', default='unseen', choices=['train', 'unseen'])
    parser.add_argument(
        '--instruction-override',
        metavar='SENTENCE',
        default='',
        help='give this sentence instead, {other} being a colour that the task did not name; '
        "success is still judged by the task's own sentence",
    )
    parser.add_argument(
        '--contract',
        type=Path,
        help="must equal the checkpoint's; the baselines', when the tabletop's is not meant",
    )
    parser.add_argument('--out', type=Path, help='JSON report to write')
    parser.add_argument('--video', type=Path, help='mp4 of the first episodes to write')
    parser.add_argument('--video-episodes', type=int, default=6)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    from qt_core.configuration import ConfigurationError

    if arguments.episodes < 1:
        raise ConfigurationError(f'--episodes is {arguments.episodes}, expected at least 1')
    if not 0 <= arguments.seed <= MAX_SEED - arguments.episodes:
        raise ConfigurationError(f'--seed is {arguments.seed}, expected 0..{MAX_SEED}')
    if arguments.video and arguments.video.suffix != '.mp4':
        raise ConfigurationError(
            f'--video is {arguments.video}, expected a name that ends in .mp4'
        )
    seeds = range(arguments.seed, arguments.seed + arguments.episodes)
    if arguments.through == 'ros':
        if arguments.checkpoint in BASELINES:
            raise ConfigurationError(f'{arguments.checkpoint} runs with --through direct only')
        report = evaluate_through_ros(
            Path(arguments.checkpoint),
            seeds,
            sentences=arguments.sentences,
            override=arguments.instruction_override,
            contract=arguments.contract,
            video=arguments.video,
            video_episodes=arguments.video_episodes,
        )
    else:
        report = evaluate_direct(
            arguments.checkpoint,
            seeds,
            sentences=arguments.sentences,
            override=arguments.instruction_override,
            contract=arguments.contract,
            video=arguments.video,
            video_episodes=arguments.video_episodes,
        )
    print(report.summary())
    if arguments.out:
        report.save(arguments.out)
    return 0


def evaluate_direct(
    name: str,
    seeds: range,
    *,
    sentences: str = 'unseen',
    override: str = '',
    contract: Path | None = None,
    video: Path | None = None,
    video_episodes: int = 6,
) -> EvaluationReport:
    """Run episodes in this process.

    Args:
        name: Checkpoint folder, or one of `BASELINES`.
        seeds: Episodes.
        sentences: `train` or `unseen` wordings.
        override: Replaces the sentences; see `name_another_block`.
        contract: Contract of a baseline; the tabletop's when None. A checkpoint's must equal it.
        video: mp4 to write.
        video_episodes: How many of the episodes it shows.
    """
    import torch
    from rich.progress import track

    from qt_core.action_space import ActionSpace
    from qt_core.contract import RobotContract, require_same
    from qt_core.environments.demonstrator import Demonstrator
    from qt_core.environments.tabletop import TabletopEnvironment
    from qt_core.evaluation import roll_out
    from qt_core.policies import Policy, RandomPolicy, load_policy, robot_of
    from qt_core.share import share_path
    from qt_ros.evaluation import EpisodeOutcome, EvaluationReport
    from qt_ros.video import episode_frames, write_video

    torch.set_num_threads(1)  # one frame at a time is too little work to share
    if name in BASELINES:
        robot = RobotContract.load(contract or share_path('config/contracts/tabletop.yaml'))
        policy: Policy = RandomPolicy(robot)
    else:
        policy = load_policy(name)
        robot = robot_of(policy)
        if contract:
            require_same(RobotContract.load(contract), robot, str(contract), name)
    environment = TabletopEnvironment(robot, sentences=sentences)
    expert = Demonstrator(robot) if name == 'demonstrator' else None
    space = ActionSpace(robot)
    frames: list[NDArray[np.uint8]] = []

    def reset(sentence: str) -> None:
        frames.clear()
        if expert is None:
            policy.reset(sentence)
        else:
            expert.reset(sentence, environment.simulation.blocks, environment.scene.seed)

    def act(observation: Observation) -> NDArray[np.int64]:
        frames.append(environment.frame)
        if expert is None:
            return policy.act(observation).bins
        return space.encode(expert.act(observation.state))

    outcomes, shown = [], []
    for seed in track(seeds, description=f'evaluating {name}'):
        rollout = roll_out(environment, reset, act, seed, overriding(override), policy.receive)
        running = environment.simulation.outcome == 'running'
        outcomes.append(
            EpisodeOutcome(
                seed=seed,
                instruction=rollout.instruction,
                outcome='timeout' if running else environment.simulation.outcome,
                steps=rollout.steps,
            )
        )
        if video and len(outcomes) <= video_episodes:
            frames.append(environment.frame)
            shown += episode_frames(frames, rollout.instruction, outcomes[-1].outcome)
    environment.simulation.close()
    if video:
        write_video(video, shown, robot.rate)
    return EvaluationReport(
        policy=name,
        task='reach',
        through='direct',
        sentences=sentences,
        instruction_override=override,
        episodes=tuple(outcomes),
    )


def evaluate_through_ros(
    checkpoint: Path,
    seeds: range,
    *,
    sentences: str = 'unseen',
    override: str = '',
    contract: Path | None = None,
    video: Path | None = None,
    video_episodes: int = 6,
    bags: Path | None = None,
) -> EvaluationReport:
    """Run episodes on a real ROS graph: simulator, policy and recorder in lock step.

    Args:
        checkpoint: Checkpoint folder.
        seeds: Episodes.
        sentences: `train` or `unseen` wordings.
        override: Replaces the sentences; see `name_another_block`.
        contract: Must equal the checkpoint's, if given.
        video: mp4 to write, made from the recorded bags.
        video_episodes: How many of the episodes it shows.
        bags: Folder that keeps the recorded bags; a temporary one when None.
    """
    import tempfile

    from rich.progress import track

    from qt_core.contract import RobotContract, require_same
    from qt_core.learning.checkpoint import load_checkpoint
    from qt_ros.evaluation import EpisodeOutcome, EvaluationReport
    from qt_ros.graphs import GRAPHS
    from qt_ros.isolation import isolated_graph
    from qt_ros.up import running
    from qt_ros.video import episode_frames, write_video

    robot = load_checkpoint(checkpoint).robot
    if contract:
        require_same(RobotContract.load(contract), robot, str(contract), str(checkpoint))
    with tempfile.TemporaryDirectory(prefix='qt_ros_') as scratch, isolated_graph():
        from qt_ros.nodes.episode_runner import EpisodeRunner

        written = Path(scratch) / 'contract.yaml'
        written.write_text(robot.to_text(), encoding='utf-8')
        graph = GRAPHS['demo'].processes(
            contract=str(written),
            checkpoint=str(checkpoint.resolve()),
            lock_step=True,
            sentences=sentences,
            output=str((bags or Path(scratch) / 'bags').resolve()),
        )
        results = []
        with running(graph), EpisodeRunner('policy', record=True) as runner:
            for seed in track(seeds, description=f'evaluating {checkpoint} through ROS'):
                results.append(runner.run(seed, overriding(override)))
        if video:
            shown: list[NDArray[np.uint8]] = []
            for result in results[:video_episodes]:
                frames = list(camera_frames(Path(result.bag), robot))
                shown += episode_frames(frames, result.instruction, result.outcome)
            write_video(video, shown, robot.rate)
    return EvaluationReport(
        policy=str(checkpoint),
        task='reach',
        through='ros',
        sentences=sentences,
        instruction_override=override,
        episodes=tuple(
            EpisodeOutcome(
                seed=r.seed, instruction=r.instruction, outcome=r.outcome, steps=r.steps
            )
            for r in results
        ),
        latency_ms=tuple(x for r in results for x in r.latency_ms),
        frames_published=sum(r.published for r in results),
        control_rate_hz=sum(r.steps for r in results) / sum(r.seconds for r in results),
    )


def camera_frames(bag: Path, contract: RobotContract) -> Iterator[NDArray[np.uint8]]:
    """Give the frames (H, W, 3) of the first camera in a bag, as recorded."""
    from qt_ros.bags import EpisodeBag
    from qt_ros.conversions import image_to_rgb

    for _, _, message in EpisodeBag(bag).messages([contract.cameras[0].topic]):
        yield image_to_rgb(message)


def overriding(template: str) -> Callable[[str], str]:
    """Make the function that turns the task's sentence into the one that is given."""
    if not template:
        return lambda sentence: sentence
    from qt_core.environments.tabletop import name_another_block

    return lambda sentence: name_another_block(sentence, template)
