# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Episodes of Gymnasium environments: to measure a policy, or to record it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from qt_core.collection import play
from qt_core.configuration import ConfigurationError, require
from qt_core.environments.gymnasium import GymnasiumEnvironment
from qt_core.environments.tasks import GYMNASIUM, make_gymnasium
from qt_core.evaluation import Rollout, roll_out
from qt_core.instruction import SentenceEncoder
from qt_core.models.pretrained import read_config
from qt_core.policies import Choice, Policy, RandomPolicy, load_policy
from qt_core.replay import ReplayWriter
from qt_ros.evaluation import EpisodeOutcome, EvaluationReport

RANDOM = 'random'


def load_for(
    name: str,
    environment: str,
    seed: int,
    choice: Choice,
    *,
    body: str = '',
    sentence: str = '',
    action_bins: int | None = None,
    render: tuple[int, int] | None = None,
    max_steps: int | None = None,
) -> tuple[Policy, GymnasiumEnvironment]:
    """Load a policy and make the environment that it acts in.

    Args:
        name: Checkpoint folder, or `random`.
        environment: Id of the environment.
        seed: What random actions follow from.
        choice: How the policy chooses.
        body: Of a policy with several bodies, the name of the environment's.
        sentence: What it is told in every episode.
        action_bins: See `make_gymnasium`, as for what follows.
        render: See there.
        max_steps: See there.

    Raises:
        CheckpointError: The checkpoint cannot be used.
        ConfigurationError: The environment cannot be made, or the policy is not for it.
    """
    torch.set_num_threads(1)  # one observation at a time is too little work to share
    torch.manual_seed(seed)
    policy = None
    if name == RANDOM:
        plain = choice == Choice() and not body
        require(plain, 'policy', name, 'a checkpoint, for a body or a choice of actions')
    else:
        policy = load_policy(name, body=body)
        if policy.contract is not None:
            config = read_config(Path(name))['model']
            names = [each['name'] for each in config.get('bodies', ()) if not each['contract']]
            require(not names, '--body', body, f'{" or ".join(names)}, to act in {environment}')
            allowed = f'one that was trained in {environment}, not on a robot'
            require(False, 'policy', name, allowed)
        policy.choose(choice)
    made = make_gymnasium(
        environment,
        None if policy is None else policy.spec,
        sentence=sentence,
        action_bins=action_bins,
        render=render,
        max_steps=max_steps,
    )
    if policy is None:
        return RandomPolicy(made.spec, seed), made
    config = read_config(Path(name))
    sentences = [text for text in config.get('sentences', ()) if text]
    if sentences and not made.speaks and config['model'].get('condition_on_text', False):
        made.close()
        raise ConfigurationError(
            f'{name} was trained on sentences, and {environment} has none: give --sentence, such '
            f'as {sentences[0]!r}'
        )
    return policy, made


def evaluate_gymnasium(
    name: str,
    environment: str,
    seeds: range,
    *,
    choice: Choice | None = None,
    body: str = '',
    sentence: str = '',
    max_steps: int | None = None,
) -> EvaluationReport:
    """Run the episodes of `seeds`; see `load_for`."""
    choice = choice or Choice()
    policy, made = load_for(
        name, environment, seeds[0], choice, body=body, sentence=sentence, max_steps=max_steps
    )
    judged = made.reward_threshold is not None
    outcomes = []
    with made:
        for seed in track(seeds, description=f'evaluating {name}'):
            rollout = roll_out(
                made,
                policy.reset,
                lambda observation: policy.act(observation).bins,
                seed,
                receive=policy.receive,
                threshold=made.reward_threshold,
            )
            outcome = 'failure' if judged else 'ended'
            if judged and rollout.success:
                outcome = 'success'
            elif rollout.timeout:
                outcome = 'timeout'
            outcomes.append(
                EpisodeOutcome(
                    seed=seed,
                    instruction=rollout.instruction,
                    outcome=outcome,
                    steps=rollout.steps,
                    total_return=rollout.total_return,
                )
            )
    return EvaluationReport(
        policy=name,
        task=f'{GYMNASIUM}{environment}',
        through='direct',
        sentences='',
        choice=choice,
        asked_return=getattr(policy, 'asked_return', None),
        judged=judged,
        episodes=tuple(outcomes),
    )


def collect_gymnasium(
    policy: Policy, environment: GymnasiumEnvironment, seeds: Iterable[int], out: Path
) -> list[Rollout]:
    """Write the episodes of `seeds` into a replay folder.

    Ctrl-C writes the episodes that are finished, and ends; any other exception leaves whole
    shards only.

    Returns:
        What each episode came to.

    Raises:
        KeyboardInterrupt: Ctrl-C, before any episode was finished.
        ReplayError: The folder exists and is not empty.
        StateError: The environment gave what cannot be stored.
    """
    encoder = SentenceEncoder() if environment.speaks else None
    episodes: list[Rollout] = []
    with (
        environment,
        ReplayWriter(out, environment.spec, None if encoder is None else encoder.embed) as writer,
    ):
        try:
            for seed in seeds:
                episode = play(policy, environment, seed)
                writer.add(episode)
                episodes.append(
                    Rollout(
                        seed=seed,
                        instruction=episode.instruction,
                        success=episode.outcome == 'success',
                        steps=len(episode.bins),
                        total_return=float(episode.reward.sum(dtype=np.float64)),
                        timeout=episode.timeout,
                    )
                )
        except KeyboardInterrupt:
            if not episodes:
                raise
    return episodes
