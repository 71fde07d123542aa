# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The Decision Transformer: the action that goes with a return that is asked for.

    sentence, R_1, s_1, a_1, R_2, s_2, a_2, ..., R_K, s_K ─▶ causal transformer ─▶ action at each s

R_t is the return-to-go, s_t all that is seen at step t as one token, a_t the action. Without the
R_t this is behaviour cloning. The sentence, where there is one, stands in front, once.

Chen et al. 2021, "Decision Transformer: Reinforcement Learning via Sequence Modeling". Backbone,
embeddings and initial weights are those of `transformers.DecisionTransformerModel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import DecisionTransformerModel

from qt_core.configuration import ConfigurationError, build
from qt_core.instruction import SentenceEncoder
from qt_core.models.decision_transformer_configuration import DecisionTransformerConfig
from qt_core.models.observation_encoder import ObservationEncoder

__all__ = ['DecisionTransformer', 'DecisionTransformerConfig']

INITIAL_STD = 0.02  # of weights, as in the backbone


class BinEmbedding(nn.Module):
    """Embed an action's bins (..., N) as the sum of one vector (D) per dimension."""

    first: Tensor

    def __init__(self, dimensions: int, bins: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(dimensions * bins, width)
        self.register_buffer('first', bins * torch.arange(dimensions), persistent=False)

    def forward(self, bins: Tensor) -> Tensor:
        """Embed (..., N) as (..., D)."""
        return self.table(self.first + bins).sum(-2)


class DecisionTransformer(nn.Module):
    """Actions of the steps of an episode, from what was seen, done and is still to be received.

    Attributes:
        state_mean: (S,) mean of the states in the training data.
        state_std: (S,) their standard deviation.
        return_scale: () what returns-to-go are divided by.
        best_return: () largest return of an episode in the training data.
        low_return: () the smallest, or 0 where none is negative.

    Raises:
        ConfigurationError: Sizes do not fit each other.
    """

    policy: ClassVar[str] = 'decision_transformer'
    state_mean: Tensor
    state_std: Tensor
    return_scale: Tensor
    best_return: Tensor
    low_return: Tensor

    def __init__(self, config: DecisionTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.sentence_encoder = SentenceEncoder()
        self.register_buffer('state_mean', torch.zeros(config.state_dim))
        self.register_buffer('state_std', torch.ones(config.state_dim))
        for name, value in (('return_scale', 1.0), ('best_return', 1.0), ('low_return', 0.0)):
            self.register_buffer(name, torch.tensor(value))
        self.backbone = _backbone(config)
        self.embed_text: nn.Linear | None = None
        if config.condition_on_text:
            self.embed_text = nn.Linear(config.text_dim, config.dim)
            _initialise(self.embed_text)

    def forward(
        self,
        *,
        state: Tensor,
        actions: Tensor,
        timesteps: Tensor,
        mask: Tensor,
        returns: Tensor | None = None,
        images: Mapping[str, Tensor] | None = None,
        text: Tensor | None = None,
    ) -> Tensor:
        """Predict the action of each step from the sequence up to its observation.

        Args:
            state: (B, K, S), normalised as an `Embodiment` does; S may be 0.
            actions: (B, K, N) bins, or continuous actions in -1..1.
            timesteps: (B, K) int64 number of each step in its episode.
            mask: (B, K) bool; the steps there are. The others are not looked at.
            returns: (B, K) returns-to-go, where the network is conditioned on them.
            images: Camera name to (B, K, H, W, C) uint8; of all cameras.
            text: (B, E) sentence embeddings, where the network is conditioned on them.

        Returns:
            (B, K, N, A) logits of the bins, or (B, K, N) continuous actions in -1..1.
        """
        observed = self.observe(images or {}, state, text, mask)
        seen = self.observation_tokens(observed, timesteps, returns)
        steps = torch.cat([seen, self.action_tokens(actions, timesteps)], dim=2)
        front = self.sentence_tokens(text, len(mask))
        tokens = torch.cat([front, rearrange(steps, 'b k p d -> b (k p) d')], dim=1)
        there = mask.repeat_interleave(self.config.step_tokens, dim=1)
        hidden = self.attend(tokens, F.pad(there, (front.shape[1], 0), value=True))
        hidden = hidden[:, front.shape[1] :]
        hidden = rearrange(hidden, 'b (k p) d -> b k p d', p=self.config.step_tokens)
        return self.predict(hidden[:, :, -2])

    def observe(
        self,
        images: Mapping[str, Tensor],
        state: Tensor,
        text: Tensor | None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Encode what was seen at each step as (B, K, D), zero where `mask` (B, K) is False."""
        encode: ObservationEncoder = self.backbone.embed_state
        state = (state - self.state_mean) / self.state_std
        batch, steps = state.shape[:2]
        if not images:
            return encode({}, state, None)
        if mask is None:
            mask = torch.ones(batch, steps, dtype=torch.bool, device=state.device)
        row, _ = there = mask.nonzero(as_tuple=True)
        told = None if text is None else text[row]
        encoded = encode({n: frames[there] for n, frames in images.items()}, state[there], told)
        return encoded.new_zeros(batch, steps, encoded.shape[-1]).index_put(there, encoded)

    def observation_tokens(
        self, observed: Tensor, timesteps: Tensor, returns: Tensor | None
    ) -> Tensor:
        """Give the tokens (B, K, 2, D) R_t and s_t, or (B, K, 1, D) s_t alone.

        Args:
            observed: (B, K, D) of `observe`.
            timesteps: (B, K).
            returns: (B, K) returns-to-go; not looked at without return conditioning.
        """
        parts = [observed]
        if self.config.return_conditioned:
            if returns is None:
                raise ValueError('the network is conditioned on returns, and none were given')
            scaled = returns / self.return_scale
            parts.insert(0, self.backbone.embed_return(scaled.unsqueeze(-1)))
        time = self._time(timesteps)
        return self.backbone.embed_ln(torch.stack([part + time for part in parts], dim=2))

    def action_tokens(self, actions: Tensor, timesteps: Tensor) -> Tensor:
        """Give the tokens (B, K, 1, D) a_t of actions (B, K, N)."""
        embedded = self.backbone.embed_action(actions) + self._time(timesteps)
        return self.backbone.embed_ln(embedded).unsqueeze(2)

    def sentence_tokens(self, text: Tensor | None, batch: int) -> Tensor:
        """Give the sentence as a token (B, 1, D), or none (B, 0, D)."""
        if self.embed_text is None:
            return self.state_mean.new_zeros(batch, 0, self.config.dim)
        if text is None:
            raise ValueError('the network is conditioned on a sentence, and none was given')
        # Unit-length embeddings have tiny components, and learn slowly.
        embedded = self.embed_text(F.layer_norm(text, text.shape[-1:]))
        return self.backbone.embed_ln(embedded).unsqueeze(1)

    def attend(self, tokens: Tensor, mask: Tensor, cache: Any = None) -> Tensor:
        """Let tokens (B, L, D) read those before them.

        Args:
            tokens: The sequence, or what comes after the part that is in the cache.
            mask: (B, L') bool; which tokens there are, those in the cache included.
            cache: Of `transformers`, which takes the new tokens in; None for none.
        """
        # Time is in the tokens: all stand at position 0. Without a mask the backbone would take
        # equal positions for the first tokens of different sequences.
        positions = torch.zeros(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        read = self.backbone.encoder(
            inputs_embeds=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return read.last_hidden_state

    def predict(self, hidden: Tensor) -> Tensor:
        """Give what `forward` gives for the hidden states (..., D) of observations."""
        predicted: Tensor = self.backbone.predict_action(hidden)
        if self.config.actions == 'continuous':
            return predicted
        return rearrange(predicted, '... (n a) -> ... n a', n=self.config.num_actions)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.state_mean.device

    def _time(self, timesteps: Tensor) -> Tensor:
        return self.backbone.embed_timestep(timesteps.clamp(max=self.config.max_ep_len - 1))

    def save_files(self, folder: Path) -> None:
        """Write nothing: weights and configuration are all there is."""

    @classmethod
    def from_config(cls, content: Any, folder: Path) -> DecisionTransformer:
        """Build one from the plain content of its configuration; `folder` is not read.

        Raises:
            ConfigurationError: The content does not fit.
        """
        return cls(build(DecisionTransformerConfig, content, 'model'))

    @classmethod
    def from_transformers(
        cls, model: DecisionTransformerModel, *, context: int = 20, action_bins: int = 256
    ) -> DecisionTransformer:
        """Take over a `transformers.DecisionTransformerModel`, with its weights.

        It gives the same actions, for states that are standardised and returns that are scaled
        already; set `state_mean`, `state_std` and `return_scale` for others.

        Args:
            model: The model.
            context: Steps K that it was trained on.
            action_bins: Bins A that a policy cuts its actions into.

        Raises:
            ConfigurationError: It has parts that no `DecisionTransformer` has.
        """
        config = DecisionTransformerConfig.of_backbone(
            model.config, context=context, action_bins=action_bins
        )
        network = cls(config)
        kept = {}
        for name, weight in model.state_dict().items():
            if not name.startswith(('predict_state.', 'predict_return.', 'encoder.wte.')):
                kept[name.replace('embed_state.', 'embed_state.project.')] = weight
        kept['encoder.wpe.weight'] = kept['encoder.wpe.weight'][:1]  # the only one in use
        try:
            network.backbone.load_state_dict(kept)
        except RuntimeError as error:
            line = ' '.join(str(error).split())
            raise ConfigurationError(f'the model does not fit: {line}') from error
        return network


def _backbone(config: DecisionTransformerConfig) -> Any:
    """Make the backbone, with our parts in the place of its own, and without idle ones.

    What has no part in the loss would stop a training on several devices.
    """
    backbone: Any = DecisionTransformerModel(config.backbone())
    backbone.embed_state = ObservationEncoder(config)
    if config.actions == 'bins':
        dimensions, bins = config.num_actions, config.action_bins
        backbone.embed_action = BinEmbedding(dimensions, bins, config.dim)
        backbone.predict_action = nn.Linear(config.dim, dimensions * bins)
        for layer in (backbone.embed_action.table, backbone.predict_action):
            _initialise(layer)
    _initialise(backbone.embed_state.project)
    backbone.predict_state = backbone.predict_return = backbone.encoder.wte = None
    if not config.return_conditioned:
        backbone.embed_return = None
    return backbone


def _initialise(layer: nn.Linear | nn.Embedding) -> None:
    """Draw initial weights as the backbone does."""
    nn.init.normal_(layer.weight, std=INITIAL_STD)
    if isinstance(layer, nn.Linear):
        nn.init.zeros_(layer.bias)
