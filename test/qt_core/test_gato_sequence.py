# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
import torch

from qt_core.configuration import ConfigurationError
from qt_core.models.gato import Gato
from qt_core.models.gato_configuration import Body, GatoConfig
from qt_core.models.gato_sequence import (
    Steps,
    action_sequence,
    padded,
    stacked,
    step_sequence,
    steps_that_fit,
    text_sequence,
)
from qt_core.models.gato_text import TextTokenizer
from qt_core.spec import Camera

# Cameras in another order than that of their names; 2 and 1 patches.
CAMERAS = (
    Camera(name='wrist', height=16, width=16),
    Camera(name='front', height=16, width=32),
)
ARM = Body(name='arm', cameras=CAMERAS, state_dim=2, num_actions=2, action_bins=5)
CONFIG = GatoConfig(
    bodies=(ARM,),
    text_ids=300,
    context=64,
    width=16,
    depth=2,
    heads=2,
    dim_head=8,
    ff_width=32,
    dropout=0.0,
    image_channels=4,
)
OBSERVED, ACTION = 300, 300 + 1024  # where these ids begin
END = 300 + 2 * 1024  # the separator
IMG = -1


def make_steps(**changes):
    """Make two rows: two steps under a sentence of two words, one step under one of one word."""
    random = torch.Generator().manual_seed(0)
    steps = Steps(
        images={
            camera.name: torch.randint(
                256, (2, 2, camera.height, camera.width, 3), generator=random, dtype=torch.uint8
            )
            for camera in CAMERAS
        },
        state=torch.tensor([[[0.0, 256.0], [-256.0, 0.0]], [[0.0, 0.0], [99.0, 99.0]]]),
        bins=torch.tensor([[[0, 4], [3, 1]], [[2, 2], [0, 0]]]),
        count=torch.tensor([2, 1]),
        sentences=[[7, 8], [9]],
        number=torch.tensor([[5, 6], [0, 1]]),
    )
    return dataclasses.replace(steps, **changes)


def config(**changes):
    return dataclasses.replace(CONFIG, **changes)


def make_network(settings):
    torch.manual_seed(0)
    network = Gato(settings, TextTokenizer.train(['touch the red block'], settings.text_ids))
    return network.eval()


def test_a_step_is_sentence_images_state_separator_action():
    sequence = step_sequence(CONFIG, ARM, make_steps())
    zero, low, high = OBSERVED + 512, OBSERVED, OBSERVED + 1023
    # fmt: off
    assert sequence.ids[0].tolist() == [
        7, 8, IMG, IMG, IMG, zero, high, END, ACTION, ACTION + 4,
        7, 8, IMG, IMG, IMG, low, zero, END, ACTION + 3, ACTION + 1,
    ]
    assert sequence.ids[1, :9].tolist() == [
        9, IMG, IMG, IMG, zero, zero, END, ACTION + 2, ACTION + 2,
    ]
    assert sequence.position.tolist() == [
        [0, 1, 2, 3, 4, 5, 6, -1, -2, -2] * 2,
        [0, 1, 2, 3, 4, 5, -1, -2, -2] + [-1] * 11,
    ]
    # Text and actions, but not what nothing stands before.
    assert sequence.target.int().tolist() == [
        [0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 0, 0, 1, 1] + [0] * 11,
    ]
    # fmt: on
    assert sequence.valid.sum(1).tolist() == [20, 9]
    assert sequence.timestep[0].tolist() == [5] * 10 + [6] * 10
    # The first action is predicted from the separator, the second from the first.
    places = sequence.predicted[0].nonzero()[:, 0]
    assert [int(sequence.ids[0, place]) for place in places] == [
        7,
        *(END, ACTION, ACTION + 4),
        *(7, END, ACTION + 3),
    ]


def test_a_sentence_may_stand_once_in_a_window():
    sequence = step_sequence(config(sentence='window'), ARM, make_steps())
    zero, low, high = OBSERVED + 512, OBSERVED, OBSERVED + 1023
    # fmt: off
    assert sequence.ids[0].tolist() == [
        7, 8,
        IMG, IMG, IMG, zero, high, END, ACTION, ACTION + 4,
        IMG, IMG, IMG, low, zero, END, ACTION + 3, ACTION + 1,
    ]
    # fmt: on
    assert sequence.position[0].tolist() == [-1, -1] + [0, 1, 2, 3, 4, -1, -2, -2] * 2
    assert sequence.target[0].int().tolist() == [0, 1] + [0, 0, 0, 0, 0, 0, 1, 1] * 2
    assert sequence.valid.sum(1).tolist() == [18, 9]


def test_patches_are_those_of_the_image_in_raster_order_where_their_ids_stand():
    steps = make_steps()
    sequence = step_sequence(CONFIG, ARM, steps)
    assert [len(image.pixels) for image in sequence.images] == [6, 3]  # three steps in two rows
    front, wrist = sequence.images  # by name
    assert front.place.tolist() == [[0, 2], [0, 3], [0, 12], [0, 13], [1, 1], [1, 2]]
    assert wrist.place.tolist() == [[0, 4], [0, 14], [1, 3]]
    assert torch.equal(front.pixels[3], steps.images['front'][0, 1, :, 16:])
    assert torch.equal(wrist.pixels[2], steps.images['wrist'][1, 0])
    assert front.rows[:2].tolist() == [[0, 1], [0, 1]]
    assert front.columns[:2].tolist() == [[0, 0.5], [0.5, 1]]
    marked = torch.zeros_like(sequence.ids)
    for image in sequence.images:
        marked[tuple(image.place.T)] += 1
    assert torch.equal(marked == 1, sequence.ids == IMG)


def test_a_whole_image_may_be_one_token():
    steps = make_steps()
    sequence = step_sequence(config(image_tokens='single'), ARM, steps)
    front, _ = sequence.images
    assert front.place.tolist() == [[0, 2], [0, 11], [1, 1]]
    assert torch.equal(front.pixels[1], steps.images['front'][0, 1])


def test_rows_of_patches_come_before_columns():
    body = dataclasses.replace(ARM, cameras=(Camera(name='front', height=32, width=48),))
    number = torch.arange(6, dtype=torch.uint8).reshape(2, 3)
    image = number.repeat_interleave(16, 0).repeat_interleave(16, 1)[None, None, :, :, None]
    steps = make_steps(images={'front': image.repeat(2, 2, 1, 1, 3)})
    found = step_sequence(CONFIG, body, steps).images[0]
    assert found.pixels[:6].flatten(1).float().mean(1).tolist() == [0, 1, 2, 3, 4, 5]
    assert found.rows[:6].tolist() == [[0, 0.5]] * 3 + [[0.5, 1]] * 3
    assert found.columns[4].tolist() == pytest.approx([1 / 3, 2 / 3])


def test_sides_that_are_no_multiple_are_padded_with_their_edge():
    image = torch.arange(12, dtype=torch.uint8).reshape(1, 4, 3, 1)
    longer = padded(image, 4)
    assert longer.shape == (1, 4, 4, 1)
    assert longer[0, :, 3, 0].tolist() == image[0, :, 2, 0].tolist()
    assert torch.equal(longer[:, :, :3], image)
    body = dataclasses.replace(ARM, cameras=(Camera(name='front', height=20, width=16),))
    steps = make_steps(images={'front': torch.zeros(2, 2, 20, 16, 3, dtype=torch.uint8)})
    sequence = step_sequence(CONFIG, body, steps)
    assert len(sequence.images[0].pixels) == 2 * 3
    assert sequence.valid.sum(1).tolist() == [18, 8]
    # step: 2 patches, 2 states, separator, 2 actions
    assert steps_that_fit(config(sentence='window', context=16), body, 2) == 2


def test_as_many_whole_steps_as_fit_are_taken():
    # a step is 3 patches, 2 numbers, a separator and 2 actions
    assert steps_that_fit(config(context=39), ARM, 2) == 3
    assert steps_that_fit(config(context=40), ARM, 2) == 4
    window = config(context=41, sentence='window')
    assert steps_that_fit(window, ARM, 2) == 4
    assert steps_that_fit(window, ARM, 1) == 5
    single = config(context=40, image_tokens='single', sentence='window')
    assert steps_that_fit(single, ARM, 5) == 5
    with pytest.raises(ConfigurationError, match=r'model.context is 9, expected at least 10, a'):
        steps_that_fit(config(context=9), ARM, 2)
    large = dataclasses.replace(ARM, cameras=(Camera(name='front', height=512, width=512),))
    with pytest.raises(ConfigurationError, match='arm: tokens of an observation is 1026'):
        steps_that_fit(config(context=2000, sentence='window'), large, 2)


@pytest.mark.parametrize('sentence', ['step', 'window'])
def test_an_action_changes_only_what_comes_after_it(sentence):
    settings = config(sentence=sentence)
    network, steps = make_network(settings), make_steps()
    bins = steps.bins.clone()
    bins[0, 1, 0] = 1  # 3 before
    first = step_sequence(settings, ARM, steps)
    second = step_sequence(settings, ARM, dataclasses.replace(steps, bins=bins))
    place = int((first.ids != second.ids).nonzero()[0, 1])
    assert first.ids[0, place - 1] == END
    with torch.no_grad():
        change = (network(first) - network(second)).abs().amax(-1)
    assert change[1].max() == 0
    # The prediction of that very action, made at the separator, stays.
    assert change[0, :place].max() == 0
    assert change[0, place] > 1e-4


def test_padding_changes_nothing():
    network, steps = make_network(CONFIG), make_steps()
    alone = dataclasses.replace(
        steps,
        images={name: frames[1:, :1] for name, frames in steps.images.items()},
        state=steps.state[1:, :1],
        bins=steps.bins[1:, :1],
        count=steps.count[1:],
        sentences=steps.sentences[1:],
        number=steps.number[1:, :1],
    )
    with torch.no_grad():
        ours = network(step_sequence(CONFIG, ARM, alone))[0]
        theirs = network(step_sequence(CONFIG, ARM, steps))[1, : len(ours)]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    'changes',
    [{}, {'image_tokens': 'single', 'image_channels': 64}, {'timestep_positions': True}],
)
@pytest.mark.parametrize('sentence', ['step', 'window'])
def test_the_parts_of_a_sequence_embed_as_the_whole_does(sentence, changes):
    settings = config(sentence=sentence, **changes)
    network, steps = make_network(settings), make_steps()
    first = {name: frames[:1, :1] for name, frames in steps.images.items()}
    second = {name: frames[:1, 1:] for name, frames in steps.images.items()}
    words = steps.sentences[0]
    parts = []
    if sentence == 'window':
        parts.append(text_sequence(settings, [words]))
    for k, images in enumerate((first, second)):
        seen = Steps(
            images=images,
            state=steps.state[:1, k : k + 1],
            bins=torch.zeros(1, 1, 0, dtype=torch.int64),
            count=torch.tensor([1]),
            sentences=[words if sentence == 'step' else []],
            number=steps.number[:1, k : k + 1],
        )
        parts.append(step_sequence(settings, ARM, seen))
        number = int(steps.number[0, k])
        parts += [action_sequence(settings, steps.bins[:1, k, i : i + 1], number) for i in (0, 1)]
    with torch.no_grad():
        whole = network.embed(step_sequence(settings, ARM, steps))[:1]
        pieces = torch.cat([network.embed(part) for part in parts], dim=1)
    torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=1e-5)


def test_rows_of_two_sequences_stand_below_each_other():
    network = make_network(CONFIG)
    first = text_sequence(CONFIG, [[1, 2, 3], [4] * 30])
    second = step_sequence(CONFIG, ARM, make_steps())
    both = stacked(first, second)
    assert both.ids.shape == (4, 30)
    assert first.target.int().tolist() == [[0, 1, 1] + [0] * 27, [0] + [1] * 29]
    with torch.no_grad():
        together = network(both)
        torch.testing.assert_close(together[2:, :20], network(second), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together[:2], network(first), atol=1e-5, rtol=1e-5)
    assert torch.equal(both.predicted[2:, :20], second.predicted)
