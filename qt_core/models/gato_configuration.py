# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Sizes and choices of a Gato, and the bodies that one network acts with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

from qt_core.configuration import require
from qt_core.contract import RobotContract
from qt_core.embodiment import Embodiment
from qt_core.models.gato_tokens import LEAST_TEXT, VALUES, TokenIds
from qt_core.spec import MAX_SIZE, Spec

IMAGE_TOKENS = ('patches', 'single')
SENTENCES = ('step', 'window')
ACTION_POSITIONS = ('shared', 'none')
# Smallest and largest of each number: a damaged file must not exhaust memory.
LIMITS = {
    'text_ids': (LEAST_TEXT, 1 << 20),
    'context': (1, 1 << 16),
    'width': (2, MAX_SIZE),
    'depth': (1, MAX_SIZE),
    'heads': (1, MAX_SIZE),
    'dim_head': (1, MAX_SIZE),
    'ff_width': (2, 4 * MAX_SIZE),
    'patch_size': (1, MAX_SIZE),
    'image_channels': (2, MAX_SIZE),
    'max_timesteps': (1, 1 << 20),
    'position_rows': (1, MAX_SIZE),
    'position_columns': (1, MAX_SIZE),
}

# Reed et al. 2022, table 5: blocks, heads, width, feed-forward width, width of a head.
PUBLISHED = {
    '79M': (8, 24, 768, 3072, 32),
    '364M': (12, 12, 1536, 6144, 128),
    '1.18B': (24, 16, 2048, 8192, 128),
}


@dataclass(frozen=True, kw_only=True)
class Body(Spec):
    """One robot or environment; the first fields are those of `Spec`.

    Attributes:
        name: What it is called, unlike any other of the network.
        contract: The text of its contract; empty for an environment that is no robot.
    """

    name: str = 'body'
    contract: str = ''

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.name), 'name', self.name, 'a name')
        few = self.action_bins <= VALUES
        require(few, f'{self.name}: action_bins', self.action_bins, f'at most {VALUES}')
        robot = self.embodiment.contract  # raises where the text is not a contract
        fits = robot is None or Spec.of(robot) == self.shapes
        require(fits, f'{self.name}: contract', robot and robot.name, 'one of these shapes')

    @cached_property
    def embodiment(self) -> Embodiment:
        """Its shapes and units."""
        contract = None
        if self.contract != '':
            contract = RobotContract.from_text(self.contract, f'{self.name}: contract')
        return Embodiment(self.shapes, contract)

    @classmethod
    def named(cls, name: str, embodiment: Embodiment) -> Self:
        """Give the body of this name, shapes and units."""
        contract = embodiment.contract
        text = '' if contract is None else contract.to_text()
        shapes: dict[str, Any] = embodiment.spec.fields()
        return cls(**shapes, name=name, contract=text)


@dataclass(frozen=True, kw_only=True)
class GatoConfig:
    """What a `Gato` is built from.

    Attributes:
        bodies: What it acts with; empty until it is known.
        text_ids: Ids of text; a network for few sentences needs few.
        context: Tokens it looks back at, and is trained on at a time.
        width: Width D of a token.
        depth: Blocks.
        heads: Attention heads.
        dim_head: Width of one.
        ff_width: Width of the feed-forward layer before its two halves are multiplied (GEGLU).
        dropout: Share of each layer's output dropped in training.
        stochastic_depth: Share of the layers skipped in training, sample by sample
            (Huang et al. 2016).
        image_tokens: `patches`: a token for each square patch of an image, as in the paper;
            `single`: one for each image, so that several times as many steps fit into the context.
        patch_size: Side of a patch, pixels.
        image_channels: Channels of the convolutions that see a patch or an image.
        sentence: Whether a sentence stands in every `step`, as in the paper, or once in a
            `window`.
        timestep_positions: Add an embedding of the number of the step in its episode, which the
            paper does not.
        max_timesteps: Steps that such an embedding tells apart.
        action_position: What is added to an action's tokens: one `shared` embedding (the text of
            the paper), or `none` (a caption of its appendix).
        position_rows: Rows of an image that are told apart.
        position_columns: Columns of an image that are told apart.
    """

    sentence_dim: ClassVar[None] = None  # sentences are read token by token, not as embeddings

    bodies: tuple[Body, ...] = ()
    text_ids: int = 32000
    context: int = 1024
    width: int = 768
    depth: int = 8
    heads: int = 24
    dim_head: int = 32
    ff_width: int = 3072
    dropout: float = 0.1
    stochastic_depth: float = 0.0
    image_tokens: str = 'patches'
    patch_size: int = 16
    image_channels: int = 64
    sentence: str = 'step'
    timestep_positions: bool = False
    max_timesteps: int = 4096
    action_position: str = 'shared'
    position_rows: int = 128
    position_columns: int = 128

    def __post_init__(self) -> None:
        names = [body.name for body in self.bodies]
        require(len(set(names)) == len(names), 'model.bodies', names, 'unique names')
        for name, (least, most) in LIMITS.items():
            size = getattr(self, name)
            require(least <= size <= most, f'model.{name}', size, f'{least}..{most}')
        for name in ('width', 'ff_width'):
            size = getattr(self, name)
            require(size % 2 == 0, f'model.{name}', size, 'an even number')
        for name in ('dropout', 'stochastic_depth'):
            share = getattr(self, name)
            require(0 <= share < 1, f'model.{name}', share, '0 <= share < 1')
        for name, allowed in (
            ('image_tokens', IMAGE_TOKENS),
            ('sentence', SENTENCES),
            ('action_position', ACTION_POSITIONS),
        ):
            chosen = getattr(self, name)
            require(chosen in allowed, f'model.{name}', chosen, ' or '.join(allowed))

    @property
    def ids(self) -> TokenIds:
        """What each token id means."""
        return TokenIds(self.text_ids)

    @property
    def specs(self) -> tuple[Spec, ...]:
        """Give the shapes of the bodies."""
        return tuple(body.shapes for body in self.bodies)

    def fitted(self, bodies: tuple[Body, ...]) -> Self:
        """Give the same network for these bodies."""
        return dataclasses.replace(self, bodies=bodies)

    @classmethod
    def published(cls, name: str, bodies: tuple[Body, ...] = ()) -> Self:
        """Give one of the paper's sizes: `79M`, `364M` or `1.18B`.

        Raises:
            ConfigurationError: There is no such size.
        """
        require(name in PUBLISHED, 'size', name, ' or '.join(PUBLISHED))
        depth, heads, width, ff_width, dim_head = PUBLISHED[name]
        return cls(
            bodies=bodies,
            depth=depth,
            heads=heads,
            width=width,
            ff_width=ff_width,
            dim_head=dim_head,
            stochastic_depth=0.1,
        )
