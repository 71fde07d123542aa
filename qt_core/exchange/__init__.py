# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Replay folders from and to the formats of other packages.

Each module is imported by its own name, because the LeRobot ones need the packages of the extra
`lerobot`.
"""

from qt_core.exchange.errors import ExchangeError

__all__ = ['ExchangeError']
