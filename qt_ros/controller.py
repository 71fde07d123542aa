# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Acts, or holds: what the policy node does, whatever brings it messages and takes its commands.

messages ─ push ─▶ ObservationAssembler ─▶ worker thread: policy ─▶ SafetyFilter ─▶ command
"""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qt_core.action_space import ActionSpace
from qt_core.policies import Decision, Policy, robot_of
from qt_ros.diagnostics import ERROR, OK, WARN, Status
from qt_ros.pacing import Pacer
from qt_ros.plan import CommandPlan, plan_targets
from qt_ros.pose import MeasuredPose
from qt_ros.safety import SafetyFilter, Watchdog
from qt_ros.settings import Settings
from qt_ros.streams import STATE, ObservationAssembler, Stale, Stamped, Stillness, Stream
from qt_ros.vitals import Vitals

POLICY, ESTOP = 'policy', 'estop'  # who drives, as the guard says
HEAD_START = 1e-4  # s that the worker gets before this thread goes on to wait for messages
PATIENCE = 2.0  # s that an inference may go on when nobody waits for it any more
NO_INSTRUCTION = 'no instruction'
WAITING = {
    'teleop': 'waiting: teleop drives',
    'hold': 'waiting: the guard holds; call guard/policy',
    ESTOP: 'waiting: the guard is stopped; call guard/estop_reset, then guard/policy',
}


class Controller:
    """Runs a policy in a thread of its own; every method may be called from any other.

    It acts, or holds: when it cannot go on it commands the measured pose once, and then nothing
    until it can, since holding again and again would let a loaded arm creep. Without a fresh joint
    state it commands the last command instead (an old pose would be a jump back), and the measured
    pose once there is one again.

    Args:
        policy: What decides.
        settings: How to act; replaced with `adjust`.
        now: The node clock, ns.
        command: Sends target positions (N,) and a stamp, ns, 0 for none.
        hold: Sends positions (N,) to stay at.
        decided: Gets each decision that was acted on.
        warn: Says why it stops acting.
    """

    def __init__(
        self,
        policy: Policy,
        settings: Settings,
        *,
        now: Callable[[], int],
        command: Callable[[NDArray[np.float64], int], None],
        hold: Callable[[NDArray[np.float64]], None],
        decided: Callable[[Decision], None],
        warn: Callable[[str], None],
    ) -> None:
        self.policy, self.contract = policy, robot_of(policy)
        self._now, self._command, self._hold_at = now, command, hold
        self._decided, self._warn = decided, warn
        self._period = round(1e9 * self.contract.period)
        self.space = ActionSpace(self.contract)
        self.safety = SafetyFilter(self.contract)
        self._watchdog = Watchdog(self.contract.safety.watchdog)
        self._pose = MeasuredPose(self.contract)
        self._assembler = ObservationAssembler(self.contract)
        self._plan = CommandPlan(self._period)
        self._pacer = Pacer(self._period)
        self._stillness = {camera.name: Stillness() for camera in self.contract.cameras}
        self._lock = threading.Condition()
        self._worker = threading.Thread(target=self._work, name='policy', daemon=True)
        self._warm = threading.Event()
        self._failure: Exception | None = None
        self._closed = self._running = self._stopped = self._done = self._busy = False
        self._run = 0  # counts starts and ends: what was inferred in another run is dropped
        self._begun = 0  # when the worker took the observation that it is busy with, ns
        self._due: int | None = None  # when an image asked for a step, ns
        self._arrived = 0.0  # the newest image, monotonic s
        self._instruction = ''
        self._followed: str | None = None  # what the policy follows; None once its past is gone
        self._reward: float | None = None  # received since the last step; None for none
        self._source = POLICY
        self._driving = False  # the arm may still be on its way to the last command
        self._last: NDArray[np.float64] | None = None
        self._owes_pose = False
        self._answered = 0  # stamp of the last command, ns; 0 for none
        self._problem = ''
        self._vitals = Vitals(self.contract)
        self.adjust(settings)

    # What comes in.

    def push(self, stream: Stream, message: Any) -> None:
        """Take a sensor message, or the bytes of one."""
        now = self._now()
        stamp = stream.time(message, now)
        with self._lock:
            self._vitals.hear(stream.name, now)
            if stream.name == STATE:
                self._pose.push(message, now)
                if self._owes_pose:
                    self._hold_pose(now)
            elif self.settings.frozen_after > 0 and isinstance(message, bytes):
                self._stillness[stream.name].see(message, now)
            self._assembler.push(stream.name, stamp, partial(stream.decode, message))
            reference = stream.name == self._assembler.reference
            if reference:
                self._arrived = time.monotonic()
            if self.settings.trigger == 'observation':
                if reference and stamp == self._answered:
                    self._repeat()
                self._ask(now)
            elif reference and self._pacer.due(stamp):
                if self._busy:
                    self._vitals.overrun(now)
                self._ask(now)
            asked = self._due == now
        if asked:
            # rclpy's way back to waiting is long, and the worker would wait for it with the GIL.
            time.sleep(HEAD_START)

    def instruct(self, sentence: str) -> None:
        """Take a sentence; it counts from the next step on."""
        with self._lock:
            self._done = self._done and sentence == self._instruction
            self._instruction = sentence

    def reward(self, value: float) -> None:
        """Take a reward, for policies that follow what they have earned."""
        with self._lock:
            if math.isfinite(value):
                self._reward = value + (self._reward or 0.0)

    def drives(self, source: str) -> None:
        """Take note of who drives, as the guard says."""
        with self._lock:
            if source != self._source:
                # A guard never lets the policy go on right after an e-stop: it was started anew.
                self._stopped = self._stopped or (self._source, source) == (ESTOP, POLICY)
                self._source = source
                self._run += 1
                self._let_go()

    def adjust(self, settings: Settings) -> None:
        """Act otherwise from the next step on.

        Raises:
            ConfigurationError: The contract does not allow it.
        """
        settings.require_fits(self.policy)
        with self._lock:
            self.settings = settings
            step = round(1e9 / settings.rate) if settings.rate else self._period
            self._pacer.period = step * settings.n_action_steps

    # What a person asks for.

    def open(self) -> None:
        """Warm the policy up, in the thread that will run it: CUDA graphs belong to a thread.

        Raises:
            Exception: What the policy raised.
        """
        self._worker.start()
        self._warm.wait()
        if self._failure is not None:
            raise self._failure

    def activate(self) -> None:
        """Begin to act, once there is what is needed."""
        with self._lock:
            self._run += 1
            self._running, self._done, self._due = True, False, None
            self._stopped = self.safety.stopped  # the latch of an e-stop outlasts inactivity
            self._problem, self._followed = '', None

    def deactivate(self) -> None:
        """Hold, and act no more."""
        with self._lock:
            self._run += 1
            self._running = False
            self.hold()
            self._owes_pose = False

    def close(self) -> bool:
        """Hold, and end the thread; say whether it has ended, or is in an inference that hangs."""
        self.deactivate()
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        if self._worker.is_alive():
            self._worker.join(PATIENCE)
        return not self._worker.is_alive()

    def start(self) -> str:
        """Act again after `stop` or the end of a task; give why not, '' when it does."""
        with self._lock:
            if self.safety.stopped:
                return 'the e-stop is latched: call ~/estop_reset first'
            self._stopped = self._done = False
            self._followed = None
            return ''

    def stop(self) -> None:
        """Hold until `start`."""
        with self._lock:
            self._stopped = True
            self._run += 1
            self.hold()

    def estop(self) -> None:
        """Hold until `estop_reset` and then `start`."""
        with self._lock:
            self.safety.stop()
            self._stopped = True
            self._run += 1
            self.hold()

    def estop_reset(self) -> None:
        """Release the latch, which by itself moves nothing."""
        with self._lock:
            self.safety.reset()

    def reset(self) -> str:
        """Forget the past; give the sentence in force."""
        with self._lock:
            self._followed, self._done = None, False
            self.safety.rearm()
            return self._instruction

    # What time asks for.

    def watch(self) -> None:
        """Hold when a stream is lost, a camera frozen, or nothing was decided for too long."""
        with self._lock:
            now = self._now()
            if not self._running or self._blocked():
                return
            problem = self._sees(now)
            if not problem and self._watchdog.expired(now):
                problem = f'no action for {self._watchdog.silence(now):.2f} s'
            took = (now - self._begun) / 1e9
            hangs = self._driving and self._busy and took > self._watchdog.limit
            if not problem and hangs:  # while a plan is played the watchdog is content
                problem = f'inference hangs for {took:.2f} s'
            if problem:
                self._refuse(problem)

    def play(self) -> None:
        """Command the planned step that is due now."""
        with self._lock:
            now = self._now()
            if self._driving and not self._watchdog.expired(now):
                self._send(self._plan.take(now), now)

    def hold(self) -> None:
        """Command the measured pose, once, if the arm may be moving."""
        with self._lock:
            if self._driving:
                now = self._now()
                if self._watchdog.expired(now):
                    self._last = None  # others hold by now, and may have moved the arm elsewhere
                self._let_go()
                self._hold_pose(now)

    def status(self) -> Status:
        """Say how it goes."""
        with self._lock:
            now = self._now()
            level, message = self._state(now)
            values = self._vitals.values(now, self._assembler.ages(now))
            values['control steps without an image'] = str(self._pacer.missed)
            values['planned steps dropped'] = str(self._plan.dropped)
            values |= {f'interventions: {k}': str(v) for k, v in self.safety.interventions.items()}
            values['instruction'] = self._instruction
            values['contract'] = self.contract.name
        return Status('policy', level, message, values)

    def joints(self) -> tuple[str, ...] | None:
        """Name the joints of the newest joint state; None when there was none."""
        with self._lock:
            return self._pose.names()

    def _state(self, now: int) -> tuple[int, str]:
        if not self._running:
            return OK, 'inactive'
        if self.safety.stopped:
            return ERROR, 'stopped by e-stop: call ~/estop_reset, then ~/start'
        if blocked := self._blocked():
            return (WARN if self._stopped else OK), blocked
        problem = self._problem or self._sees(now)
        if problem and problem != NO_INSTRUCTION:
            return ERROR, problem
        if not self._driving:
            return WARN, problem or 'waiting for an observation'
        lockstep = self.settings.trigger == 'observation'
        complaint = '' if lockstep else self._vitals.complaint(now, 1e9 / self._pacer.period)
        return (WARN, complaint) if complaint else (OK, 'acting')

    # The rest is called with the lock held, but for the worker.

    def _blocked(self) -> str:
        """Say why nobody expects it to act."""
        if self._stopped:
            return 'stopped: call ~/start'
        if self._source != POLICY:
            return WAITING.get(self._source, f'waiting: {self._source} drives')
        return 'done: the policy says that the task is finished' if self._done else ''

    def _sees(self, now: int) -> str:
        """Say what it lacks to act; '' for nothing."""
        stale = self._assembler.stale(now)
        if stale is not None:
            return str(stale)
        for name, stillness in self._stillness.items():
            if 0 < self.settings.frozen_after < stillness.seconds:
                return f"'{name}' is frozen: the same image for {stillness.seconds:.2f} s"
        return '' if self._instruction else NO_INSTRUCTION

    def _ask(self, now: int) -> None:
        if self._running and not self._blocked():
            self._due = now
            self._lock.notify_all()

    def _take(self) -> Stamped | Stale | Exception | None:
        """Take the next observation, why there is none, or None to wait."""
        if self._due is None or not self._running or self._blocked():
            return None
        now = self._now()
        late, self._due = now - self._due, None
        try:
            if self.settings.trigger == 'rate':
                # A step that is late by more than half a period is left out: the rate falls to a
                # whole fraction, and the arm's motion stays even.
                return self._assembler.latest(now) if late <= self._pacer.period / 2 else None
            stamped = self._assembler.complete()
            return stamped and (self._assembler.stale(now) or stamped)
        except Exception as error:  # a message that does not make sense
            return error

    def _work(self) -> None:
        """Take observations and act on them until closed."""
        try:
            self.policy.choose(self.settings.choice)
            self.policy.warm_up()
        except Exception as error:
            self._failure = error
            return
        finally:
            self._warm.set()
        while True:
            with self._lock:
                found = None
                while not self._closed and (found := self._take()) is None:
                    self._busy = False
                    self._lock.wait()
                if self._closed:
                    return
                self._busy, self._begun = True, self._now()
                taken, arrived, sentence = self._begun, self._arrived, self._instruction
                problem = self._sees(taken)
                if problem or not isinstance(found, Stamped):
                    self._refuse(problem or ' '.join(str(found).split()))
                    continue
                # What the policy knows when it is not told anything new.
                followed, self._followed = self._followed, sentence
                reward, self._reward = self._reward, None
                settings, run = self.settings, self._run
            try:
                self._act(found, run, taken, arrived, followed, sentence, reward, settings)
            except Exception as error:
                line = ' '.join(str(error).split()) or type(error).__name__
                trace = traceback.format_exc()
                with self._lock:
                    if self._run == run:
                        self._refuse(f'inference failed: {line}', trace)

    def _act(
        self,
        stamped: Stamped,
        run: int,
        taken: int,
        arrived: float,
        followed: str | None,
        sentence: str,
        reward: float | None,
        settings: Settings,
    ) -> None:
        begun = time.monotonic()
        self.policy.choose(settings.choice)
        if reward is not None and followed is not None:
            self.policy.receive(reward)  # for what was done before: a reset forgets it
        if followed is None or (followed != sentence and settings.reset_on_instruction):
            self.policy.reset(sentence)
        elif followed != sentence:
            self.policy.follow(sentence)
        decision = self.policy.act(stamped.observation, settings.chunk_size)
        inference = time.monotonic() - begun
        plan = decision.plan
        if self.contract.action.terminate:
            plan = plan[: max(1, np.argmax([*(plan[:, -1] >= 0.5), True]))]
        targets = plan_targets(self.space, plan, stamped.observation.state)
        with self._lock:
            if self._run != run or self._blocked():
                return
            now = self._now()
            self._vitals.infer(inference)
            if problem := self._sees(now):
                self._refuse(problem)
                return
            if (now - taken) / 1e9 > self._watchdog.limit:
                self._refuse(f'inference took {(now - taken) / 1e9:.2f} s')
                return
            if self.contract.action.terminate and decision.action[-1] >= 0.5:
                self._done = True
                self.hold()
                return
            first: NDArray[np.float64] | None = targets[0]
            if settings.chunk_size > 1:
                self._plan.replace(stamped.time, targets)
                first = self._plan.take(now)
                self._plan.sure = settings.n_action_steps
                if first is None and not self._plan.left:
                    self._refuse(f'all {len(targets)} planned steps are past')
                    return
            self._problem = ''
            self._send(first, now, stamped)
            self._vitals.act(now, time.monotonic() - arrived)
        self._decided(decision)

    def _send(
        self, targets: NDArray[np.float64] | None, now: int, stamped: Stamped | None = None
    ) -> None:
        if targets is None:
            return
        measured = self._pose.at(now)  # the observation's is as old as the inference
        if measured is None:
            return
        self._watchdog.feed(now)
        self._last = self.safety.apply(targets, measured, now)
        self._driving, self._owes_pose = True, False
        stamp = stamped.time if stamped is not None and self.settings.stamp_commands else 0
        self._answered = stamp
        self._command(self._last, stamp)

    def _repeat(self) -> None:
        """Command the last once more: who shows an image again has missed the answer."""
        if self._driving and not self._blocked() and self._last is not None:
            self._command(self._last, self._answered)

    def _let_go(self) -> None:
        """Expect no more commands, and begin the next motion from the measured pose."""
        self._driving = self._owes_pose = False
        self._followed = None  # what it saw is the past of another motion
        self._watchdog.disarm()
        self._plan.clear()
        self.safety.rearm()

    def _hold_pose(self, now: int) -> None:
        pose = self._pose.at(now)
        if pose is None and self._owes_pose:
            return
        self._owes_pose = pose is None
        held = self._last if pose is None else pose
        if held is not None:
            self._hold_at(held)

    def _refuse(self, problem: str, detail: str = '') -> None:
        """Hold, and say why."""
        news = self._driving or not self._problem
        self._problem, self._followed = problem, None
        try:
            self.hold()
        except Exception as error:  # the worker must live on
            self._warn(f'cannot hold: {error}')
        if news:
            self._warn('\n'.join(filter(None, (f'not acting: {problem}', detail))))
