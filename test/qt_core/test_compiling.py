# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Compiled and eager policies do the same; nothing is compiled once control has begun."""

import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from qt_core.configuration import ConfigurationError
from qt_core.instruction import SentenceEncoder
from qt_core.learning.checkpoint import Checkpoint, save_checkpoint
from qt_core.models import QRoboticTransformer
from qt_core.observation import Observation
from qt_core.policies import Choice, load_policy
from qt_core.policies.compiling import compile_network
from qt_core.spec import Spec
from test.conftest import TINY_MODEL

pytestmark = pytest.mark.timeout(900)  # compiling, on a machine that does other things too

SENTENCES = ('touch the red block', 'touch the blue block now')
VARIANTS = {
    'one frame': {'frames': 1},
    'several frames': {'frames': 3},
    'memory': {'frames': 3, 'memory': 2},
    'concatenated': {'head': 'concatenated'},
    'single': {'head': 'single'},
    'two critics': {'dual_critics': True},
    'distribution': {'value_bins': 7},
    'guidance': {'cond_drop_prob': 0.5},
    'tokens of the sentence': {'conditioning': 'cross_attention'},
}


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def sentence_tokens(monkeypatch):
    """Embed a sentence's words in place of the tokens that a model would give."""

    def embed_tokens(self, sentences):
        (sentence,) = sentences
        words = [list(word.encode()) for word in sentence.split()]
        return np.array([[np.random.default_rng(w).normal(size=8) for w in words]], np.float32)

    monkeypatch.setattr(SentenceEncoder, 'embed_tokens', embed_tokens)


@pytest.fixture
def save(tiny_contract, embed, tmp_path):
    """Write the checkpoint of a tiny network with changes."""

    def save(**changes):
        config = dataclasses.replace(TINY_MODEL, **changes).fitted(Spec.of(tiny_contract))
        torch.manual_seed(0)
        model = QRoboticTransformer(config).eval()
        with torch.no_grad():
            for critic in model.critics:  # choices that are no ties, and depend on what is seen
                critic.head_weight.mul_(30)
                for block in [*critic.blocks, *critic.decoder]:
                    block.attention.out.weight.mul_(5)
                    if block.cross is not None:
                        block.cross.out.weight.mul_(50)
        save_checkpoint(
            tmp_path / 'checkpoint',
            Checkpoint(
                model=model,
                contract=tiny_contract,
                sentences=SENTENCES,
                embeddings=embed(SENTENCES),
                sentence_model='a model that does not exist',
                training={},
            ),
        )
        return tmp_path / 'checkpoint'

    return save


@pytest.fixture
def observations(tiny_contract):
    random = np.random.default_rng(0)
    return [
        Observation(
            {'front': random.integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)},
            random.uniform(-1, 1, len(tiny_contract.state.joints)).astype(np.float32),
        )
        for _ in range(5)
    ]


def assert_alike(policy, eager, observations, guidances=(1.0,)):
    """Take both through what happens in control: each step they choose the same."""
    decided = []
    for guidance in guidances:
        for each in (policy, eager):
            each.choose(Choice(guidance=guidance))
            each.reset(SENTENCES[0])
        for step, observation in enumerate(observations):
            if step == 3:
                policy.follow(SENTENCES[1])
                eager.follow(SENTENCES[1])
            one, other = policy.act(observation, steps=2), eager.act(observation, steps=2)
            assert np.array_equal(one.bins, other.bins)
            assert np.array_equal(one.plan, other.plan)
            assert np.allclose(one.values, other.values, atol=1e-5)
            decided.append(tuple(one.bins))
    assert len(set(decided)) > 2


def graphs_compiled():
    return torch._dynamo.utils.counters['stats']['unique_graphs']


@pytest.fixture
def without_code(monkeypatch):
    """Trace as torch.compile does, and run what was traced as it is: no compiler is needed."""
    compile = torch.compile
    monkeypatch.setattr(
        torch, 'compile', lambda f, mode, **options: compile(f, backend='eager', **options)
    )


@pytest.mark.parametrize('name', VARIANTS)
def test_after_warming_up_nothing_more_is_compiled(save, observations, without_code, name):
    checkpoint = save(**VARIANTS[name])
    policy, eager = load_policy(checkpoint, 'cpu', compile=True), load_policy(checkpoint, 'cpu')
    before = graphs_compiled()
    policy.warm_up()
    after = graphs_compiled()
    assert after - before >= 1 + policy.model.config.frames  # the encoder, and every history
    guidances = (1.0, 3.0, 1.0) if name == 'guidance' else (1.0,)
    with ThreadPoolExecutor(1) as thread:  # a node may load and act in two
        thread.submit(assert_alike, policy, eager, observations, guidances).result()
    assert graphs_compiled() == after


@pytest.mark.skipif(shutil.which('g++') is None, reason='torch.compile needs a C++ compiler')
@pytest.mark.parametrize('frames', [1, 3])
def test_compiled_code_chooses_as_the_network_does(save, observations, frames):
    checkpoint = save(frames=frames)
    policy, eager = load_policy(checkpoint, 'cpu', compile=True), load_policy(checkpoint, 'cpu')
    policy.warm_up()
    assert_alike(policy, eager, observations)


def test_a_compiler_that_is_missing_is_named_in_one_line(save, tmp_path):
    policy = load_policy(save(), 'cpu', compile=True)
    absent = str(tmp_path / 'g++')
    config = torch._inductor.config
    with (
        config.patch({'cpp.cxx': (absent,), 'force_disable_caches': True}),
        pytest.raises(ConfigurationError) as caught,
    ):
        policy.warm_up()
    message = str(caught.value)
    assert message.startswith('compile is True, expected False where torch.compile does not work')
    assert absent in message
    assert '\n' not in message


class Graphs:
    """Stands in for torch.compile with CUDA graphs: a call writes over what calls before gave."""

    def __init__(self):
        self.given = []

    def __call__(self, function, **options):
        assert options['mode'] == 'reduce-overhead'

        def replay(*arguments):
            result = function(*arguments)
            for tensor in self.given:
                tensor.zero_()
            self.given = [t.clone() for t in tensors_in(result)]
            return replaced(result, iter(self.given))

        return replay


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        value = [getattr(value, f.name) for f in dataclasses.fields(value)]
    return [t for item in value or () for t in tensors_in(item)]


def replaced(value, tensors):
    if isinstance(value, torch.Tensor):
        return next(tensors)
    if isinstance(value, tuple):
        return tuple(replaced(item, tensors) for item in value)
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return type(value)(**{f.name: replaced(getattr(value, f.name), tensors) for f in fields})
    return value


@pytest.mark.parametrize('name', VARIANTS)
def test_what_is_kept_outlives_the_next_replay_of_a_graph(save, observations, monkeypatch, name):
    monkeypatch.setattr(torch, 'compile', Graphs())
    checkpoint = save(**VARIANTS[name])
    policy, eager = load_policy(checkpoint, 'cpu'), load_policy(checkpoint, 'cpu')
    compile_network(policy.model, graphs=True)
    guidances = (1.0, 3.0, 1.0) if name == 'guidance' else (1.0,)
    assert_alike(policy, eager, observations, guidances)
