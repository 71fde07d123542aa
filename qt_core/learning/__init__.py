# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Learning from replay folders."""
