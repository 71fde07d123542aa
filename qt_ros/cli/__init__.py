# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The `qt-ros` command, one module per subcommand."""
