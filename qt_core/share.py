# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Where the files that belong to the package lie: `config/`, `launch/`, robot descriptions."""

from __future__ import annotations

from pathlib import Path


def share_path(relative: str) -> Path:
    """Find a file or folder of the package, in a checkout or installed by pip or colcon.

    Both installers put the modules somewhere below a prefix and the files into its
    `share/qt_ros`, so that looking upwards from this module finds them without ROS.

    Args:
        relative: Path as in the repository, like `config/contracts/tabletop.yaml`.

    Raises:
        FileNotFoundError: The installation lacks it.
    """
    root = Path(__file__).resolve().parent.parent
    if (root / 'package.xml').is_file():
        folders = [root]
    else:
        folders = [prefix / 'share' / 'qt_ros' for prefix in (root, *root.parents)]
    for folder in folders:
        if (folder / relative).exists():
            return folder / relative
    raise FileNotFoundError(f'{relative} is not in share/qt_ros above {root}: reinstall qt_ros')
