# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Act control step by control step, encoding each frame once."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from qt_core.models.decoding import Decoding, decode_actions

if TYPE_CHECKING:
    from qt_core.models.q_transformer import QRoboticTransformer


class Session:
    """One robot, or a batch of them, acting under one sentence each.

    Only the newest frame is encoded at a step; the tokens of the frames before are kept, and what
    the sentence asks is computed once. The values are those of a full pass over the last
    `config.frames` frames, with the weights that the model has when the session begins.

    Args:
        model: In evaluation mode.
        texts: One sentence per robot; or
        text_embeds: their embeddings, as `model.embed_texts` gives them; None without sentences.
        beam: Prefixes kept at each dimension; 1 is greedy.
        cond_scale: Classifier-free guidance; 1 is none.
    """

    def __init__(
        self,
        model: QRoboticTransformer,
        texts: Sequence[str] | None = None,
        *,
        text_embeds: Tensor | None = None,
        beam: int = 1,
        cond_scale: float = 1.0,
    ) -> None:
        self.model = model
        self.how = Decoding(beam=beam, cond_scale=cond_scale)
        if texts is not None:
            text_embeds = model.embed_texts(texts)
        if text_embeds is not None and self.guided:
            text_embeds = torch.cat([text_embeds, model.encoder.null(text_embeds)])
        with torch.inference_mode():
            self._condition = model.encoder.condition(text_embeds)
        self._tokens: deque[Tensor] = deque(maxlen=model.config.frames)
        self._bins: deque[Tensor] = deque(maxlen=model.config.frames - 1)
        self._draft: Tensor | None = None

    @property
    def guided(self) -> bool:
        """Whether every frame is also encoded under the null sentence."""
        return self.how.cond_scale != 1

    def reset(self) -> None:
        """Forget the frames seen and the actions taken."""
        self._tokens.clear()
        self._bins.clear()
        self._draft = None

    @torch.inference_mode()
    def act(
        self, images: Mapping[str, Any] | None = None, state: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Choose the bins for the newest observation.

        Args:
            images: Camera name to (B, H, W, C) uint8, array or tensor; (H, W, C) for one robot.
            state: (B, S) in -1..1; (S,) for one robot.

        Returns:
            Bins (B, N) and the values (B, N, A) they were chosen from.
        """
        frames = {name: self._batch(image, 4) for name, image in (images or {}).items()}
        now = None if state is None else self._batch(state, 2)
        self._tokens.append(self.model.encode(frames, now, self._condition))
        tokens = self._tokens[-1] if len(self._tokens) == 1 else torch.cat(list(self._tokens), 1)
        guide = None
        if self.guided:
            tokens, guide = tokens.chunk(2)
        past = torch.stack(list(self._bins), 1) if self._bins else None
        bins, values = decode_actions(
            self.model, tokens, self.how, guide, past=past, draft=self._draft
        )
        self._draft = bins  # arms go on as before, most of the time
        self._bins.append(bins)
        return bins, values

    def _batch(self, value: Any, axes: int) -> Tensor:
        """Bring one observation to (B, 1, ...) on the model's device, twice under guidance."""
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        value = value.to(self.model.device, non_blocking=True)
        if value.dim() == axes - 1:
            value = value[None]
        value = value[:, None]
        return torch.cat([value, value]) if self.guided else value
