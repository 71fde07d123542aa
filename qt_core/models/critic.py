# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Tokens of frames -> logits of Q for every bin of every action dimension.

A critic works in two ways that give the same numbers. `forward` takes actions that are known and
gives the logits of all their dimensions at once (teacher forcing). `begin` and `extend` go
through the dimensions of one step, keeping keys and values, so that each costs one token.

Dimensions are decoded in an order o, a permutation of 0..N-1. Position k of the sequence carries
the bin of dimension o_{k-1} and says that dimension o_k is next; its logits are those of o_k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from qt_core.models.configuration import QTransformerConfig
from qt_core.models.transformer import Block, KVCache, causal_mask, frame_causal_mask


@dataclass(frozen=True)
class CriticState:
    """Where decoding stands.

    Attributes:
        caches: One per block that goes through the dimensions.
        context: (B, D) summary of the frame, for the `single` head only.
    """

    caches: tuple[KVCache, ...] = ()
    context: Tensor | None = None

    def select(self, rows: Tensor) -> CriticState:
        """Keep batch rows `rows` (B',), in this order."""
        context = None if self.context is None else self.context[rows]
        return CriticState(tuple(cache.select(rows) for cache in self.caches), context)


class Critic(nn.Module):
    """One Q-function over the tokens of frames."""

    first_row: Tensor

    def __init__(self, config: QTransformerConfig) -> None:
        super().__init__()
        self.config = config
        width, dimensions, bins = config.width, config.num_actions, config.action_bins
        self.frame_position = nn.Parameter(0.02 * torch.randn(config.frames, 1, width))
        self.blocks = self._stack(config.depth)
        self.context_norm: nn.LayerNorm | None = None
        if config.head != 'concatenated':
            self.context_norm = nn.LayerNorm(width)
        depth = config.decoder_depth if config.head == 'encoder_decoder' else 0
        self.decoder = self._stack(depth, cross=True)
        if config.head != 'single':
            told = dimensions if config.random_order else dimensions - 1
            first_row = bins * torch.arange(dimensions)  # of each dimension's embeddings
            self.register_buffer('first_row', first_row, persistent=False)
            self.start = nn.Parameter(0.5 * torch.randn(width))
            self.bin_embedding = nn.Parameter(0.5 * torch.randn(told, bins, width))
            self.dimension_position = nn.Parameter(0.5 * torch.randn(dimensions, width))
        if config.memory:
            self.memory_embedding = nn.Parameter(
                torch.randn(dimensions, bins, width) / dimensions**0.5
            )
            self.memory_position = nn.Parameter(0.5 * torch.randn(config.memory, 1, width))
        outputs = max(1, config.value_bins)
        self.head_norm = nn.LayerNorm(width)
        # Small: start near the middle of the return range, where the sigmoid is steepest.
        self.head_weight = nn.Parameter(
            0.1 * torch.randn(dimensions, width, bins * outputs) / width**0.5
        )
        self.head_bias = nn.Parameter(torch.zeros(dimensions, bins * outputs))
        if config.dueling:
            self.value_weight = nn.Parameter(
                0.1 * torch.randn(dimensions, width, outputs) / width**0.5
            )
            self.value_bias = nn.Parameter(torch.zeros(dimensions, outputs))

    def forward(
        self, tokens: Tensor, bins: Tensor, order: Sequence[int], past: Tensor | None = None
    ) -> Tensor:
        """Give the logits of actions that are known.

        Args:
            tokens: (B, F, M, D) of `FrameEncoder`.
            bins: (B, F, N) bins, or (B, F, 0) for the first dimension of the order alone.
            order: N numbers, the order of the dimensions.
            past: (B, F, N) bins executed at each frame, for the memory; None for `bins`.

        Returns:
            (B, F, K, A), or (B, F, K, A, V) with value bins: position k is dimension o_k, K is N
            (or 1).
        """
        frames, count = tokens.shape[1:3]
        x = rearrange(tokens + self.frame_position[:frames], 'b f m d -> b (f m) d')
        mask = frame_causal_mask(frames, count, x.device)
        if self.config.head == 'concatenated':
            return self._concatenated(x, mask, bins, order, frames)
        for block in self.blocks:
            x = block(x, mask)
        context = rearrange(self.context_norm(x), 'b (f m) d -> (b f) m d', f=frames)  # type: ignore[misc]
        if self.config.head == 'single':
            known = len(order) if bins.shape[-1] else 1  # dimensions
            summary = rearrange(context.mean(1), '(b f) d -> b f 1 d', f=frames)
            return self._logits(summary.expand(-1, -1, known, -1), order[:known])
        context, allowed = self._with_memory(
            context, tokens, bins if past is None else past, self._memory_kept(len(tokens))
        )
        sequence = rearrange(self._sequence(bins, order), 'b f n d -> (b f) n d')
        mask = causal_mask(sequence.shape[1], sequence.device)
        for block in self.decoder:
            sequence = block(sequence, mask, context, allowed)
        sequence = rearrange(sequence, '(b f) n d -> b f n d', f=frames)
        return self._logits(sequence, order[: sequence.shape[2]])

    def begin(self, tokens: Tensor, past: Tensor | None = None) -> CriticState:
        """Start decoding an action for the newest frame.

        Args:
            tokens: (B, F, M, D) of `FrameEncoder`, F at most `config.frames`.
            past: (B, F-1, N) bins executed at the earlier frames; for the memory only.
        """
        frames, count = tokens.shape[1:3]
        x = rearrange(tokens + self.frame_position[:frames], 'b f m d -> b (f m) d')
        mask = None if frames == 1 else frame_causal_mask(frames, count, x.device)
        caches = []
        for index, block in enumerate(self.blocks):
            if index < len(self.blocks) - 1 or self.config.head == 'concatenated':
                x, cache = block.extend(x, block.begin(), mask)
                caches.append(cache)
            else:  # only the newest frame's tokens are read after the last block
                x = block.newest(x, count)
        if self.config.head == 'concatenated':
            return CriticState(tuple(caches))
        context = self.context_norm(x)  # type: ignore[misc]
        if self.config.head == 'single':
            return CriticState(context=context.mean(1))
        if self.config.memory and frames > 1:
            if past is None:
                raise ValueError('a network with memory needs the bins of the steps before')
            known = torch.cat([past, past[:, -1:]], dim=1)  # the last is not looked at
            context = self._remembered(context.unsqueeze(1), tokens, known)[:, -1]
            context = context[:, max(0, self.config.memory - frames + 1) * (count + 1) :]
        return CriticState(tuple(block.begin(context) for block in self.decoder))

    def extend(
        self, state: CriticState, previous: Tensor | None, position: int, order: Sequence[int]
    ) -> tuple[Tensor, CriticState]:
        """Give the logits of the next dimension.

        Args:
            state: From `begin` or from the call for the dimension before.
            previous: (B,) bins of dimension o_{position-1}; None at the first.
            position: Position k in the order.
            order: N numbers.

        Returns:
            (B, A), or (B, A, V) with value bins, of dimension o_k; and the new state.
        """
        if self.config.head == 'single':
            logits = self._logits(state.context[:, None], order[position : position + 1])  # type: ignore[index]
            return logits[:, 0], state
        if previous is None:
            first = state.caches[0].context or state.caches[0].past
            x = self.start.expand(len(first[0]), -1)  # type: ignore[index]
        else:
            x = F.embedding(previous, self.bin_embedding[order[position - 1]])
        x = (x + self.dimension_position[order[position]]).unsqueeze(1)
        caches = []
        for block, cache in zip(self._decoding_blocks, state.caches, strict=True):
            x, cache = block.extend(x, cache)
            caches.append(cache)
        return self._logits(x, order[position : position + 1])[:, 0], CriticState(tuple(caches))

    def read(self, state: CriticState, bins: Tensor, order: Sequence[int]) -> Tensor:
        """Give the logits of all dimensions at once, each knowing the bins of those before it.

        Args:
            state: From `begin`.
            bins: (B, N).
            order: N numbers.

        Returns:
            (B, N, A), or (B, N, A, V) with value bins: position k is dimension o_k.
        """
        if self.config.head == 'single':
            return self._logits(state.context[:, None].expand(-1, len(order), -1), order)  # type: ignore[index]
        x = self._sequence(bins[:, None], order)[:, 0]
        mask = causal_mask(len(order), x.device)
        if state.caches[0].past is not None:  # all may see the frames
            mask = F.pad(mask, (state.caches[0].past[0].shape[2], 0), value=True)
        for block, cache in zip(self._decoding_blocks, state.caches, strict=True):
            x, _ = block.extend(x, cache, mask)
        return self._logits(x, order)

    @property
    def _decoding_blocks(self) -> Sequence[Block]:
        return self.blocks if self.config.head == 'concatenated' else self.decoder

    def _stack(self, depth: int, *, cross: bool = False) -> Sequence[Block]:
        c = self.config
        blocks = [
            Block(c.width, c.heads, c.dim_head, gated=c.gated, cross=cross, dropout=c.dropout)
            for _ in range(depth)
        ]
        return nn.ModuleList(blocks)  # type: ignore[return-value]

    def _sequence(self, bins: Tensor, order: Sequence[int]) -> Tensor:
        """Embed the start and all bins but the last of the order: (B, F, K, D)."""
        batch, frames, known = bins.shape
        x = self.start.expand(batch, frames, 1, -1)
        if known > 1:
            told = order[:-1]
            rows = _pick(bins, told, dim=2) + _pick(self.first_row, told)
            x = torch.cat([x, F.embedding(rows, self.bin_embedding.flatten(0, 1))], dim=2)
        return x + _pick(self.dimension_position, order[: x.shape[2]])

    def _concatenated(
        self, x: Tensor, mask: Tensor, bins: Tensor, order: Sequence[int], frames: int
    ) -> Tensor:
        """Run frame tokens and action tokens as one sequence.

        An action token sees the frame tokens up to its own frame, and the action tokens of its own
        step up to itself. Frame tokens see no action token.
        """
        actions = self._sequence(bins, order)
        length, known = x.shape[1], actions.shape[2]
        frame = torch.arange(frames, device=x.device)
        of_token = frame.repeat_interleave(length // frames)
        of_action = frame.repeat_interleave(known)
        place = torch.arange(known, device=x.device).repeat(frames)
        same = of_action[:, None] == of_action[None]
        allowed = torch.cat(
            [of_action[:, None] >= of_token[None], same & (place[:, None] >= place[None])], dim=1
        )
        mask = torch.cat([F.pad(mask, (0, len(of_action)), value=False), allowed])
        x = torch.cat([x, rearrange(actions, 'b f n d -> b (f n) d')], dim=1)
        for block in self.blocks:
            x = block(x, mask)
        x = rearrange(x[:, length:], 'b (f n) d -> b f n d', f=frames)
        return self._logits(x, order[:known])

    def _with_memory(
        self, context: Tensor, tokens: Tensor, past: Tensor, kept: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Put the memory before each frame's context; give who may be attended to."""
        steps = self.config.memory
        batch, frames, count = tokens.shape[:3]
        if not steps or frames == 1 or not past.shape[-1]:
            return context, None
        context = rearrange(context, '(b f) m d -> b f m d', b=batch)
        context = self._remembered(context, tokens, past)
        age = torch.arange(frames, device=tokens.device)[:, None] - steps
        exists = age + torch.arange(steps, device=tokens.device) >= 0  # (F, steps)
        allowed = exists.expand(batch, -1, -1)
        if kept is not None:
            allowed = allowed & kept[:, None, None]
        allowed = F.pad(allowed.repeat_interleave(count + 1, dim=-1), (0, count), value=True)
        return context.flatten(0, 1), rearrange(allowed, 'b f k -> (b f) 1 1 k')

    def _remembered(self, context: Tensor, tokens: Tensor, past: Tensor) -> Tensor:
        """Give (B, G, steps·(M+1)+M, D): the newest G frames' context after the steps before.

        Of a step before the first frame there are zeros.
        """
        steps = self.config.memory
        dimension = torch.arange(self.config.num_actions, device=tokens.device)
        action = self.memory_embedding[dimension, past].sum(2, keepdim=True)
        step = torch.cat([tokens, action], dim=2)
        padded = F.pad(step, (0, 0, 0, 0, steps, 0))[:, :-1]
        windows = padded.unfold(1, steps, 1)  # (B, F, M+1, D, steps): steps f-steps..f-1
        windows = rearrange(windows, 'b f m d s -> b f s m d') + self.memory_position
        windows = windows[:, -context.shape[1] :]
        return torch.cat([windows.flatten(2, 3), context], dim=2)

    def _memory_kept(self, batch: int) -> Tensor | None:
        if not (self.training and self.config.memory_dropout):
            return None
        return torch.rand(batch, device=self.head_bias.device) >= self.config.memory_dropout

    def _logits(self, x: Tensor, dimensions: Sequence[int]) -> Tensor:
        """Read (..., K, D) at these K dimensions: (..., K, A) or (..., K, A, V)."""
        x = self.head_norm(x)
        logits = _read(x, _pick(self.head_weight, dimensions), _pick(self.head_bias, dimensions))
        values = self.config.value_bins
        if self.config.dueling or values:
            logits = rearrange(logits, '... (a v) -> ... a v', a=self.config.action_bins)
            if self.config.dueling:
                weight, bias = self.value_weight, self.value_bias
                value = _read(x, _pick(weight, dimensions), _pick(bias, dimensions))
                logits = value.unsqueeze(-2) + logits - logits.mean(-2, keepdim=True)
            if not values:
                logits = logits.squeeze(-1)
        return logits


def _read(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Give x_k · weight_k + bias_k of each place k: x (..., K, D), weight (K, D, A)."""
    if len(weight) == 1:
        return x @ weight[0] + bias
    return torch.einsum('...nd,nda->...na', x, weight) + bias


def _pick(rows: Tensor, chosen: Sequence[int], dim: int = 0) -> Tensor:
    """Give rows by number, without a copy where they follow each other."""
    first, count = chosen[0], len(chosen)
    if list(chosen) == list(range(first, first + count)):
        return rows.narrow(dim, first, count)
    return rows.index_select(dim, torch.tensor(list(chosen), device=rows.device))
