# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Act control step by control step, encoding each frame once."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qt_core.models.decoding import Decoding, decode_actions
from qt_core.models.encoder import Condition

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
        self._tokens: deque[Tensor] = deque(maxlen=model.config.frames)
        self._bins: deque[Tensor] = deque(maxlen=model.config.frames - 1)
        self._draft: Tensor | None = None
        self._pinned: dict[str, PinnedMemory] = {}
        self.follow(texts, text_embeds=text_embeds)

    @property
    def guided(self) -> bool:
        """Whether every frame is also encoded under the null sentence."""
        return self.how.cond_scale != 1

    def follow(
        self, texts: Sequence[str] | None = None, *, text_embeds: Tensor | None = None
    ) -> None:
        """Act under other sentences from now on; frames seen stay as they were encoded.

        Args:
            texts: One sentence per robot; or
            text_embeds: their embeddings, as `model.embed_texts` gives them.
        """
        if texts is not None:
            text_embeds = self.model.embed_texts(texts)
        self._condition = self._conditioned(text_embeds, self.guided)
        self._text = text_embeds

    def choose(self, how: Decoding) -> None:
        """Choose by `how` from now on.

        Where it turns guidance on or off, forgets the frames seen and the actions taken: tokens
        are those of one sentence, or of two.
        """
        guided = how.cond_scale != 1
        if guided != self.guided:
            self._condition = self._conditioned(self._text, guided)
            self.reset()
        self.how = how

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
        frames = {name: self._batch(name, image, 4) for name, image in (images or {}).items()}
        now = None if state is None else self._batch('', state, 2)
        self._tokens.append(self.model.encode(frames, now, self._condition))
        bins, values = self._decide(list(self._tokens), list(self._bins), self._draft)
        self._draft = bins  # arms go on as before, most of the time
        self._bins.append(bins)
        return bins, values

    @torch.inference_mode()
    def plan(self, steps: int) -> Tensor:
        """Give the bins of the last `act` and those of the steps after it, (B, steps, N).

        Goes on as if the frames to come looked like the newest, with the actions planned so far
        in the memory; a network without memory does the same again. Changes nothing that `act`
        looks at.

        Raises:
            RuntimeError: There was no `act` yet.
        """
        if self._draft is None:
            raise RuntimeError('there is nothing to plan from: call act first')
        config, planned = self.model.config, [self._draft]
        if not config.memory:
            return self._draft[:, None].expand(-1, steps, -1)
        tokens, bins = list(self._tokens), list(self._bins)
        while len(planned) < steps:
            tokens = [*tokens, tokens[-1]][-config.frames :]
            bins = bins[1 - len(tokens) :]
            planned.append(self._decide(tokens, bins, planned[-1])[0])
            bins.append(planned[-1])
        return torch.stack(planned, 1)

    def _decide(
        self, tokens: list[Tensor], bins: list[Tensor], draft: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Choose for the last of these frames, after the actions taken at those before."""
        window = tokens[0] if len(tokens) == 1 else torch.cat(tokens, 1)
        guide = None
        if self.guided:
            window, guide = window.chunk(2)
        if draft is None:
            config = self.model.config
            draft = torch.full(
                (len(window), config.num_actions), config.action_bins // 2, device=window.device
            )
        past = torch.stack(bins, 1) if bins else None
        return decode_actions(self.model, window, self.how, guide, past=past, draft=draft)

    @torch.inference_mode()
    def _conditioned(self, text: Tensor | None, guided: bool) -> Condition:
        if text is not None and guided:
            text = torch.cat([text, self.model.encoder.null(text)])
        return self.model.encoder.condition(text)

    def _batch(self, name: str, value: Any, axes: int) -> Tensor:
        """Bring one observation to (B, 1, ...) on the model's device, twice under guidance."""
        device = self.model.device
        if isinstance(value, np.ndarray):
            value = _shared(value)
        if value.device.type == 'cpu' and device.type == 'cuda':
            pinned = self._pinned.get(name)
            if pinned is None or not pinned.takes(value):
                pinned = self._pinned[name] = PinnedMemory(value)
            value = pinned.send(value, device)
        value = value.to(device)
        if value.dim() == axes - 1:
            value = value[None]
        value = value[:, None]
        return torch.cat([value, value]) if self.guided else value


class PinnedMemory:
    """Page-locked host memory for one stream of arrays: a copy to a GPU need not be waited for.

    Args:
        like: One of the arrays.
    """

    def __init__(self, like: Tensor) -> None:
        self.memory = torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
        self.sent = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def takes(self, value: Tensor) -> bool:
        """Whether `value` is of the shape and type that this memory was made for."""
        return value.shape == self.memory.shape and value.dtype == self.memory.dtype

    def send(self, value: Tensor, device: torch.device) -> Tensor:
        """Start to copy `value` to `device`; `value` may change at once."""
        self.sent.synchronize()  # what was sent before must be gone
        self.memory.copy_(value)
        arriving = self.memory.to(device, non_blocking=True)
        self.sent.record(torch.cuda.current_stream(device))
        return arriving


def _shared(array: NDArray[Any]) -> Tensor:
    """Give a tensor to read in the array's memory, such as a message's, which is read-only."""
    if array.flags.writeable:
        return torch.from_numpy(array)
    try:
        return torch.utils.dlpack.from_dlpack(array)
    except BufferError:  # before numpy 2.1; from_numpy would warn
        return torch.from_numpy(array.copy())
