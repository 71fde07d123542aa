# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The embedded simulator: a 6-joint arm, a table, coloured blocks and a camera, in MuJoCo."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault('MUJOCO_GL', 'egl')  # headless; read by mujoco when it is imported

import mujoco

from qt_core.action_space import ActionSpace
from qt_core.configuration import ConfigurationError, require
from qt_core.contract import ContractError, RobotContract
from qt_core.environments.demonstrator import BLOCK_SIZE, joint_pose
from qt_core.environments.environment import Step
from qt_core.observation import Observation, form_observation
from qt_core.share import share_path
from qt_core.spec import Spec

MAX_STEPS = 40  # control steps until time is out
COLOURS = {'red': (0.85, 0.1, 0.1), 'green': (0.1, 0.65, 0.15), 'blue': (0.12, 0.25, 0.9)}
SENTENCES = {
    'train': (
        'touch the {} block',
        'touch the {} cube',
        'reach the {} block',
        'reach for the {} cube',
        'move to the {} block',
        'move the arm to the {} cube',
        'go to the {} block',
        'put the gripper on the {} block',
        'tap the {} cube',
        'make contact with the {} cube',
    ),
    'unseen': (
        'reach out and touch the {} cube',
        'tap the {} block',
        'go to the {} cube',
        'bring the gripper to the {} block',
    ),
}
AREA = ((0.26, 0.44), (-0.16, 0.16))  # where blocks lie, m
SPACING = 0.11  # least distance between block centres, m
START = ((0.24, 0.42), (-0.26, 0.26), (0.11, 0.26))  # where the fingertips may start, m
PHYSICS_STEP = 0.004  # s
CAMERA_POSITION = (0.98, 0.0, 0.62)  # m
CAMERA_TARGET = (0.30, 0.0, 0.03)  # m, the point in the middle of the image
CAMERA_FOVY = 27.0  # degrees


@dataclass(frozen=True)
class Scene:
    """The episode a seed determines.

    Attributes:
        seed: The seed.
        instruction: The sentence.
        target: Colour of the block the sentence names.
        blocks: Colour to the block's centre, m.
    """

    seed: int
    instruction: str
    target: str
    blocks: dict[str, tuple[float, float, float]]


class Tabletop:
    """Physics, rendering and the `reach` task: touch the block the sentence names.

    Three blocks are present. The first one that any part of the robot touches decides the outcome.
    Rendering is bound to the thread that calls `render` first.

    Args:
        contract: Joints and control rate; its joints must be those of the arm.
        task: `reach`.

    Raises:
        ConfigurationError: The task is unknown, or the arm lacks a joint of the contract.
    """

    def __init__(self, contract: RobotContract, *, task: str = 'reach') -> None:
        require(task == 'reach', 'task', task, 'reach')
        self.contract = contract
        self.model = _build_model()
        self.data = mujoco.MjData(self.model)
        arm = [self.model.actuator(i).name for i in range(self.model.nu)]
        for joint in contract.action.joints + contract.state.joints:
            if joint not in arm:
                raise ContractError(f"the arm has no joint '{joint}', only {', '.join(arm)}")
        self._actuators = [self.model.actuator(j).id for j in contract.action.joints]
        self._joints = {j: self.model.joint(j) for j in contract.state.joints}
        self._limits = self.model.actuator_ctrlrange[self._actuators]
        self._substeps = max(1, round(contract.period / PHYSICS_STEP))
        self._block_bodies = {self.model.body(c).id: c for c in COLOURS}
        self._robot_root = self.model.body('shoulder_link').id
        self._renderers: dict[tuple[int, int], mujoco.Renderer] = {}
        self.fovy = float(CAMERA_FOVY)  # vertical field of view, degrees
        self.outcome = 'running'
        self.time = 0.0

    def reset(self, seed: int, *, sentences: str = 'train') -> Scene:
        """Lay out the episode of `seed`: blocks, the named colour, a sentence, the start pose.

        Args:
            seed: Any non-negative integer.
            sentences: `train` or `unseen`: which wordings the sentence is drawn from.
        """
        random = np.random.default_rng(seed)
        centres = _draw_centres(random)
        target = str(random.choice(list(COLOURS)))
        sentence = str(random.choice(SENTENCES[sentences])).format(target)
        mujoco.mj_resetData(self.model, self.data)
        start = joint_pose(random.uniform(*np.transpose(START)))
        for index, name in enumerate(self._arm_joints()):
            self.data.joint(name).qpos[0] = self.data.ctrl[index] = start[index]
        for colour, centre in zip(COLOURS, centres, strict=True):
            yaw = random.uniform(-np.pi / 4, np.pi / 4)
            pose = [*centre, BLOCK_SIZE / 2, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
            self.data.joint(colour).qpos[:] = pose
        mujoco.mj_forward(self.model, self.data)
        self.outcome = 'running'
        self.target = target
        blocks = {c: (float(p[0]), float(p[1]), float(p[2])) for c, p in self.blocks.items()}
        return Scene(seed=seed, instruction=sentence, target=target, blocks=blocks)

    def advance(self, targets: NDArray[Any]) -> None:
        """Drive the action's joints towards `targets` (N,), rad or m, for one control period."""
        low, high = self._limits.T
        self.data.ctrl[self._actuators] = np.clip(targets, low, high)
        for _ in range(self._substeps):
            mujoco.mj_step(self.model, self.data)
            self._judge()
        self.time += self.contract.period

    @property
    def positions(self) -> dict[str, float]:
        """Joint name to position, rad or m."""
        return {j: float(self.data.qpos[joint.qposadr[0]]) for j, joint in self._joints.items()}

    @property
    def velocities(self) -> dict[str, float]:
        """Joint name to velocity, rad/s or m/s."""
        return {j: float(self.data.qvel[joint.dofadr[0]]) for j, joint in self._joints.items()}

    @property
    def blocks(self) -> dict[str, NDArray[np.float64]]:
        """Colour to block centre (3,), m."""
        return {colour: self.data.xpos[body].copy() for body, colour in self._block_bodies.items()}

    def render(self, height: int, width: int) -> NDArray[np.uint8]:
        """Render the camera as (height, width, 3) RGB."""
        if (height, width) not in self._renderers:
            self._renderers[height, width] = mujoco.Renderer(self.model, height, width)
        renderer = self._renderers[height, width]
        renderer.update_scene(self.data, camera='front')
        return np.asarray(renderer.render(), np.uint8)

    def close(self) -> None:
        """Free the renderers."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def _arm_joints(self) -> list[str]:
        return [self.model.actuator(i).name for i in range(self.model.nu)]

    def _judge(self) -> None:
        if self.outcome != 'running':
            return
        for a, b in self.data.contact.geom:
            bodies = (self.model.geom_bodyid[a], self.model.geom_bodyid[b])
            for block, other in (bodies, bodies[::-1]):
                if block in self._block_bodies and self._is_robot(other):
                    named = self._block_bodies[block] == self.target
                    self.outcome = 'success' if named else 'failure'
                    return

    def _is_robot(self, body: int) -> bool:
        return bool(self.model.body_rootid[body] == self.model.body_rootid[self._robot_root])


class TabletopEnvironment:
    """The `reach` task as an `Environment`, without ROS.

    Args:
        contract: The arm's contract.
        sentences: `train` or `unseen` wordings.
        camera_size: Side of the rendered image, pixels, before it is resized to the contract's.
        max_steps: Control steps until the timeout.
    """

    def __init__(
        self,
        contract: RobotContract,
        *,
        sentences: str = 'train',
        camera_size: int = 128,
        max_steps: int = MAX_STEPS,
    ) -> None:
        self.contract, self.spec = contract, Spec.of(contract)
        self.simulation = Tabletop(contract)
        self.action_space = ActionSpace(contract)
        self.sentences = sentences
        self.camera_size = camera_size
        self.max_steps = max_steps
        self.frame: NDArray[np.uint8] = np.zeros((camera_size, camera_size, 3), np.uint8)

    def reset(self, seed: int) -> tuple[Observation, str]:
        """Start the episode of `seed`."""
        self.scene = self.simulation.reset(seed, sentences=self.sentences)
        self.steps = 0
        return self._observe(), self.scene.instruction

    def step(self, bins: NDArray[np.int64]) -> Step:
        """Take the action with these bins (N,); reward 1 when the named block is touched."""
        return self.step_action(self.action_space.decode(bins))

    def step_action(self, action: NDArray[Any]) -> Step:
        """Take a continuous action (N,) in the contract's units."""
        self.simulation.advance(self.action_space.to_targets(action, self._observation.state))
        self.steps += 1
        outcome = self.simulation.outcome
        terminal = outcome != 'running'
        return Step(
            observation=self._observe(),
            reward=float(outcome == 'success'),
            terminal=terminal,
            timeout=not terminal and self.steps >= self.max_steps,
        )

    def _observe(self) -> Observation:
        self.frame = self.simulation.render(self.camera_size, self.camera_size)
        images = {camera.name: self.frame for camera in self.contract.cameras}
        self._observation = form_observation(self.contract, images, self.simulation.positions)
        return self._observation


def name_another_block(sentence: str, template: str) -> str:
    """Fill `{other}` in `template` with a colour that `sentence` does not name.

    Raises:
        ConfigurationError: The sentence names no colour.
    """
    colours = list(COLOURS)
    named = [index for index, colour in enumerate(colours) if colour in sentence.split()]
    if not named:
        raise ConfigurationError(f"sentence '{sentence}' names none of {', '.join(colours)}")
    other = colours[(named[0] + 1) % len(colours)]
    return template.replace('{other}', other)


def _draw_centres(random: np.random.Generator) -> list[NDArray[np.float64]]:
    low, high = np.transpose(AREA)
    while True:
        centres = random.uniform(low, high, (len(COLOURS), 2))
        gaps = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
        if gaps[np.triu_indices(len(COLOURS), 1)].min() >= SPACING:
            return list(centres)


def _build_model() -> Any:
    """Add table, blocks, camera, light and position servos to the URDF arm."""
    spec = mujoco.MjSpec.from_file(str(share_path('config/robots/tabletop_arm.urdf')))
    spec.option.timestep = PHYSICS_STEP
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.visual.quality.offsamples = 0
    spec.visual.headlight.ambient = [0.35] * 3
    spec.visual.headlight.diffuse = [0.35] * 3
    for body in spec.bodies:
        body.gravcomp = 1.0
    for index, geom in enumerate(spec.geoms):
        geom.rgba = [0.2, 0.22, 0.26, 1] if index % 2 == 0 else [0.8, 0.82, 0.85, 1]
        geom.contype, geom.conaffinity = 2, 1  # meets table and blocks, not the arm itself
    world = spec.worldbody
    world.add_light(pos=[0.4, 0.3, 1.5], dir=[0, -0.2, -1], castshadow=False)
    box = mujoco.mjtGeom.mjGEOM_BOX
    world.add_geom(
        type=box, size=[0.5, 0.6, 0.02], pos=[0.3, 0, -0.021], rgba=[0.72, 0.66, 0.56, 1]
    )
    for colour, rgb in COLOURS.items():
        body = world.add_body(name=colour)
        body.add_freejoint(name=colour)
        body.add_geom(type=box, size=[BLOCK_SIZE / 2] * 3, rgba=[*rgb, 1], density=400)
    position, target = np.array(CAMERA_POSITION), np.array(CAMERA_TARGET)
    back = (position - target) / np.linalg.norm(position - target)
    right = np.cross([0, 0, 1], back)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(back, right), back], axis=1)
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, axes.flatten())
    world.add_camera(name='front', pos=position, quat=quaternion, fovy=CAMERA_FOVY)
    joints = [joint for joint in spec.joints if joint.name not in (*COLOURS, 'gripper_mirror')]
    for joint in joints:
        low, high = joint.range
        # The inertia of a screw drive holds the fingers. If they swayed with the arm they would
        # tell a policy how fast it moves, and it would learn to go on instead of to look.
        inertia, stiffness, damping = (
            (5.0, 5000.0, 300.0) if joint.name == 'gripper' else (0.05, 400.0, 20.0)
        )
        joint.armature = inertia
        actuator = spec.add_actuator(
            name=joint.name,
            target=joint.name,
            trntype=mujoco.mjtTrn.mjTRN_JOINT,
            gaintype=mujoco.mjtGain.mjGAIN_FIXED,
            biastype=mujoco.mjtBias.mjBIAS_AFFINE,
            ctrllimited=True,
            ctrlrange=[low, high],
        )
        actuator.gainprm[0] = stiffness
        actuator.biasprm[1:3] = [-stiffness, -damping]
    if not any(e.type == mujoco.mjtEq.mjEQ_JOINT for e in spec.equalities):
        mirror = spec.add_equality(name1='gripper_mirror', name2='gripper')
        mirror.type = mujoco.mjtEq.mjEQ_JOINT
        mirror.data[:2] = [0, 1]
    return spec.compile()
