# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Whatever the timing of messages, a policy is trained on what it sees.

A recording is played twice: through the live buffers, message by message in the order of arrival
and asked as the policy node's `trigger: observation` asks them, and through a bag and the
converter. What must hold:

1. A tick that the converter kept, and for which the live side formed an observation of the same
   stamp, has the same images and the same state on both sides, to the last bit. That is so for
   any jitter, latency, burst, gap, repeated message, and stream that stops or stamps nothing. It
   is asked after every message; and where each stream's stamps ascend, also after only some.
2. With images at the contract's rate, and every other stream in order and at intervals shorter
   than the images', the live side answers every tick that the converter kept, up to the end of
   the stream that ended first. Otherwise it may leave ticks out: of two images that one message
   completes it answers the newer, since an older one is no longer worth acting on.

3. At a tick that the converter places where there is no image, it keeps what the live side, asked
   by a timer (`trigger: rate`), acts on: the image before, and the rest as of that image's time.
"""

import tempfile
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from qt_ros.bags import BagError, EpisodeBag
from qt_ros.bags.converter import convert_episode
from qt_ros.streams import STATE, ObservationAssembler, Stale, Stamped, observed_streams
from test.qt_ros.synthetic_bags import (
    CONTRACT,
    START,
    image_message,
    state_message,
    trajectory_message,
    write_bag,
)

MS = 1_000_000
DURATION = 1_600  # ms
DISORDER = 80  # ms a stamp may come too late; from 100 ms on the clock counts as set back
JOINTS = len(CONTRACT.state.joints)
SETTINGS = settings(
    max_examples=80,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


@dataclass(frozen=True)
class Timing:
    """How the messages of one stream come.

    Attributes:
        period: ms between messages.
        jitter: ms a stamp is off its place, at most.
        latency: ms from stamp to receipt.
        late: ms that receipt is later at random, at most.
        ordered: Whether what is late holds up what comes after it.
        burst: Receipts wait for a multiple of this, ms.
        repeats: Share of messages that come twice.
        gap: ms from and to which nothing is sent.
        stop: ms after which nothing is sent.
        stamped: Whether headers have a stamp.
    """

    period: int
    jitter: int = 0
    latency: int = 0
    late: int = 0
    ordered: bool = True
    burst: int = 1
    repeats: float = 0.0
    gap: tuple[int, int] = (0, 0)
    stop: int = DURATION
    stamped: bool = True


wild = st.builds(
    Timing,
    period=st.sampled_from([100, 50, 33, 20, 90, 140]),
    jitter=st.integers(0, 15),
    latency=st.integers(0, 60),
    late=st.integers(0, DISORDER),
    ordered=st.sampled_from([True, True, False]),
    burst=st.sampled_from([1, 1, 1, 40, 250]),
    repeats=st.sampled_from([0.0, 0.3]),
    gap=st.tuples(st.integers(0, DURATION), st.integers(0, 400)).map(lambda g: (g[0], sum(g))),
    stop=st.sampled_from([DURATION, DURATION, DURATION, DURATION, 900]),
    stamped=st.sampled_from([True, True, False]),
)
at_rate = st.builds(
    Timing,
    period=st.just(100),
    jitter=st.integers(0, 15),
    latency=st.integers(0, 120),
    late=st.integers(0, 40),
    repeats=st.sampled_from([0.0, 0.3]),
)
faster = st.builds(
    Timing,
    period=st.sampled_from([40, 20, 11]),
    jitter=st.integers(0, 4),
    latency=st.integers(0, 120),
    late=st.integers(0, 40),
    repeats=st.sampled_from([0.0, 0.3]),
)


at_once = st.builds(
    Timing,
    period=st.sampled_from([100, 50, 33, 20, 140]),
    jitter=st.integers(0, 15),
    repeats=st.sampled_from([0.0, 0.3]),
    gap=st.tuples(st.integers(0, DURATION), st.integers(0, 400)).map(lambda g: (g[0], sum(g))),
)


@dataclass(frozen=True)
class Plan:
    """What a recording is made of; small, so that a failing one can be read.

    Attributes:
        timings: Of the first camera, the joint state, and further cameras.
        max_ages: As the timings, s.
        stamps: As the timings: which time the contract takes.
        seed: Of jitter and lateness.
    """

    timings: tuple
    max_ages: tuple
    stamps: tuple
    seed: int

    def contract(self):
        """Give the contract, of tiny images."""
        terms = [
            {'max_age': age, 'stamp': stamp}
            for age, stamp in zip(self.max_ages, self.stamps, strict=True)
        ]
        small = replace(CONTRACT.cameras[0], height=8, width=8)
        cameras = tuple(
            replace(small, name=name, topic=f'{name}/image', **timing)
            for name, timing in zip(
                ('front', 'left', 'right'), [terms[0], *terms[2:]], strict=False
            )
        )
        return replace(CONTRACT, cameras=cameras, state=replace(CONTRACT.state, **terms[1]))

    def messages(self):
        """Give (stream, receipt ns, message) in the order of arrival."""
        random = np.random.default_rng(self.seed)
        first, *cameras, state = observed_streams(self.contract())
        arrivals = [
            (received, stream, message)
            for stream, timing in zip([first, state, *cameras], self.timings, strict=True)
            for received, message in send(random, stream, timing)
        ]
        arrivals.sort(key=lambda arrival: arrival[0])
        return [(stream, received, message) for received, stream, message in arrivals]


def plans(reference=wild, others=wild, max_ages=(0.4, 0.4, 0.15)):
    """Give plans of one to three cameras."""

    def of(streams):
        terms = st.tuples(*[st.sampled_from(max_ages)] * streams)
        stamps = st.tuples(*[st.sampled_from(['header', 'header', 'receive'])] * streams)
        timings = st.tuples(reference, *[others] * (streams - 1))
        return st.builds(Plan, timings, terms, stamps, st.integers(0, 1000))

    return st.integers(2, 4).flatmap(of)


# Images overtake each other, and one comes when every other stream has reached its stamp.
OVERTAKEN = Plan(
    (Timing(period=33, late=51, ordered=False), Timing(period=50)),
    max_ages=(0.4, 0.4),
    stamps=('header', 'header'),
    seed=0,
)


def ascending(messages):
    """Whether no stream has a stamp at or before an earlier message's, but for repeats."""
    newest = {}
    for stream, received, message in messages:
        time = stream.time(message, received)
        before, content = newest.get(stream.name, (-1, None))
        if time < before or (time == before and content is not message):
            return False
        newest[stream.name] = time, message
    return True


def send(random, stream, timing):
    """Give (receipt ns, message) of one stream, no two of the same content."""
    stamps = np.arange(random.integers(timing.period), timing.stop, timing.period) * MS
    places = stamps // MS
    stamps = stamps[(places < timing.gap[0]) | (places >= timing.gap[1])]
    stamps = stamps + random.integers(-timing.jitter * MS, timing.jitter * MS + 1, len(stamps))
    received = stamps + timing.latency * MS
    received += random.integers(0, timing.late * MS + 1, len(stamps))
    if timing.ordered:
        received = np.maximum.accumulate(received) if len(received) else received
    received = -(-received // (timing.burst * MS)) * timing.burst * MS
    for index, (stamp, receipt) in enumerate(zip(stamps, received, strict=True)):
        # Whose clock is not used stamps by another one.
        offset = START if stream.stamp == 'header' else 77 * START
        header = int(stamp) + offset if timing.stamped else 0
        if stream.name == STATE:
            message = state_message(CONTRACT.state.joints, [index * 0.01] * JOINTS, header)
        else:
            message = image_message(np.full((8, 8, 3), index % 256, np.uint8), header)
        for _ in range(1 + (random.random() < timing.repeats)):
            yield int(receipt) + START, message


def live(contract, messages, asked, assembler=ObservationAssembler):
    """Give stamp -> observation that a policy node acts on, asked after some messages."""
    formed, buffers = {}, assembler(contract)
    for ask, (stream, received, message) in zip(asked, messages, strict=True):
        time = stream.time(message, received)
        buffers.push(stream.name, time, partial(stream.decode, message))
        stamped = buffers.complete() if ask else None
        if stamped is not None and buffers.stale(received) is None:
            formed[stamped.time] = stamped.observation
    return formed


def converted(contract, messages):
    """Give tick -> observation of what the converter keeps; empty for an unusable bag."""
    ticks, form = [], ObservationAssembler.seen

    def seen(buffers, now):
        observation = form(buffers, now)
        if not isinstance(observation, Stale):
            ticks.append(now)
        return observation

    action = contract.action
    kind = 'trajectory_msgs/msg/JointTrajectory'
    recorded = [(f'/{s.topic}', s.type, received, message) for s, received, message in messages]
    for now in range(START, START + DURATION * MS, 50 * MS):
        command = trajectory_message(action.joints, [0.0] * len(action.joints), now)
        recorded.append((f'/{action.topic}', kind, now, command))
    recorded.sort(key=lambda message: message[2])
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ObservationAssembler, 'seen', seen)
        bag = EpisodeBag(write_bag(Path(folder, 'bag'), recorded, contract))
        try:
            episode, _ = convert_episode(bag)
        except BagError:
            return {}
        assert len(ticks) == len(episode.state)
        return dict(zip(ticks, episode.observations(), strict=True))


def compare(ours, theirs):
    """Assert that observations of the same stamp are the same; give how many there are."""
    shared = sorted(set(ours) & set(theirs))
    for time in shared:
        assert np.array_equal(ours[time].state, theirs[time].state), time
        for camera, image in ours[time].images.items():
            assert np.array_equal(image, theirs[time].images[camera]), (time, camera)
    return len(shared)


def play(assembler=ObservationAssembler, phases=SETTINGS.phases):
    """Play random recordings through both sides; give how many observations were compared."""
    compared = []

    @settings(SETTINGS, phases=phases)
    @given(plan=plans(), seed=st.integers(0, 1000))
    def run(plan, seed):
        contract, messages = plan.contract(), plan.messages()
        kept = converted(contract, messages)
        every = [True] * len(messages)
        compared.append(compare(live(contract, messages, every, assembler), kept))
        if ascending(messages):
            some = np.random.default_rng(seed).random(len(every)) < 0.5
            compared.append(compare(live(contract, messages, some, assembler), kept))

    run()
    return sum(compared)


def test_live_and_converted_observations_are_identical():
    assert play() > 300


def test_images_that_overtake_each_other():
    contract, messages = OVERTAKEN.contract(), OVERTAKEN.messages()
    answered = live(contract, messages, [True] * len(messages))
    assert compare(answered, converted(contract, messages)) > 5


@settings(SETTINGS, max_examples=30)
@given(plan=plans(at_rate, faster, max_ages=(0.5,)))
def test_images_at_the_contracts_rate_are_all_answered(plan):
    contract, messages = plan.contract(), plan.messages()
    kept = converted(contract, messages)
    answered = live(contract, messages, [True] * len(messages))
    newest = {s.name: s.time(message, received) for s, received, message in messages}
    assert len(kept) >= 10
    assert {time for time in kept if time <= min(newest.values())} <= set(answered)
    assert compare(answered, kept) >= len(kept) - 5


@settings(SETTINGS, max_examples=30)
@given(plan=plans(at_once, at_once))
def test_a_timer_between_images_sees_what_is_kept_there(plan):
    contract, messages = plan.contract(), plan.messages()
    timed = [(s.time(message, received), s, message) for s, received, message in messages]
    waiting, buffers = deque(sorted(timed, key=lambda t: t[0])), ObservationAssembler(contract)
    for tick, kept in sorted(converted(contract, messages).items()):
        while waiting and waiting[0][0] <= tick:
            time, stream, message = waiting.popleft()
            buffers.push(stream.name, time, partial(stream.decode, message))
        acted = buffers.latest(tick).observation
        assert np.array_equal(acted.state, kept.state), tick
        for camera, image in acted.images.items():
            assert np.array_equal(image, kept.images[camera]), (tick, camera)


class Nearest(ObservationAssembler):
    """Takes the message nearest to the image, be it from the future."""

    def as_of(self, time):
        nearest = ObservationAssembler(self.contract)
        for stream, times in self._times.items():
            best = min(times, key=lambda t: abs(t - time))
            nearest.push(stream, time, self._values[stream][best])
        return nearest.as_of(time)


class Newest(ObservationAssembler):
    """Takes what came last."""

    def as_of(self, time):
        newest = ObservationAssembler(self.contract)
        for stream, times in self._times.items():
            newest.push(stream, time, self._values[stream][times[-1]])
        return newest.as_of(time)


class Impatient(ObservationAssembler):
    """Does not wait for the other streams to reach the image."""

    def complete(self):
        times = self._times[self.reference]
        if not times or times[-1] <= self._answered:
            return None
        time, self._answered = times[-1], times[-1]
        formed = self.as_of(time)
        return None if isinstance(formed, Stale) else Stamped(time, formed)


@pytest.mark.parametrize('broken', [Nearest, Newest, Impatient])
def test_other_rules_would_be_found(broken):
    with pytest.raises(AssertionError):
        play(broken, phases=(Phase.generate,))
