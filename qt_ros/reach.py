# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Episodes of the task `reach`, to measure a policy: in this process, or on a ROS graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qt_core.contract import RobotContract
    from qt_core.observation import Observation
    from qt_core.policies import Choice
    from qt_ros.evaluation import EvaluationReport

BASELINES = ('random', 'demonstrator')
VIDEO_EPISODES = 6


def evaluate_direct(
    name: str,
    seeds: range,
    *,
    sentences: str = 'unseen',
    override: str = '',
    contract: Path | None = None,
    video: Path | None = None,
    video_episodes: int = VIDEO_EPISODES,
    choice: Choice | None = None,
    body: str = '',
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
        choice: How a checkpoint's policy chooses actions.
        body: Of a policy with several bodies, the name of the arm's; '' for the first robot.
    """
    import torch
    from rich.progress import track

    from qt_core.action_space import ActionSpace
    from qt_core.contract import RobotContract, require_same
    from qt_core.environments.demonstrator import Demonstrator
    from qt_core.environments.tabletop import TabletopEnvironment
    from qt_core.evaluation import roll_out
    from qt_core.policies import Choice, Policy, RandomPolicy, load_policy, robot_of
    from qt_core.share import share_path
    from qt_ros.evaluation import EpisodeOutcome, EvaluationReport
    from qt_ros.video import episode_frames, write_video

    choice = choice or Choice()
    torch.set_num_threads(1)  # one frame at a time is too little work to share
    torch.manual_seed(seeds[0])  # of actions that are drawn
    if name in BASELINES:
        robot = RobotContract.load(contract or share_path('config/contracts/tabletop.yaml'))
        policy: Policy = RandomPolicy(robot)
    else:
        policy = load_policy(name, body=body)
        robot = robot_of(policy)
        policy.choose(choice)
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
                total_return=rollout.total_return,
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
        choice=choice,
        asked_return=getattr(policy, 'asked_return', None),
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
    video_episodes: int = VIDEO_EPISODES,
    choice: Choice | None = None,
    body: str = '',
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
        choice: How the policy chooses actions.
        body: Of a policy with several bodies, the name of the arm's; '' for the first robot.
        bags: Folder that keeps the recorded bags; a temporary one when None.
    """
    import tempfile

    from rich.progress import track

    from qt_core.contract import RobotContract, require_same
    from qt_core.policies import Choice, load_policy, robot_of
    from qt_ros.evaluation import EpisodeOutcome, EvaluationReport
    from qt_ros.graphs import GRAPHS
    from qt_ros.isolation import isolated_graph
    from qt_ros.up import running
    from qt_ros.video import episode_frames, write_video

    choice = choice or Choice()
    policy = load_policy(checkpoint, 'cpu', body=body)
    robot = robot_of(policy)
    policy.choose(choice)
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
        graph = tuple(
            replace(process, parameters={**process.parameters, **asdict(choice)})
            if process.name == 'policy'
            else process
            for process in graph
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
        choice=choice,
        asked_return=getattr(policy, 'asked_return', None),
        episodes=tuple(
            EpisodeOutcome(
                seed=r.seed,
                instruction=r.instruction,
                outcome=r.outcome,
                steps=r.steps,
                total_return=float(r.outcome == 'success'),  # what the task rewards
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
