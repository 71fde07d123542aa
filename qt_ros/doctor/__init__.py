# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What `qt-ros doctor` knows about machines and graphs, apart from how it looks at them."""
