# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Networks: a frame encoder, a causal transformer, and the Q-function built of them."""

from qt_core.models.configuration import QTransformerConfig
from qt_core.models.decoding import Decoding
from qt_core.models.maxvit import MaxViT, MaxViTConfig
from qt_core.models.q_transformer import QRoboticTransformer
from qt_core.models.session import Session

__all__ = [
    'Decoding',
    'MaxViT',
    'MaxViTConfig',
    'QRoboticTransformer',
    'QTransformerConfig',
    'Session',
]
