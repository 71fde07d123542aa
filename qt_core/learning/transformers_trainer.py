# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Train a Decision Transformer with the `Trainer` of `transformers`.

    network = DecisionTransformer(config)
    measure(network, folder, dataset.episodes, DecisionTransformerTrainConfig(num_train_steps=1))
    transformers.Trainer(
        TrainableDecisionTransformer(network),
        TrainingArguments(out, remove_unused_columns=False),
        data_collator=WindowCollator(continuous=False),
        train_dataset=dataset,
    ).train()

`save_checkpoint` then writes the network as a checkpoint. Unlike ours, that trainer does not
resume exactly; by default its learning rate falls to zero, and the gradient is clipped at 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qt_core.learning.decision_transformer import action_loss, left_padded
from qt_core.models.decision_transformer import DecisionTransformer
from qt_core.replay import WindowBatch


class WindowCollator:
    """Turns samples of a `SequenceDataset` into what a `DecisionTransformer` takes.

    The trainer must leave the samples alone: `remove_unused_columns=False`.

    Args:
        continuous: Whether the network's actions are continuous.
    """

    def __init__(self, *, continuous: bool) -> None:
        self.continuous = continuous

    def __call__(self, samples: WindowBatch | Sequence[WindowBatch]) -> dict[str, Any]:
        """Give the inputs of samples one by one, or, as a `DataLoader` reads them, all at once."""
        batch = samples if isinstance(samples, WindowBatch) else _joined(samples)
        return left_padded(batch, continuous=self.continuous)


class TrainableDecisionTransformer(nn.Module):
    """A network whose forward pass gives its loss.

    Args:
        network: The network, which is trained itself.
    """

    def __init__(self, network: DecisionTransformer) -> None:
        super().__init__()
        self.network = network

    # Named one by one: of **inputs the trainer would think that it takes the number of labels,
    # and not divide the loss by the number of micro-batches. `return_loss` tells it that there
    # is a loss to evaluate although no input is called labels.
    def forward(
        self,
        state: Tensor,
        actions: Tensor,
        returns: Tensor,
        timesteps: Tensor,
        mask: Tensor,
        images: Mapping[str, Tensor] | None = None,
        text: Tensor | None = None,
        return_loss: bool = True,
    ) -> dict[str, Tensor]:
        """Give `loss` and `predicted`; see `DecisionTransformer.forward` and `action_loss`."""
        predicted = self.network(
            state=state,
            actions=actions,
            returns=returns,
            timesteps=timesteps,
            mask=mask,
            images=images,
            text=text,
        )
        return {'loss': action_loss(predicted, actions, mask), 'predicted': predicted}


def _joined(samples: Sequence[WindowBatch]) -> WindowBatch:
    """Put batches together as one."""

    def join(values: Sequence[Any]) -> Any:
        if isinstance(values[0], dict):
            return {name: join([value[name] for value in values]) for name in values[0]}
        return torch.cat(list(values)) if isinstance(values[0], Tensor) else values[0]

    names = vars(samples[0])
    return WindowBatch(**{name: join([vars(each)[name] for each in samples]) for name in names})
