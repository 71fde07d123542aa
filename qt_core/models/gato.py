# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Gato: one network that predicts the next token, whatever the token stands for.

    tokens ─ GatoEmbedding ─▶ (B, L, D) ─ blocks ─▶ (B, L, D) ─ table of ids ─▶ logits (B, L, V)

A pre-norm decoder with GEGLU (Shazeer 2020) and relative positions (Transformer-XL: Dai et al.
2019, section 3.3). With these its sizes give the parameters that its names promise. Reed et al.
2022, "A Generalist Agent".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from qt_core.configuration import build, require
from qt_core.models.gato_configuration import GatoConfig
from qt_core.models.gato_embedding import GatoEmbedding
from qt_core.models.gato_prompts import Prompt, load_prompts, save_prompts
from qt_core.models.gato_text import FILE, TextTokenizer
from qt_core.models.gato_tokens import GatoSequence
from qt_core.models.transformer import KeyValue, causal_mask


@dataclass(frozen=True)
class GatoCache:
    """What the blocks have read so far; each tensor's first entry is of the first block.

    Attributes:
        past: Keys and values of the tokens before.
        distances: (heads, context, dim_head), the relative positions, the farthest first.
    """

    past: tuple[KeyValue, ...]
    distances: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        """Tokens K."""
        return self.past[0][0].shape[2]


class RelativeAttention(nn.Module):
    """Attention to the tokens before, by what they are and how far back they stand.

    score(i, j) = ((q_i + u) · k_j + (q_i + v) · W_r r_{i-j}) / sqrt(dim_head)

    Here r_d is the sinusoid of distance d, u and v are learned (Dai et al. 2019, section 3.3).

    Args:
        config: Sizes.
    """

    def __init__(self, config: GatoConfig) -> None:
        super().__init__()
        self.heads = config.heads
        inner = config.heads * config.dim_head
        self.norm = nn.LayerNorm(config.width)
        self.inputs = nn.Linear(config.width, 3 * inner, bias=False)
        self.relative = nn.Linear(config.width, inner, bias=False)
        self.out = nn.Linear(inner, config.width, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(config.heads, 1, config.dim_head))
        self.position_bias = nn.Parameter(torch.zeros(config.heads, 1, config.dim_head))

    def project(self, sinusoids: Tensor) -> Tensor:
        """Give W_r r as (heads, K, dim_head), for sinusoids (K, D) of distances."""
        return rearrange(self.relative(sinusoids), 'k (h d) -> h k d', h=self.heads)

    def forward(
        self, x: Tensor, distances: Tensor, mask: Tensor, past: KeyValue | None = None
    ) -> tuple[Tensor, KeyValue]:
        """Attend from tokens x (B, L, D) to those before and to each other.

        Args:
            x: The tokens.
            distances: (heads, K, dim_head) of `project`, for the distances K - 1 ... 0.
            mask: Broadcasts to (B, heads, L, K); True where attention is allowed.
            past: Keys and values of the tokens before them.

        Returns:
            What was read, and the keys and values of all K tokens so far.
        """
        query, key, value = rearrange(
            self.inputs(self.norm(x)), 'b l (three h d) -> three b h l d', three=3, h=self.heads
        )
        if past is not None:
            key = torch.cat([past[0], key], dim=2)
            value = torch.cat([past[1], value], dim=2)
        position = (query + self.position_bias.to(query)) / math.sqrt(query.shape[-1])
        position = shifted(position @ distances.transpose(-1, -2))
        query = query + self.content_bias.to(query)
        bias = position.masked_fill(~mask, -math.inf)
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.out(rearrange(read, 'b h l d -> b l (h d)')), (key, value)


class GatedFeedForward(nn.Module):
    """Norm, widen, GELU of one half times the other, narrow: GEGLU."""

    def __init__(self, width: int, ff_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inputs = nn.Linear(width, ff_width)
        self.out = nn.Linear(ff_width // 2, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x (..., D)."""
        gate, value = self.inputs(self.norm(x)).chunk(2, dim=-1)
        return self.out(F.gelu(gate) * value)


class GatoBlock(nn.Module):
    """Attention and feed-forward, each added to its input."""

    def __init__(self, config: GatoConfig) -> None:
        super().__init__()
        self.attention = RelativeAttention(config)
        self.feed_forward = GatedFeedForward(config.width, config.ff_width)
        self.dropout = nn.Dropout(config.dropout)
        self.skipped = config.stochastic_depth
        for layer in (self.attention, self.feed_forward):
            with torch.no_grad():
                layer.out.weight /= math.sqrt(2 * config.depth)  # so many are added up

    def forward(
        self, x: Tensor, distances: Tensor, mask: Tensor, past: KeyValue | None = None
    ) -> tuple[Tensor, KeyValue]:
        """Transform tokens x (B, L, D); arguments as those of `RelativeAttention`."""
        read, past = self.attention(x, distances, mask, past)
        x = x + self._dropped(read)
        return x + self._dropped(self.feed_forward(x)), past

    def _dropped(self, added: Tensor) -> Tensor:
        added = self.dropout(added)
        if not self.training or self.skipped == 0:
            return added
        kept = torch.rand(len(added), 1, 1, device=added.device) >= self.skipped
        return added * kept / (1 - self.skipped)


class Gato(nn.Module):
    """Logits of the next token.

    Args:
        config: Sizes and choices; with the bodies it acts with.
        tokenizer: Of its sentences.

    Attributes:
        prompts: Episodes that a checkpoint carries, for a policy to be shown before it acts.

    Raises:
        ConfigurationError: There is no body, or the tokenizer has more ids than the network.
    """

    policy: ClassVar[str] = 'gato'

    def __init__(self, config: GatoConfig, tokenizer: TextTokenizer) -> None:
        super().__init__()
        require(bool(config.bodies), 'model.bodies', [], 'at least one body')
        most = f'at least {tokenizer.ids}, the ids of the tokenizer'
        require(tokenizer.ids <= config.text_ids, 'model.text_ids', config.text_ids, most)
        self.config, self.tokenizer = config, tokenizer
        self.prompts: tuple[Prompt, ...] = ()
        self.embedding = GatoEmbedding(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks: Sequence[GatoBlock] = nn.ModuleList(  # type: ignore[assignment]
            GatoBlock(config) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width)

    def forward(self, sequence: GatoSequence, places: Tensor | None = None) -> Tensor:
        """Give the logits of the token that follows each place.

        Args:
            sequence: B sequences of L tokens; padding may stand on either side.
            places: (B, L) bool, the P places to do so for, such as `sequence.predicted`: all
                logits of a long sequence are the largest tensor of a training. None for all.

        Returns:
            (B, L, V), or (P, V).

        Raises:
            ValueError: L is more than the context.
        """
        x = self.dropout(self.embed(sequence))
        length, device = x.shape[1], x.device
        self._require_room(length)
        # A token sees itself, be it padding: a softmax over nothing is not a number.
        itself = torch.eye(length, dtype=torch.bool, device=device)
        mask = causal_mask(length, device) & (sequence.valid[:, None, None, :] | itself)
        sinusoids = self._sinusoids(length)
        for block in self.blocks:
            x, _ = block(x, block.attention.project(sinusoids), mask)
        hidden = self.norm(x)
        hidden = hidden if places is None else hidden[places]
        return self.logits(hidden, 0, self.config.ids.vocabulary)

    def embed(self, sequence: GatoSequence) -> Tensor:
        """Embed a sequence as (B, L, D)."""
        return self.embedding(sequence)

    def extend(self, embedded: Tensor, cache: GatoCache | None) -> tuple[Tensor, GatoCache]:
        """Read tokens that follow those in `cache`, without padding; equals reading all at once.

        Args:
            embedded: (B, L, D) of `embed`.
            cache: Of the tokens before; None at the beginning. It stays as it is, so that one can
                go on from it more than once.

        Returns:
            (B, L, D) for `logits`, and the cache of all tokens so far.

        Raises:
            ValueError: Together they are more than the context.
        """
        if cache is None:
            # Of all that may come: later they would cost more than the tokens themselves.
            sinusoids = self._sinusoids(self.config.context)
            distances = tuple(block.attention.project(sinusoids) for block in self.blocks)
            before: Sequence[KeyValue | None] = [None] * len(self.blocks)
            start = 0
        else:
            distances, before, start = cache.distances, cache.past, cache.length
        x, length = embedded, start + embedded.shape[1]
        self._require_room(length)
        mask = causal_mask(length, x.device)[start:]
        past = []
        for block, relative, old in zip(self.blocks, distances, before, strict=True):
            x, new = block(x, relative[:, -length:], mask, old)
            past.append(new)
        return self.norm(x), GatoCache(tuple(past), distances)

    def logits(self, hidden: Tensor, first: int, last: int) -> Tensor:
        """Give the logits (..., last - first) of these ids alone, from hidden (..., D)."""
        return F.linear(hidden, self.embedding.tokens.weight[first:last])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.tokens.weight.device

    def save_files(self, folder: Path) -> None:
        """Write the tokenizer and the prompts."""
        self.tokenizer.save(folder / FILE)
        save_prompts(self.prompts, folder)

    @classmethod
    def from_config(cls, content: Any, folder: Path) -> Gato:
        """Build one from the plain content of its configuration, and the files in `folder`.

        Raises:
            ConfigurationError: The content does not fit.
            CheckpointError: There is no tokenizer, or a file is damaged.
        """
        config = build(GatoConfig, content, 'model')
        network = cls(config, TextTokenizer.load(folder / FILE, config.text_ids))
        network.prompts = load_prompts(folder, config.bodies)
        return network

    def _sinusoids(self, length: int) -> Tensor:
        return sinusoids(length, self.config.width, self.device).to(self.norm.weight.dtype)

    def _require_room(self, length: int) -> None:
        most = self.config.context
        if length > most:
            raise ValueError(f'{length} tokens, expected at most {most}, the context')


def token_loss(logits: Tensor, sequence: GatoSequence) -> Tensor:
    """Average the cross-entropy of the tokens that are targets (Reed et al. 2022, eq. 2).

    L = - Σ m_{l+1} log p(token l+1 | tokens 0 ... l) / Σ m_{l+1}

    Args:
        logits: (B, L, V), or (P, V) at `sequence.predicted`.
        sequence: m is 1 at its targets, text and actions, and 0 elsewhere.

    Returns:
        Scalar; 0 where nothing is a target.
    """
    predicted = sequence.predicted
    if logits.dim() == 3:
        logits = logits[predicted]
    following = sequence.ids.roll(-1, dims=1)[predicted]
    total = F.cross_entropy(logits.float(), following, reduction='sum')
    return total / max(len(following), 1)


def sinusoids(count: int, width: int, device: torch.device) -> Tensor:
    """Give (count, width) sines and cosines of the distances count - 1 ... 0."""
    distance = torch.arange(count - 1, -1, -1, device=device, dtype=torch.float32)
    exponent = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
    angle = distance[:, None] / 10000**exponent
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def shifted(scores: Tensor) -> Tensor:
    """Turn scores by distance into scores by token (Dai et al. 2019, appendix B).

    Args:
        scores: (..., L, K) of the newest L of K tokens; column c is of distance K - 1 - c.

    Returns:
        (..., L, K), column j of token j; those of tokens to come are without meaning.
    """
    *batch, length, total = scores.shape
    # Row i is to go L - 1 - i places to the left. In memory rows follow each other: with one more
    # column, and L numbers left out in front, each row begins one place earlier than that before.
    longer = F.pad(scores, (1, 0)).reshape(*batch, total + 1, length)
    return longer[..., 1:, :].reshape(*batch, length, total)
