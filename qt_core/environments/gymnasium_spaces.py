# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Gymnasium's spaces as ours: what is observed -> cameras, state, sentence; bins <-> actions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from qt_core.configuration import ConfigurationError, require
from qt_core.environments.base import StateError
from qt_core.spec import Camera

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Senses:
    """What of an observation goes where.

    Attributes:
        images: Each camera, and the leaf of the observation that is its image.
        numbers: The leaves that make up the state, in gymnasium's own order.
        sentence: The leaf that is text, if there is one.
    """

    images: tuple[tuple[Camera, Path], ...]
    numbers: tuple[tuple[Path, spaces.Space[Any]], ...]
    sentence: Path | None

    @classmethod
    def of(cls, space: spaces.Space[Any]) -> Senses:
        """Sort the leaves of an observation space.

        A Box of uint8 with two or three dimensions, (H, W) or (H, W, C), is a camera, named by
        the keys it lies under. A Text is the sentence. All else is flattened as
        `gymnasium.spaces.utils.flatten` does it: a Box row by row, a Discrete to one number per
        value.

        Raises:
            ConfigurationError: A leaf has no fixed size, has its channels first, or is a second
                text.
        """
        images: list[tuple[Camera, Path]] = []
        numbers: list[tuple[Path, spaces.Space[Any]]] = []
        texts: list[Path] = []
        for path, leaf in _leaves(space):
            if _is_image(leaf):
                images.append((_camera(path, leaf.shape or ()), path))
            elif leaf.dtype is not None and leaf.dtype.kind == 'U':
                texts.append(path)
            else:
                fixed = _has_fixed_size(leaf)
                require(fixed, f'observation {_name(path)}', leaf, 'a space of a fixed size')
                numbers.append((path, leaf))
        names = [_name(path) for path in texts]
        require(len(texts) <= 1, 'observation', names, 'at most one text, which is the sentence')
        return cls(tuple(images), tuple(numbers), texts[0] if texts else None)

    @property
    def state_dim(self) -> int:
        """Numbers S of the state."""
        return sum(spaces.flatdim(space) for _, space in self.numbers)

    def read(self, value: Any) -> tuple[dict[str, NDArray[np.uint8]], NDArray[np.float32]]:
        """Give the images, (H, W, C) each, and the state (S,), as copies.

        Raises:
            StateError: A part is not what the space declares, or not finite as float32.
        """
        images = {}
        for camera, path in self.images:
            image = np.asarray(_at(value, path))
            shape = (camera.height, camera.width, camera.channels)
            flat = shape[2] == 1 and image.shape == shape[:2]
            if image.dtype != np.uint8 or not (flat or image.shape == shape):
                raise StateError(
                    f'observation {_name(path)} is {image.shape} {image.dtype}, expected {shape} '
                    'uint8, as the space declares'
                )
            images[camera.name] = image.reshape(shape).copy()
        parts = [_numbers(value, path, space) for path, space in self.numbers]
        return images, np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def read_sentence(self, value: Any) -> str:
        """Give the text in an observation; '' where there is none."""
        return '' if self.sentence is None else str(_at(value, self.sentence))


@dataclass(frozen=True)
class Choices:
    """Actions that are choices: of Discrete, MultiDiscrete and MultiBinary.

    A bin is a choice. A bin that a dimension does not have, since another one has more, counts on
    from its first choice again, so that uniform bins are nearly uniform choices.

    Attributes:
        space: The action space.
        counts: (N,) choices of each dimension.
        start: (N,) the first choice.
    """

    space: spaces.Space[Any]
    counts: NDArray[np.int64]
    start: NDArray[np.int64]

    @property
    def bins(self) -> int:
        """Bins A of each dimension."""
        return max(2, int(self.counts.max()))

    def decode(self, bins: NDArray[np.int64]) -> Any:
        """Give the action of bins (N,), as the space takes it."""
        chosen = bins % self.counts + self.start
        kind = self.space.dtype or np.dtype(np.int64)
        if isinstance(self.space, spaces.Discrete):
            return kind.type(chosen[0])
        return chosen.reshape(self.space.shape or ()).astype(kind)

    def encode(self, action: Any) -> NDArray[np.int64]:
        """Give the bins (N,) of an action."""
        return np.asarray(action, np.int64).reshape(-1) - self.start


@dataclass(frozen=True)
class Ranges:
    """Actions in a Box, cut into bins; the first bin is exactly `low`, the last one `high`.

    Attributes:
        space: The action space.
        bins: Bins A of each dimension.
        low: (N,) value of bin 0.
        high: (N,) value of bin A - 1.
    """

    space: spaces.Space[Any]
    bins: int
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Bins of each dimension."""
        return np.full(self.low.size, self.bins)

    def decode(self, bins: NDArray[np.int64]) -> Any:
        """Give the action of bins (N,), as the space takes it."""
        share = bins / (self.bins - 1)
        values = self.low * (1 - share) + self.high * share
        kind = self.space.dtype or np.dtype(np.float32)
        if kind.kind in 'iu':
            values = np.rint(values)
        return values.reshape(self.space.shape or ()).astype(kind)

    def encode(self, action: Any) -> NDArray[np.int64]:
        """Give the nearest bins (N,) of an action; outside of the range, the edge bins.

        Raises:
            ValueError: A value is not finite.
        """
        values = np.asarray(action, np.float64).reshape(-1)
        if not np.isfinite(values).all():
            raise ValueError(f'action {values.tolist()} is not finite')
        span = np.where(self.high > self.low, self.high - self.low, 1.0)
        share = np.clip((values - self.low) / span, 0, 1)
        return np.rint(share * (self.bins - 1)).astype(np.int64)


def cut_actions(
    space: spaces.Space[Any],
    bins: int,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
) -> Choices | Ranges:
    """Say which bins an action space has.

    Args:
        space: The action space.
        bins: Bins A of each dimension of a Box.
        low: Where the bins of a Box begin, for all its dimensions or for each; None for its own.
        high: Where they end.

    Raises:
        ConfigurationError: A Box has no bounds and none are given, or the space is another kind.
    """
    if isinstance(space, spaces.Box):
        require(bins >= 2, 'action_bins', bins, 'at least 2')
        ends = []
        for name, given, own in (('low', low, space.low), ('high', high, space.high)):
            try:
                end = np.broadcast_to(own if given is None else given, space.shape)
                ends.append(end.astype(np.float64).reshape(-1))
            except ValueError as error:
                raise ConfigurationError(f'action_{name} does not fit {space}: {error}') from error
            least, most = space.low.reshape(-1), space.high.reshape(-1)
            within = bool(((least <= ends[-1]) & (ends[-1] <= most)).all())
            require(within, f'action_{name}', given, f'values in {space}')
        with np.errstate(over='ignore', invalid='ignore'):
            spans = ends[1] - ends[0]
        if not np.isfinite(spans).all():
            raise ConfigurationError(
                f'the action space {space} has no bounds to cut into bins: give action_low and '
                'action_high, or wrap it in gymnasium.wrappers.TransformAction with a bounded one'
            )
        require(bool((spans >= 0).all()), 'action_low', low, 'values below action_high')
        require(spans.size > 0, 'the action space', space, 'at least one number')
        return Ranges(space, bins, *ends)
    if low is not None or high is not None:
        raise ConfigurationError(f'action_low and action_high are for a Box, not for {space}')
    if isinstance(space, spaces.Discrete):
        return Choices(space, np.array([space.n]), np.array([space.start]))
    if isinstance(space, spaces.MultiDiscrete):
        counts, start = np.asarray(space.nvec, np.int64), np.asarray(space.start, np.int64)
        return Choices(space, counts.reshape(-1), start.reshape(-1))
    if isinstance(space, spaces.MultiBinary):
        size = spaces.flatdim(space)
        return Choices(space, np.full(size, 2), np.zeros(size, np.int64))
    raise ConfigurationError(
        f'the action space {space} has no bins: wrap the environment so that it takes Discrete, '
        'MultiDiscrete, MultiBinary or Box'
    )


def _leaves(space: spaces.Space[Any], path: Path = ()) -> Iterator[tuple[Path, spaces.Space[Any]]]:
    if isinstance(space, spaces.Dict):
        for key, inner in space.spaces.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, inner in enumerate(space.spaces):
            yield from _leaves(inner, (*path, index))
    else:
        yield path, space


def _at(value: Any, path: Path) -> Any:
    try:
        for key in path:
            value = value[key]
    except (KeyError, IndexError, TypeError):
        raise StateError(f'an observation lacks {_name(path)}, which its space declares') from None
    return value


def _numbers(value: Any, path: Path, space: spaces.Space[Any]) -> NDArray[np.float32]:
    """Flatten one leaf of an observation."""
    leaf = _at(value, path)
    try:
        flat = np.asarray(spaces.flatten(space, leaf))
        with np.errstate(over='ignore'):  # what a float32 cannot hold becomes infinite
            numbers = flat.astype(np.float32)
    except (IndexError, TypeError, ValueError):
        numbers = np.zeros((0, 0), np.float32)
    if numbers.shape != (spaces.flatdim(space),):
        raise StateError(f'observation {_name(path)} is {leaf!r}, expected one of {space}')
    if not np.isfinite(numbers).all():
        raise StateError(f'observation {_name(path)} is not finite: {flat.tolist()}')
    return numbers


def _has_fixed_size(space: spaces.Space[Any]) -> bool:
    try:
        return space.is_np_flattenable
    except NotImplementedError:
        return False


def _is_image(space: spaces.Space[Any]) -> bool:
    images = isinstance(space, spaces.Box) and space.dtype == np.uint8
    return images and len(space.shape or ()) in (2, 3)


def _camera(path: Path, shape: tuple[int, ...]) -> Camera:
    height, width, channels = shape if len(shape) == 3 else (*shape, 1)
    first = height < min(width, channels) and channels > 4
    require(
        not first,
        f'observation {_name(path)}',
        shape,
        'channels last, (H, W, C): transpose it by gymnasium.wrappers.TransformObservation, and '
        'leave a stack of frames to the policy, which remembers',
    )
    words = '_'.join(str(key) for key in path) or 'image'
    name = ''.join(letter if letter.isalnum() else '_' for letter in words)
    name = name if name.isidentifier() else f'image_{name}'
    return Camera(name=name, height=height, width=width, channels=channels)


def _name(path: Path) -> str:
    return repr('/'.join(str(key) for key in path)) if path else 'itself'
