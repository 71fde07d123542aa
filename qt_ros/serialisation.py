# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Messages as bytes, as raw subscriptions and bags have them."""

from __future__ import annotations

from typing import Any

from rosbags.typesys import Stores, get_typestore

from qt_ros.conversions import ConversionError

TYPESTORE = get_typestore(Stores.ROS2_JAZZY)
BODY = 12  # bytes of encapsulation and stamp that come before the rest of a stamped message


def deserialise(data: bytes | memoryview, kind: str) -> Any:
    """Make a message of type `kind` of its serialised form, without copying its arrays.

    Raises:
        ConversionError: It is not such a message.
    """
    try:
        # Lengths in it are compared with its size before anything is made of that length.
        return TYPESTORE.deserialize_cdr(memoryview(data), kind)
    except Exception as error:  # of several classes, for bytes that are no such message
        line = ' '.join(str(error).split()) or type(error).__name__
        raise ConversionError(f'a {kind} cannot be read ({line})') from error
