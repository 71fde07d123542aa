# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Find the parts of a contract in a LeRobot dataset, and make replay episodes of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from qt_core.action_space import ActionSpace
from qt_core.contract import CameraContract, RobotContract
from qt_core.exchange import lerobot_layout as layout
from qt_core.exchange.errors import ExchangeError
from qt_core.exchange.lerobot_folder import Entry, LeRobotFolder
from qt_core.exchange.lerobot_tables import Columns
from qt_core.exchange.video import MAX_SIDE, VideoReader
from qt_core.observation import resize
from qt_core.replay import ReplayEpisode
from qt_core.replay.frames import FrameFile, Frames
from qt_core.replay.jpeg import jpeg_size

OUTCOMES = ('success', 'failure', 'unlabeled')
ENDS = (layout.REWARD, layout.DONE, layout.TRUNCATED, layout.SUCCESS)


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """How a LeRobot dataset is understood.

    Attributes:
        names: What a camera, a joint, `state` or `action` of the contract is called in the
            dataset, where its name is another; a joint may be given by its place, from 0.
        actions: `absolute` target positions or `raw`, the contract's own units; None for what an
            export of this package says of itself, and else `absolute`.
        degrees: Whether joint positions and targets are in degrees.
        outcome: Outcome of episodes of which the dataset says nothing; one of `OUTCOMES`.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    actions: str | None = None
    degrees: bool = False
    outcome: str | None = None


class Matching:
    """Makes replay episodes of the episodes of a dataset.

    Attributes:
        columns: The columns that are needed.

    Raises:
        ExchangeError: Something of the contract is not in the dataset, or the rates do not fit.
    """

    def __init__(
        self, dataset: LeRobotFolder, contract: RobotContract, config: ImportConfig
    ) -> None:
        self._dataset, self._contract, self._config = dataset, contract, config
        self._space = ActionSpace(contract)
        known = {c.name for c in contract.cameras} | {*contract.state.joints, 'state', 'action'}
        for name in config.names:
            if name not in known:
                raise ExchangeError(
                    f"'{name}' is no camera, joint, 'state' or 'action' of the contract; it has "
                    f'{", ".join(sorted(known))}'
                )
        actions = config.actions or dataset.ours.get('actions', 'absolute')
        if actions not in ('absolute', 'raw'):
            raise ExchangeError(f"actions are {actions!r}, expected 'absolute' or 'raw'")
        self._raw = actions == 'raw'
        if config.outcome not in (None, *OUTCOMES):
            raise ExchangeError(f'outcome is {config.outcome!r}, expected {" or ".join(OUTCOMES)}')
        self._every = round(dataset.fps / contract.rate)
        if self._every < 1 or abs(dataset.fps - self._every * contract.rate) > 1e-6 * dataset.fps:
            raise ExchangeError(
                f'{dataset.folder} has {dataset.fps:g} frames per second, which is no multiple of '
                f"the contract's rate of {contract.rate:g} Hz"
            )
        self._state = self._feature('state', layout.STATE, ('float32', 'float64'))
        self._action = self._feature('action', layout.ACTION, ('float32', 'float64'))
        self._cameras = {
            camera.name: self._feature(
                camera.name, layout.IMAGES + camera.name, ('video', 'image')
            )
            for camera in contract.cameras
        }
        self._state_places = self._places(self._state, contract.state.joints)
        self._action_places = self._places(self._action, contract.action.joints)
        ends = [name for name in ENDS if name in dataset.features]
        images = [
            key for key in self._cameras.values() if dataset.features[key]['dtype'] == 'image'
        ]
        self.columns = tuple(
            dict.fromkeys(['frame_index', 'task_index', self._state, self._action, *ends, *images])
        )
        if layout.SUCCESS not in ends and layout.REWARD not in ends and config.outcome is None:
            raise ExchangeError(
                f'{dataset.folder} has neither {layout.SUCCESS} nor {layout.REWARD}: say what its '
                f'episodes ended in (outcome: {" or ".join(OUTCOMES)})'
            )

    def episode(
        self, entry: Entry, columns: Columns, staging: Path, image_format: str
    ) -> ReplayEpisode:
        """Make the replay episode of a dataset's; its images are files in `staging`.

        Raises:
            ExchangeError: It is too short, not finite, or its images cannot be read.
        """
        every, frames = self._every, entry.length
        steps = (frames - 1) // every
        if steps < 1:
            raise ExchangeError(f'{frames} frames are less than one step')
        if not np.array_equal(np.ravel(columns['frame_index']), np.arange(frames)):
            raise ExchangeError('its frames are not numbered in order')
        kept = slice(0, steps * every + 1, every)
        scale = np.pi / 180 if self._config.degrees else 1.0
        positions = np.asarray(columns[self._state], np.float64).reshape(frames, -1)
        targets = np.asarray(columns[self._action], np.float64).reshape(frames, -1)
        state = scale * np.take(positions[kept], self._state_places, axis=1)
        sent = targets[every - 1 :: every][:steps]
        if not (np.isfinite(state).all() and np.isfinite(sent).all()):
            raise ExchangeError('a state or an action is not finite')
        reward, outcome, terminal, timeout = self._ending(entry, columns, steps)
        joints = (1.0 if self._raw else scale) * np.take(sent, self._action_places, axis=1)
        if not self._raw:
            pairs = zip(joints, state[:-1], strict=True)
            joints = np.stack([self._space.from_targets(t, s) for t, s in pairs])
        action = np.concatenate([joints, self._terminate(sent, terminal)], 1)
        action = np.clip(action, self._space.low, self._space.high)
        instruction = self._dataset.tasks.get(int(np.ravel(columns['task_index'])[0]))
        if instruction is None:
            raise ExchangeError('its task_index is not in the table of tasks')
        digest = hashlib.blake2b(instruction.encode(), digest_size=16)
        for values in (state, action, reward):
            digest.update(np.ascontiguousarray(values).data)
        quality = entry.extra.get(layout.QUALITY)
        return ReplayEpisode(
            images={
                camera.name: self._images(entry, columns, camera, kept, staging, image_format)
                for camera in self._contract.cameras
            },
            state=state.astype(np.float32),
            action=action.astype(np.float32),
            bins=self._space.encode(action),
            reward=reward,
            terminal=terminal,
            timeout=timeout,
            instruction=instruction,
            source=entry.extra.get(
                layout.SOURCE, f'{self._dataset.folder.name}/{entry.index:06d}'
            ),
            source_hash=entry.extra.get(layout.SOURCE_HASH) or digest.hexdigest(),
            outcome=outcome,
            quality=json.loads(quality) if quality else None,
        )

    def _ending(
        self, entry: Entry, columns: Columns, steps: int
    ) -> tuple[NDArray[np.float32], str, bool, bool]:
        """Find the rewards (steps,), the outcome, and whether the episode is terminal or cut."""

        def ever(name: str) -> bool | None:
            return bool(np.any(columns[name])) if name in columns else None

        success = ever(layout.SUCCESS)
        if success is None and layout.REWARD in columns:
            success = bool(np.sum(columns[layout.REWARD]) > 0)
        fallback = self._config.outcome or 'unlabeled'
        outcome = fallback if success is None else ('success' if success else 'failure')
        outcome = entry.extra.get(layout.OUTCOME, outcome)
        reward = np.zeros(steps)
        if layout.REWARD in columns:
            places = np.minimum(np.arange(entry.length) // self._every, steps - 1)
            np.add.at(reward, places, np.ravel(columns[layout.REWARD]))
            if not np.isfinite(reward).all():
                raise ExchangeError('a reward is not finite')
        else:
            reward[-1] = float(outcome == 'success')
        done, cut = ever(layout.DONE), ever(layout.TRUNCATED)
        if done is None:
            done = outcome != 'unlabeled'
        timeout = not done if cut is None else cut
        return reward.astype(np.float32), outcome, bool(done and not timeout), timeout

    def _terminate(self, sent: NDArray[np.float64], terminal: bool) -> NDArray[np.float64]:
        """Give the terminate dimension (T, 1), or (T, 0) where the contract has none."""
        if not self._contract.action.terminate:
            return np.zeros((len(sent), 0))
        names = _names(self._dataset.features[self._action])
        if layout.TERMINATE in names:
            return sent[:, [names.index(layout.TERMINATE)]]
        done = np.zeros((len(sent), 1))
        done[-1] = float(terminal)
        return done

    def _images(
        self,
        entry: Entry,
        columns: Columns,
        camera: CameraContract,
        kept: slice,
        staging: Path,
        image_format: str,
    ) -> Frames:
        """Read the kept frames of a camera into a file, at the contract's size."""
        key = self._cameras[camera.name]
        shape = (camera.height, camera.width, 3)
        with (
            FrameFile(staging / camera.name, shape, image_format=image_format) as file,
            ExitStack() as open_files,
        ):
            images: Iterator[NDArray[np.uint8]]
            if key in columns:
                images = (_decoded(code) for code in columns[key][kept])
            else:
                path, begin = entry.videos[key]
                video = open_files.enter_context(VideoReader(path, self._dataset.fps))
                start = round(begin * self._dataset.fps)
                images = video.frames(start, start + kept.stop, kept.step)
            for image in images:
                file.append(resize(image, camera.height, camera.width))
            return file.frames()

    def _feature(self, name: str, usual: str, kinds: tuple[str, ...]) -> str:
        """Find the feature of a camera, of the state or of the action."""
        features, key = self._dataset.features, self._config.names.get(name, usual)
        found = [other for other, f in features.items() if f.get('dtype') in kinds]
        if key not in found:
            raise ExchangeError(
                f"{self._dataset.folder} has no feature '{key}' of {' or '.join(kinds)} for "
                f"'{name}'; it has {', '.join(found) or 'none'}: say {name}=FEATURE"
            )
        shape = features[key]['shape']
        if kinds == ('video', 'image'):
            fits = len(shape) == 3 and 3 in (shape[0], shape[2])
        else:
            fits = len(shape) == 1 and 0 < shape[0] <= MAX_SIDE
        if not fits:
            raise ExchangeError(f"{self._dataset.folder}: '{key}' is {shape}, which does not fit")
        return key

    def _places(self, key: str, joints: tuple[str, ...]) -> list[int]:
        """Find the places of joints in a vector."""
        feature = self._dataset.features[key]
        names = _names(feature)
        places = []
        for joint in joints:
            name = self._config.names.get(joint, joint)
            if name.isdecimal() and int(name) < feature['shape'][0]:
                places.append(int(name))
                continue
            found = next((n for n in (name, f'{name}.pos') if n in names), None)
            if found is None:
                raise ExchangeError(
                    f"{self._dataset.folder}: '{key}' has no '{name}' for joint '{joint}'; it has "
                    f'{", ".join(names) or "no names"}: say {joint}=NAME or {joint}=PLACE'
                )
            places.append(names.index(found))
        return places


def _names(feature: Mapping[str, Any]) -> list[str]:
    """Give the names of a vector's numbers: a list, or the one list of a mapping; or none."""
    names: Any = feature.get('names')
    if isinstance(names, dict) and len(names) == 1:
        (names,) = names.values()
    if not isinstance(names, list) or len(names) != feature['shape'][0]:
        return []
    return [str(name) for name in names]


def _size(code: bytes) -> tuple[int, int]:
    """Read width and height from the header of a png or jpeg; zeros when it is neither."""
    if code.startswith(b'\x89PNG\r\n\x1a\n'):
        return int.from_bytes(code[16:20], 'big'), int.from_bytes(code[20:24], 'big')
    return jpeg_size(code)


def _decoded(code: Any) -> NDArray[np.uint8]:
    """Decode an image that a parquet file holds: (H, W, 3) RGB."""
    image = None
    # Looked up before decoding: a small file may claim more pixels than there is memory for.
    if isinstance(code, bytes) and 0 < max(_size(code)) <= MAX_SIDE:
        try:
            image = cv2.imdecode(np.frombuffer(code, np.uint8), cv2.IMREAD_COLOR_RGB)
        except cv2.error:
            image = None
    if image is None:
        raise ExchangeError('an image cannot be decoded')
    return np.asarray(image, np.uint8)
