# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Q-Transformer and its family: the learning system behind qt_ros, free of ROS.

Shapes are written with these letters everywhere:

    B  batch                      N  action dimensions
    T  time steps of a window     A  bins of one action dimension
    F  frames a policy looks at   S  joint positions in the state
    H  image height, pixels       M  tokens of one frame
    W  image width, pixels        D  model width
    C  image channels             E  width of a sentence embedding
"""
