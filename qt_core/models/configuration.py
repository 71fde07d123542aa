# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Sizes and choices of a Q-Transformer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from qt_core.configuration import build, plain, require
from qt_core.models.maxvit import MaxViTConfig
from qt_core.spec import MAX_SIZE, Spec

HEADS = ('encoder_decoder', 'concatenated', 'single')
CONDITIONINGS = ('film', 'cross_attention')


@dataclass(frozen=True, kw_only=True)
class QTransformerConfig(Spec):
    """What a `QRoboticTransformer` is built from; the first fields are those of `Spec`.

    Attributes:
        frames: Frames F the policy looks at, the newest included.
        vit: Sizes of the frame encoder.
        token_learner_num_output_tokens: Tokens the token learner keeps of one image.
        condition_on_text: Whether a sentence is part of the input.
        conditioning: How the sentence reaches the frame encoder: `film` scales and shifts its
            channels by the sentence's embedding; with `cross_attention` pixels attend to the
            embeddings of its tokens.
        text_dim: Width E of an embedding.
        cond_drop_prob: Share of the sentences that training replaces by a null sentence; above 0,
            actions can be decoded with classifier-free guidance (Ho & Salimans 2022).
        dim: Width D of the transformer; None for the frame encoder's last width.
        depth: Blocks of the frame-causal transformer.
        heads: Attention heads.
        dim_head: Width of one.
        gated: Scale what each head reads by a sigmoid, so that it can attend to nothing.
        dropout: Share of each layer's output dropped in training.
        head: `encoder_decoder`: a decoder over the action dimensions attends to the newest frame's
            tokens. `concatenated`: dimensions chosen so far stand in one sequence with the tokens
            of the frames, as in the paper. `single`: dimensions do not see each other; with one
            dimension this is plain Q-learning.
        decoder_depth: Blocks of the decoder of `encoder_decoder`.
        dueling: Q = V + A - mean A (Wang et al. 2016), on logits.
        dual_critics: Two critics over one frame encoder; the smaller value counts
            (Fujimoto et al. 2018).
        return_range: Smallest and largest return that the data can show.
        value_bins: 0 regresses the value; from 2 on, the value is a distribution over this many
            bins of the return range, learned by classification (Farebrother et al. 2024).
        random_order: Train with the action dimensions in a random order, told to the decoder.
        memory: Past steps whose tokens and actions the decoder attends to, fewer than `frames`.
        memory_dropout: Share of the samples that train without that memory.
    """

    frames: int = 6
    vit: MaxViTConfig = field(default_factory=MaxViTConfig)
    token_learner_num_output_tokens: int = 8
    condition_on_text: bool = True
    conditioning: str = 'film'
    text_dim: int = 384
    cond_drop_prob: float = 0.0
    dim: int | None = None
    depth: int = 6
    heads: int = 8
    dim_head: int = 64
    gated: bool = True
    dropout: float = 0.0
    head: str = 'encoder_decoder'
    decoder_depth: int = 2
    dueling: bool = False
    dual_critics: bool = False
    return_range: tuple[float, ...] = (0.0, 1.0)
    value_bins: int = 0
    random_order: bool = False
    memory: int = 0
    memory_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            *('frames', 'token_learner_num_output_tokens', 'text_dim', 'width', 'depth'),
            *('heads', 'dim_head', 'decoder_depth'),
        ):
            size = getattr(self, name)
            require(1 <= size <= MAX_SIZE, f'model.{name}', size, f'1..{MAX_SIZE}')
        require(self.width % 4 == 0, 'model.dim', self.width, 'a multiple of 4')
        channels = [camera.channels for camera in self.cameras]
        require(len(set(channels)) <= 1, 'cameras.channels', channels, 'the same for all')
        for name, allowed in (('head', HEADS), ('conditioning', CONDITIONINGS)):
            chosen = getattr(self, name)
            require(chosen in allowed, f'model.{name}', chosen, ' or '.join(allowed))
        for name in ('cond_drop_prob', 'dropout', 'memory_dropout'):
            share = getattr(self, name)
            require(0 <= share < 1, f'model.{name}', share, '0 <= share < 1')
        sentence = self.condition_on_text or self.cond_drop_prob == 0
        require(sentence, 'model.cond_drop_prob', self.cond_drop_prob, '0 without a sentence')
        span = len(self.return_range) == 2 and self.return_range[0] < self.return_range[1]
        require(span, 'model.return_range', self.return_range, 'a smaller and a larger number')
        values = self.value_bins == 0 or 2 <= self.value_bins <= MAX_SIZE
        require(values, 'model.value_bins', self.value_bins, f'0 or 2..{MAX_SIZE}')
        short = 0 <= self.memory < self.frames
        require(short, 'model.memory', self.memory, f'0..{self.frames - 1}, less than frames')
        if self.head != 'encoder_decoder':
            require(self.memory == 0, 'model.memory', self.memory, '0 for this head')
        if self.head == 'single':
            require(not self.random_order, 'model.random_order', True, 'false for this head')

    @property
    def width(self) -> int:
        """Width D of the transformer."""
        if self.dim is not None:
            return self.dim
        return self.vit.embed_dim if self.cameras else 128

    @property
    def tokens(self) -> int:
        """Tokens M of one frame."""
        images = len(self.cameras) * self.token_learner_num_output_tokens
        return images + int(self.state_dim > 0) + int(self.condition_on_text)

    @property
    def sentence_dim(self) -> int | None:
        """Width E of the sentence embeddings it reads; None where it reads those of tokens."""
        return self.text_dim if self.conditioning == 'film' else None

    @property
    def critics(self) -> int:
        """Number of critics."""
        return 2 if self.dual_critics else 1

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Build from keyword options; `vit` and `cameras` may be given as dicts.

        Raises:
            ConfigurationError: An option is unknown or does not fit.
        """
        return build(cls, {name: _content(value) for name, value in options.items()}, 'model')

    def fitted(self, spec: Spec) -> Self:
        """Give the same network for observations and actions of these shapes."""
        return dataclasses.replace(self, **spec.fields())  # type: ignore[arg-type]


def _content(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_content(item) for item in value]
    return plain(value)
