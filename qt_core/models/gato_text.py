# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Sentence <-> ids, by a tokenizer of the kind of SentencePiece's (Kudo & Richardson 2018).

It is trained on the sentences at hand, without any network access. Words it has never seen are
spelled in the pieces it knows, and what is none of them in bytes; so nothing is ever lost.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import Unigram

from qt_core.configuration import require
from qt_core.models.gato_tokens import LEAST_TEXT
from qt_core.models.pretrained import CheckpointError

FILE = 'tokenizer.json'
MAX_BYTES = 64 << 20  # of the file: a damaged one must not exhaust memory
UNKNOWN = '<unk>'  # the library asks for one; nothing becomes it, since there are bytes
DIGITS = 6  # of a score: the library does not read more of them back as they were
MAX_PIECE = 16  # characters of what is not a whole word


class TextTokenizer:
    """Turns sentences into ids and back.

    Args:
        tokenizer: Of the `tokenizers` package.
        size: The ids must be less than this.

    Attributes:
        ids: The ids are less than this.

    Raises:
        ConfigurationError: It has more ids.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.ids = max(tokenizer.get_vocab().values(), default=0) + 1
        allowed = f'at least {self.ids}, the ids of the tokenizer'
        require(self.ids <= size, 'text_ids', size, allowed)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer

    @classmethod
    def train(cls, sentences: Iterable[str], size: int) -> TextTokenizer:
        """Learn at most `size` ids from sentences: bytes, words, and what words share.

        A Unigram model (Kudo 2018): a sentence becomes those pieces whose product of frequencies
        is largest. Frequencies are counted, not refined as there, and the library's own trainer,
        which does so, is left aside: it breaks ties by chance, and here the same sentences, in any
        order, give the same ids on every machine of a training.

        Raises:
            ConfigurationError: `size` is too small for the bytes.
        """
        require(size >= LEAST_TEXT, 'text_ids', size, f'at least {LEAST_TEXT}')
        split = _splitter().pre_tokenize_str
        words = Counter(word for sentence in sentences for word, _ in split(sentence))
        counts = _pieces(words)
        # Worth keeping is what spares the most ids, where otherwise there would be bytes.
        worth = {piece: n * (len(piece.encode()) - 1) for piece, n in counts.items()}
        ranked = sorted((-n, piece) for piece, n in worth.items() if n > 0)
        kept = [piece for _, piece in ranked[: size - LEAST_TEXT]]
        total = sum(counts[piece] for piece in kept)
        scores = [(piece, round(math.log(counts[piece] / total), DIGITS)) for piece in kept]
        least = min((score for _, score in scores), default=0.0)
        coded = [(UNKNOWN, least), *((f'<0x{byte:02X}>', least) for byte in range(256))]
        tokenizer: Any = Tokenizer(Unigram(coded + scores, unk_id=0, byte_fallback=True))
        tokenizer.pre_tokenizer = _splitter()
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
        return cls(tokenizer, size)

    @classmethod
    def load(cls, path: Path, size: int) -> TextTokenizer:
        """Read a tokenizer.json; one of another kind keeps as much of a sentence as its own does.

        Raises:
            CheckpointError: It cannot be read, or has more than `size` ids.
        """
        try:
            length = path.stat().st_size
            require(length <= MAX_BYTES, 'size', length, f'at most {MAX_BYTES} bytes')
            loaded = cls(Tokenizer.from_str(path.read_text(encoding='utf-8')), size)
            loaded.encode('aé<0x41> \U0001f916')  # what cannot spell fails here, not while acting
            return loaded
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library panics, which is no Exception
            line = ' '.join(str(error).split())
            raise CheckpointError(f'{path}: not a tokenizer of {size} ids ({line})') from error

    def save(self, path: Path) -> None:
        """Write a tokenizer.json."""
        path.write_text(self._tokenizer.to_str(pretty=True), encoding='utf-8')

    def encode(self, sentence: str) -> list[int]:
        """Give the ids of a sentence."""
        return self._tokenizer.encode(sentence, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Invert `encode`."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TextTokenizer):
            return NotImplemented
        return self._tokenizer.to_str() == other._tokenizer.to_str()

    __hash__ = None  # type: ignore[assignment]


def _splitter() -> Any:
    """Cut into words with the space before them, and cut off '<', lest text reads as '<0x41>'."""
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(' ', 'merged_with_next'), pre_tokenizers.Split('<', 'isolated')]
    )


def _pieces(words: Counter[str]) -> Counter[str]:
    """Count the occurrences of each word and of each piece that two words or more share."""
    holders: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for word, count in words.items():
        inside = Counter(
            word[begin:end]
            for begin in range(len(word))
            for end in range(begin + 1, min(begin + MAX_PIECE, len(word)) + 1)
        )
        inside[word] = max(inside[word], 1)
        holders.update(inside.keys())
        counts.update({piece: n * count for piece, n in inside.items()})
    return Counter({p: n for p, n in counts.items() if holders[p] > 1 or p in words})
