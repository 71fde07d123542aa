# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One image <-> jpeg."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

CHANNELS = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION}


def encode(image: NDArray[np.uint8], quality: int) -> bytes:
    """Encode (H, W, C) as a jpeg of that quality, 1..100; C is 1 or 3 (RGB)."""
    colours = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.shape[2] == 3 else image
    return bytes(cv2.imencode('.jpg', colours, [cv2.IMWRITE_JPEG_QUALITY, quality])[1])


def decode(code: bytes, out: NDArray[np.uint8]) -> bool:
    """Decode a jpeg into (H, W, C); False where it is damaged or of another size.

    Memory is taken for the size that the jpeg's header tells: compare it first.
    """
    try:
        image = cv2.imdecode(np.frombuffer(code, np.uint8), CHANNELS[out.shape[2]])
    except cv2.error:  # OpenCV gives None for most damaged images and raises for some
        return False
    if image is None or image.shape[:2] != out.shape[:2]:
        return False
    if out.shape[2] == 1:
        out[:, :, 0] = image
    else:
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=out)
    return True


def jpeg_size(code: bytes) -> tuple[int, int]:
    """Read height and width from a jpeg's header; zeros when it is none."""
    place = 2
    while code.startswith(b'\xff\xd8') and place + 9 <= len(code) and code[place] == 0xFF:
        marker = code[place + 1]
        if marker == 0xFF:  # padding before a marker
            place += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a start of frame
            height, width = code[place + 5 : place + 7], code[place + 7 : place + 9]
            return int.from_bytes(height, 'big'), int.from_bytes(width, 'big')
        place += 2 + int.from_bytes(code[place + 2 : place + 4], 'big')
    return 0, 0
