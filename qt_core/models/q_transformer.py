# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The Q-Transformer: Q(s, a_1..a_{i-1}, a_i) for every bin of action dimension i.

    images, state, text ─ FrameEncoder ─▶ M tokens ─▶ frame-causal transformer
                                          per frame          │ tokens of frame t
    start, a_1 .. a_{N-1} ─▶ causal decoder, attending to frame t ◀─┘        } Critic
                                └─▶ logits (N, A) ─ sigmoid ─▶ Q

Chebotar et al. 2023, "Q-Transformer: Scalable Offline Reinforcement Learning via Autoregressive
Q-Functions".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from qt_core.configuration import build
from qt_core.instruction import SentenceEncoder
from qt_core.models.configuration import QTransformerConfig
from qt_core.models.critic import Critic
from qt_core.models.decoding import Decoding, decode_actions
from qt_core.models.encoder import Condition, FrameEncoder

if TYPE_CHECKING:
    from qt_core.models.session import Session

Video = Tensor | Mapping[str, Tensor]


class QRoboticTransformer(nn.Module):
    """Values of every bin of every action dimension, from camera frames, a state and a sentence.

    Args:
        config: Sizes and choices; or give them as keywords:
        options: Fields of `QTransformerConfig`; `vit` may be a dict.

    Raises:
        ConfigurationError: An option is unknown, or sizes do not fit each other.
    """

    policy: ClassVar[str] = 'q_transformer'

    def __init__(self, config: QTransformerConfig | None = None, **options: Any) -> None:
        super().__init__()
        if config is None:
            config = QTransformerConfig.from_options(options)
        elif options:
            raise TypeError(f'give a config or options, not both: {", ".join(options)}')
        self.config = config
        self.sentence_encoder = SentenceEncoder()
        self.encoder = FrameEncoder(config)
        self.critics: Sequence[Critic] = nn.ModuleList(  # type: ignore[assignment]
            Critic(config) for _ in range(config.critics)
        )

    def forward(
        self,
        images: Mapping[str, Tensor],
        state: Tensor | None,
        text: Tensor | None,
        bins: Tensor,
        order: Sequence[int] | None = None,
    ) -> Tensor:
        """Give the logits of Q for actions that are known (teacher forcing).

        Args:
            images: Camera name to (B, F, H, W, C) uint8.
            state: (B, F, S) in -1..1, or None.
            text: (B, E) sentence embedding, (B, L, E) embeddings of its tokens, or None.
            bins: (B, F, N); logits of a dimension use the bins of those before it only.
            order: N numbers, the order of the dimensions; None for 0..N-1.

        Returns:
            (critics, B, F, N, A), or (critics, B, F, N, A, V) with value bins; position k holds
            the logits of dimension order[k]. `values` turns them into Q.
        """
        return self.decode(self.encode(images, state, text), bins, order)

    def encode(
        self,
        images: Mapping[str, Tensor],
        state: Tensor | None,
        text: Tensor | Condition | None,
    ) -> Tensor:
        """Encode frames as (B, F, M, D); a frame's tokens do not depend on other frames."""
        return self.encoder(images, state, text)

    def decode(
        self,
        tokens: Tensor,
        bins: Tensor,
        order: Sequence[int] | None = None,
        past: Tensor | None = None,
    ) -> Tensor:
        """Give the logits as `forward` does, from tokens (B, F, M, D) of `encode`.

        Args:
            tokens: Of consecutive frames.
            bins: (B, F, N), or (B, F, 0) for the first dimension of the order alone.
            order: N numbers, the order of the dimensions; None for 0..N-1.
            past: (B, F, N) bins executed at the frames, for the memory; None for `bins`.
        """
        order = range(self.config.num_actions) if order is None else order
        return torch.stack([critic(tokens, bins, order, past) for critic in self.critics])

    def values(self, logits: Tensor) -> Tensor:
        """Turn logits (..., A), or (..., A, V) with value bins, into Q (..., A).

        Q lies in `config.return_range`.
        """
        low, high = self.config.return_range
        logits = logits.float()
        if self.config.value_bins:
            place = torch.arange(self.config.value_bins, device=logits.device) + 0.5
            unit = logits.softmax(-1) @ (place / self.config.value_bins)
        else:
            unit = logits.sigmoid()
        return low + (high - low) * unit

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.token_position.device

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed sentences as the network's text input, on its device.

        Returns:
            (B, E), or (B, L, E) with `cross_attention`, zeros after a sentence's last token.
        """
        if self.config.conditioning == 'cross_attention':
            embedded = self.sentence_encoder.embed_tokens(texts)
        else:
            embedded = self.sentence_encoder.embed(texts)
        return torch.from_numpy(np.ascontiguousarray(embedded)).to(self.device)

    def get_optimal_actions(
        self,
        video: Video | None,
        texts: Sequence[str] | None = None,
        *,
        text_embeds: Tensor | None = None,
        state: Tensor | None = None,
        actions: Tensor | None = None,
        past_actions: Tensor | None = None,
        beam: int = 1,
        cond_scale: float = 1.0,
        order: Sequence[int] | None = None,
        return_q_values: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Choose the best bin of every dimension for the newest frame.

        Args:
            video: (B, C, F, H, W) uint8, or float in -1..1; camera name to such tensors where
                there are several; None without cameras.
            texts: One sentence per sample; or
            text_embeds: their embeddings as `embed_texts` gives them.
            state: (B, F, S), or (B, S) for one frame.
            actions: (B, k) bins of the first k dimensions that are given; the rest follows them.
            past_actions: (B, F-1, N) bins executed before; only a network with memory reads them.
            beam: Prefixes kept at each dimension; 1 is greedy.
            cond_scale: Classifier-free guidance; 1 is none.
            order: N numbers, the order of the dimensions; other than 0..N-1 for `random_order`
                only.
            return_q_values: Also give the values that the bins were chosen from.

        Returns:
            (B, N) int64; with `return_q_values` also (B, N, A), given the bins chosen before.
        """
        how = Decoding(beam=beam, cond_scale=cond_scale)
        bins, values = self._act(
            video, texts, text_embeds, state, how, actions, past_actions, order
        )
        return (bins, values) if return_q_values else bins

    def get_actions(
        self,
        video: Video | None,
        texts: Sequence[str] | None = None,
        *,
        text_embeds: Tensor | None = None,
        state: Tensor | None = None,
        actions: Tensor | None = None,
        past_actions: Tensor | None = None,
        prob_random_action: float = 0.0,
        random_dims: Tensor | None = None,
        temperature: float = 0.0,
        cond_scale: float = 1.0,
    ) -> Tensor:
        """Choose bins (B, N) as `get_optimal_actions` does, exploring.

        Args:
            video: As there, as are texts, text_embeds, state, actions and past_actions.
            texts: As there.
            text_embeds: As there.
            state: As there.
            actions: As there.
            past_actions: As there.
            prob_random_action: Each dimension's probability of a uniformly random bin. Dimensions
                after it are chosen knowing it.
            random_dims: (N,) bool; only these dimensions are ever random. None for all.
            temperature: Above 0, bins are drawn in proportion to exp(Q / temperature) instead of
                the best being taken (by Gumbel noise on Q).
            cond_scale: As there.
        """
        how = Decoding(
            cond_scale=cond_scale,
            prob_random_action=prob_random_action,
            random_dims=random_dims,
            temperature=temperature,
        )
        return self._act(video, texts, text_embeds, state, how, actions, past_actions)[0]

    def get_random_actions(self, batch_size: int = 1) -> Tensor:
        """Draw bins (B, N) uniformly."""
        shape = (batch_size, self.config.num_actions)
        return torch.randint(0, self.config.action_bins, shape, device=self.device)

    def session(
        self,
        texts: Sequence[str] | None = None,
        *,
        text_embeds: Tensor | None = None,
        beam: int = 1,
        cond_scale: float = 1.0,
    ) -> Session:
        """Act control step by control step, encoding each frame once; see `Session`."""
        from qt_core.models.session import Session

        return Session(self, texts, text_embeds=text_embeds, beam=beam, cond_scale=cond_scale)

    @torch.no_grad()
    def _act(
        self,
        video: Video | None,
        texts: Sequence[str] | None,
        text_embeds: Tensor | None,
        state: Tensor | None,
        how: Decoding,
        actions: Tensor | None = None,
        past: Tensor | None = None,
        order: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        if order is not None and not self.config.random_order:
            raise ValueError(
                'an order of the dimensions needs a network trained with random_order'
            )
        text = (
            self.embed_texts(texts) if text_embeds is None and texts is not None else text_embeds
        )
        images = self._frames(video)
        if state is not None and state.dim() == 2:
            state = state[:, None]
        training = self.training
        self.eval()  # no dropout where actions are chosen
        try:
            tokens = self.encode(images, state, text)
            guide = None
            if how.cond_scale != 1:
                guide = self.encode(images, state, self.encoder.null(_given(text)))
            return decode_actions(self, tokens, how, guide, actions, past, order)
        finally:
            self.train(training)

    def _frames(self, video: Video | None) -> dict[str, Tensor]:
        """Bring video into the form of a replay folder's images: (B, F, H, W, C), 0..255."""
        cameras = [camera.name for camera in self.config.cameras]
        if isinstance(video, Tensor):
            video = {cameras[0]: video} if len(cameras) == 1 else {'video': video}
        given = dict(video or {})
        if sorted(given) != sorted(cameras):
            raise ValueError(f'video of {sorted(given)}, expected {sorted(cameras)}')
        most = self.config.frames
        return {name: _pixels(frames.to(self.device), most) for name, frames in given.items()}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json`, `model.safetensors` and a model card, as the Hugging Face hub has.

        A folder of that name is replaced once the new one is complete.
        """
        from qt_core.models.pretrained import save_pretrained

        save_pretrained(self, Path(folder))

    def save_files(self, folder: Path) -> None:
        """Write nothing: weights and configuration are all there is."""

    @classmethod
    def from_config(cls, content: Any, folder: Path) -> QRoboticTransformer:
        """Build one from the plain content of its configuration; `folder` is not read.

        Raises:
            ConfigurationError: The content does not fit.
        """
        return cls(build(QTransformerConfig, content, 'model'))

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, revision: str | None = None, local_files_only: bool = False
    ) -> QRoboticTransformer:
        """Read a folder of `save_pretrained`, a checkpoint, or a repository of the hub.

        Raises:
            CheckpointError: There is none, or it is damaged.
        """
        from qt_core.models.pretrained import from_pretrained

        return from_pretrained(name, revision=revision, local_files_only=local_files_only)


def _pixels(frames: Tensor, most: int) -> Tensor:
    if frames.dim() != 5:
        raise ValueError(f'video is {tuple(frames.shape)}, expected (B, C, F, H, W)')
    if frames.shape[2] > most:
        raise ValueError(f'video has {frames.shape[2]} frames, expected at most {most}')
    frames = rearrange(frames, 'b c f h w -> b f h w c')
    return frames if frames.dtype == torch.uint8 else (frames + 1) * 127.5


def _given(text: Tensor | None) -> Tensor:
    if text is None:
        raise ValueError('guidance needs a sentence')
    return text
