# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m qt_ros` is `qt-ros`."""

import sys

from qt_ros.cli.main import main

sys.exit(main())
