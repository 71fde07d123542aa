#!/usr/bin/env python3
# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Count the parameters of Gato in its published sizes, without allocating them.

    python bench/gato_sizes.py

prints them beside what the names promise. Exits with 1 where the transformer's matrices and the
table of ids differ from the name by more than 2 %.
"""

from __future__ import annotations

import sys

import torch
from rich.console import Console
from rich.table import Table

from qt_core.models.gato import Gato
from qt_core.models.gato_configuration import PUBLISHED, Body, GatoConfig
from qt_core.models.gato_text import TextTokenizer

TARGET = 0.02
PROMISED = {'79M': 79e6, '364M': 364e6, '1.18B': 1.18e9}
NOTES = (
    'Body: one camera of 224x224x3, 8 actions. L blocks of width d, V ids.',
    'Blocks: 5 d² each for attention, the fifth being W_r of Transformer-XL, and 6 d² for a GEGLU '
    'whose width 4 d is that before the split: 11 L d². With a plain block of 12 d² the sizes '
    'would be 5 to 8 % above their names, with a GEGLU of three full matrices 29 to 42 %.',
    'Table of ids: V d, which also gives the logits. V is 34,049, since actions have ids of their '
    'own; with the 33,025 of the paper all would be 1.0, 0.4 and 0.2 % less.',
    'Rest: norms, biases, positions and what embeds images.',
)


def count(name: str) -> tuple[int, int, int]:
    """Count parameters of blocks' matrices, of the table of ids, and of all the rest."""
    with torch.device('meta'):
        network = Gato(GatoConfig.published(name, (Body(),)), TextTokenizer.train([], 257))
    matrices = sum(p.numel() for b in network.blocks for p in b.parameters() if p.dim() == 2)
    table = network.embedding.tokens.weight.numel()
    return matrices, table, sum(p.numel() for p in network.parameters()) - matrices - table


def main() -> int:
    """Print the table; gives the exit status."""
    console = Console()
    columns = ('blocks', 'ids', 'blocks + ids', 'against name', 'rest', 'all', 'against name')
    table = Table('size', *columns)
    missed = []
    for name in PUBLISHED:
        matrices, ids, rest = count(name)
        off = (matrices + ids) / PROMISED[name] - 1
        if abs(off) > TARGET:
            missed.append(name)
        numbers = [f'{n / 1e6:,.1f}M' for n in (matrices, ids, matrices + ids)]
        whole = matrices + ids + rest
        more = [f'{n / 1e6:,.1f}M' for n in (rest, whole)]
        table.add_row(name, *numbers, f'{off:+.1%}', *more, f'{whole / PROMISED[name] - 1:+.1%}')
    console.print(table)
    for note in NOTES:
        console.print(note, style='dim')
    if missed:
        console.print(f'missed: {", ".join(missed)}', style='red')
    return 1 if missed else 0


if __name__ == '__main__':
    sys.exit(main())
