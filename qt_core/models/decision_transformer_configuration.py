# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Sizes and choices of a Decision Transformer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Self

from transformers import DecisionTransformerConfig as BackboneConfig

from qt_core.configuration import require
from qt_core.models.configuration import QTransformerConfig
from qt_core.models.maxvit import MaxViTConfig
from qt_core.spec import MAX_SIZE, Spec

ACTIONS = ('bins', 'continuous')
IMAGE_ENCODERS = ('maxvit', 'atari')
ACTIVATIONS = ('relu', 'gelu', 'gelu_new', 'silu', 'tanh')
# What a backbone must have as it is here.
FIXED = (
    *('action_tanh', 'n_inner', 'embd_pdrop', 'attn_pdrop', 'layer_norm_epsilon'),
    *('scale_attn_weights', 'scale_attn_by_inverse_layer_idx', 'reorder_and_upcast_attn'),
    'add_cross_attention',
)


@dataclass(frozen=True, kw_only=True)
class DecisionTransformerConfig(Spec):
    """What a `DecisionTransformer` is built from; the first fields are those of `Spec`.

    Attributes:
        context: Steps K that the policy looks at, the newest included.
        return_conditioned: Whether returns-to-go are part of the sequence; without, this is
            behaviour cloning.
        actions: `bins` are classified, each dimension for itself; `continuous` ones are regressed.
        condition_on_text: Whether a sentence stands in front of the sequence.
        text_dim: Width E of its embedding.
        image_encoder: `maxvit`: the frame encoder of the Q-Transformer, in which the sentence says
            what to look for. `atari`: the paper's convolutions, the same for all sentences.
        vit: Sizes of the MaxViT.
        token_learner_num_output_tokens: Tokens that `maxvit` keeps of an image, before all that is
            seen becomes one.
        dim: Width D of the transformer.
        depth: Its blocks.
        heads: Attention heads, which divide D.
        activation: Of the feed-forward layers; the paper has relu, for Atari gelu.
        dropout: Share of each layer's output dropped in training.
        max_ep_len: Steps that are told apart; those later in an episode count as the last of them.
    """

    context: int = 20
    return_conditioned: bool = True
    actions: str = 'bins'
    condition_on_text: bool = True
    text_dim: int = 384
    image_encoder: str = 'maxvit'
    vit: MaxViTConfig = field(default_factory=MaxViTConfig)
    token_learner_num_output_tokens: int = 8
    dim: int = 128
    depth: int = 3
    heads: int = 1
    activation: str = 'relu'
    dropout: float = 0.1
    max_ep_len: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            *('context', 'text_dim', 'token_learner_num_output_tokens'),
            *('dim', 'depth', 'heads', 'max_ep_len'),
        ):
            size = getattr(self, name)
            require(1 <= size <= MAX_SIZE, f'model.{name}', size, f'1..{MAX_SIZE}')
        divides = self.dim % self.heads == 0
        require(divides, 'model.dim', self.dim, f'a multiple of heads = {self.heads}')
        for name, allowed in (
            ('actions', ACTIONS),
            ('image_encoder', IMAGE_ENCODERS),
            ('activation', ACTIVATIONS),
        ):
            chosen = getattr(self, name)
            require(chosen in allowed, f'model.{name}', chosen, ' or '.join(allowed))
        require(0 <= self.dropout < 1, 'model.dropout', self.dropout, '0 <= dropout < 1')

    @property
    def sentence_dim(self) -> int | None:
        """Width E of the sentence embeddings it reads; None where it reads none."""
        return self.text_dim if self.condition_on_text else None

    @property
    def step_tokens(self) -> int:
        """Tokens of one step: return-to-go, observation and action, or the last two."""
        return 3 if self.return_conditioned else 2

    def fitted(self, spec: Spec) -> Self:
        """Give the same network for observations and actions of these shapes."""
        return dataclasses.replace(self, **spec.fields())  # type: ignore[arg-type]

    def backbone(self) -> BackboneConfig:
        """Give the configuration of the backbone."""
        return BackboneConfig(
            state_dim=max(1, self.state_dim),  # its embedding of the state is replaced
            act_dim=self.num_actions,
            hidden_size=self.dim,
            max_ep_len=self.max_ep_len,
            n_positions=1,  # all tokens stand at position 0
            n_layer=self.depth,
            n_head=self.heads,
            activation_function=self.activation,
            resid_pdrop=self.dropout,
            embd_pdrop=self.dropout,
            attn_pdrop=self.dropout,
            use_cache=False,  # else each forward fills one and throws it away
            bos_token_id=None,
            eos_token_id=None,
        )

    def frame(self) -> QTransformerConfig:
        """Give the configuration of the frame encoder that `maxvit` is."""
        return QTransformerConfig(
            frames=1,
            dim=self.dim,
            vit=self.vit,
            token_learner_num_output_tokens=self.token_learner_num_output_tokens,
            condition_on_text=self.condition_on_text,
            text_dim=self.text_dim,
        ).fitted(self.shapes)

    @classmethod
    def of_backbone(cls, backbone: BackboneConfig, *, context: int, action_bins: int) -> Self:
        """Give the network of states and continuous actions that has this backbone.

        Raises:
            ConfigurationError: It has parts that no `DecisionTransformer` has.
        """
        config = cls(
            cameras=(),
            state_dim=backbone.state_dim,
            num_actions=backbone.act_dim,
            action_bins=action_bins,
            context=context,
            actions='continuous',
            condition_on_text=False,
            dim=backbone.hidden_size,
            depth=backbone.n_layer,
            heads=backbone.n_head,
            activation=backbone.activation_function,
            dropout=backbone.resid_pdrop,
            max_ep_len=backbone.max_ep_len,
        )
        ours = config.backbone()
        for name in FIXED:
            value, expected = getattr(backbone, name), getattr(ours, name)
            require(value == expected, f'config.{name}', value, f'{expected}')
        return config
