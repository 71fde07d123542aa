# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Episodes on disk: one MCAP bag each, and what becomes of them."""

from qt_ros.bags.episode import BagError, EpisodeRecord
from qt_ros.bags.reader import EpisodeBag, find_bags
from qt_ros.bags.writer import EpisodeBagWriter

__all__ = ['BagError', 'EpisodeBag', 'EpisodeBagWriter', 'EpisodeRecord', 'find_bags']
