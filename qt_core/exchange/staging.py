# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Write a folder aside, and rename it when it is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qt_core.exchange.errors import ExchangeError


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Give the folder `<out>.partial` to write to; it becomes `out` at the end of the block.

    An exception in the block leaves nothing behind.

    Raises:
        ExchangeError: `out` exists and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExchangeError(f'{out} exists and is not empty; choose a new folder')
    partial = out.with_name(out.name + '.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.exists():
            out.rmdir()
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
