# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The error class of the package."""

from __future__ import annotations


class ExchangeError(ValueError):
    """Data that cannot be taken over from or to another format: what, where and what to do."""
