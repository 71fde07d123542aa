# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Networks: a frame encoder, a causal transformer, and the Q-function built of them."""

from qt_core.models.maxvit import MaxViT, MaxViTConfig
from qt_core.models.q_transformer import QRoboticTransformer, QTransformerConfig

__all__ = ['MaxViT', 'MaxViTConfig', 'QRoboticTransformer', 'QTransformerConfig']
