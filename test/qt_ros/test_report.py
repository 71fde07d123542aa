# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The report of a replay folder: what it says, and that nothing from data is markup."""

import base64
import json
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from qt_core.replay import ReplayError, ReplayWriter
from qt_core.spec import Camera, Spec
from qt_ros.bags import find_bags
from qt_ros.bags.converter import convert
from qt_ros.bags.page import GAP, SIDE, STRIPS
from qt_ros.bags.problems import find_problems
from qt_ros.bags.report import write_report
from test.conftest import make_episode
from test.qt_ros.synthetic_bags import draw_episode, episode_messages, write_bag

EVIL = '<script>alert(1)</script>"\'&\ud800'
EMPTY = {'img', 'meta', 'br'}


class Page(HTMLParser):
    """Reads a page: its texts and images; every element must be closed in its place."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.images, self.open = set(), [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in EMPTY:
            self.open.append(tag)
        values = dict(attributes)
        assert not [name for name in values if name.startswith('on') or name == 'href']
        if tag == 'img':
            head, _, data = values['src'].partition(',')
            assert head == 'data:image/jpeg;base64'
            code = np.frombuffer(base64.b64decode(data, validate=True), np.uint8)
            self.images.append(cv2.imdecode(code, cv2.IMREAD_COLOR))

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts += [data.strip()] if data.strip() else []


def make_quality(**changes):
    """Give a quality record with nothing wrong in it."""
    front = {
        'topic': '/camera/image_raw',
        'messages': 60,
        'rate': 30.0,
        'expected': 30.0,
        'matched': 20,
        'stale': 0,
        'repeated': 0,
        'duplicates': 0,
        'jumps': 0,
        'largest_gap': 0.04,
        'age': {'p50': 0.0, 'p95': 0.001, 'max': 0.002},
        'latency': {'p50': 0.01, 'p95': 0.02, 'max': 0.03},
    }
    changes = dict(changes)
    front |= changes.pop('front', {})
    whole = {
        'ticks': 20,
        'kept': 20,
        'stale': 0,
        'duration': 2.0,
        'damage': '',
        'idle': 0.0,
        'saturation': [0.0] * 7,
        'streams': {'front': front},
    }
    return whole | changes


def write_folder(path, contract, embed, qualities, **changes):
    with ReplayWriter(path, contract, embed) as writer:
        for seed, quality in enumerate(qualities):
            episode = make_episode(contract, seed, success=seed % 2 == 0)
            outcome = ('success', 'failure')[seed % 2]
            writer.add(replace(episode, outcome=outcome, quality=quality, **changes))
    return path


def read(path, failures=()):
    page = write_report(path, failures)
    assert sorted(p.name for p in path.iterdir() if p.suffix in ('.html', '.partial')) == [
        'report.html'
    ]
    return json.loads((path / 'report.json').read_text()), Page(page.read_text(encoding='utf-8'))


def test_says_what_is_in_the_folder(tmp_path, tiny_contract, embed):
    path = write_folder(tmp_path / 'r', tiny_contract, embed, [make_quality()] * 3)
    report, page = read(path, ['bag_7: no topic'])
    assert report['summary'] == {
        'episodes': 3,
        'steps': 18,
        'duration': 1.8,
        'outcomes': {'failure': 1, 'success': 2},
        'instructions': [
            {'instruction': 'touch the red block', 'episodes': 3, 'success': 0.666667}
        ],
    }
    (stream,) = report['streams']
    assert (stream['messages'], stream['rate'], stream['latency_max']) == (180, 30.0, 0.03)
    assert report['attention'] == []
    assert [sum(action['counts']) for action in report['actions']] == [18] * 7
    for text in ('touch the red block', 'bag_7: no topic', '67%', 'episode_2', 'shoulder_pan'):
        assert text in page.texts
    assert len(page.images) == 3
    for image in page.images:  # 32x32 pixels, six frames
        assert image.shape == (32, 6 * 32 + 5 * GAP, 3)
    assert page.tags.isdisjoint({'script', 'link', 'iframe', 'object', 'a'})


def test_shows_the_frames_that_are_in_the_folder(tmp_path, tiny_contract, embed):
    levels = np.linspace(0, 250, 7).astype(np.uint8)
    frames = np.zeros((7, 32, 32, 3), np.uint8)
    frames[..., 0] = levels[:, None, None]  # red
    path = write_folder(tmp_path / 'r', tiny_contract, embed, [None], images={'front': frames})
    (image,) = read(path)[1].images
    red = image[16, 16 :: 32 + GAP, 2].astype(int)
    assert np.abs(red - levels[[0, 1, 2, 4, 5, 6]]).max() < 12
    assert image[4:28, 4:28, :2].max() < 30


def test_large_frames_are_shrunk(tmp_path, contract, embed):
    camera = replace(contract.cameras[0], height=300, width=600)
    path = write_folder(
        tmp_path / 'r', replace(contract, cameras=(camera,)), embed, [make_quality()]
    )
    (image,) = read(path)[1].images
    assert image.shape == (SIDE // 2, 6 * SIDE + 5 * GAP, 3)


BAD = {
    'damaged': (make_quality(damage='cut off'), 'damaged: cut off'),
    'stale': (make_quality(stale=5), '5 of 20 ticks left out as stale'),
    'frozen': (
        make_quality(front={'duplicates': 9}),
        'front: 9 of 20 images equal the one before',
    ),
    'slow': (make_quality(front={'rate': 12.5}), 'front: 12.5 Hz, expected 30 Hz'),
    'gap': (
        make_quality(front={'largest_gap': 0.7}),
        'front: nothing for 0.7 s, max_age is 0.5 s',
    ),
    'jump': (make_quality(front={'jumps': 2}), 'front: 2 stamps went back'),
    'idle': (make_quality(idle=0.75), '75% of the actions do not move'),
    'saturated': (
        make_quality(saturation=[0, 0.6, 0, 0, 0, 0, 0]),
        'shoulder_lift: 60% of the actions at the lowest or highest bin',
    ),
}


@pytest.mark.parametrize('kind', BAD)
def test_each_problem_is_found_alone(contract, kind):
    quality, text = BAD[kind]
    (problem,) = find_problems(quality, contract)
    assert (problem.kind, problem.text) == (kind, text)


def test_nothing_is_wrong_with_a_good_episode(contract):
    assert find_problems(make_quality(), contract) == []
    assert find_problems(None, contract) == []
    assert find_problems(make_quality(saturation=[0.0] * 7 + [1.0]), contract) == []


def test_what_needs_a_look_is_sorted_the_worst_first(tmp_path, tiny_contract, embed):
    qualities = [make_quality(), *reversed([quality for quality, _ in BAD.values()])]
    qualities.append(make_quality(stale=15))
    path = write_folder(tmp_path / 'r', tiny_contract, embed, qualities)
    report, page = read(path)
    assert report['attention'] == [8, 9, 7, 6, 5, 4, 3, 2, 1]
    texts = [text for text in page.texts if text in [said for _, said in BAD.values()]]
    assert texts[: len(BAD)] == [said for _, said in BAD.values()]


def test_what_the_converter_measures_is_found(tmp_path):
    """Bags with a fault each, through the converter, which writes the report itself."""

    def embed_any(sentences):
        return np.zeros((len(sentences), 8), np.float32)

    def episode(seed):
        return episode_messages(draw_episode(seed, steps=30))

    bags = tmp_path / 'bags'
    write_bag(bags / 'a_good', episode(0))
    frozen = draw_episode(1, steps=30)
    frozen.frames[10:] = frozen.frames[10]
    write_bag(bags / 'b_frozen', episode_messages(frozen))
    messages = episode(2)
    lost = {id(m) for m in [m for m in messages if 'image' in m[0]][10:20]}
    write_bag(bags / 'c_hole', [message for message in messages if id(message) not in lost])
    report = convert(find_bags([bags]), tmp_path / 'replay', embed_any)
    assert report.episodes == 3
    content = json.loads((tmp_path / 'replay/report.json').read_text())
    found = {e['source']: ' / '.join(e['problems']) for e in content['episodes']}
    assert found['a_good'] == ''
    assert 'front: 20 of 31 images equal the one before' in found['b_frozen']
    assert 'ticks left out as stale' in found['c_hole']
    assert 'front: nothing for 1.1 s, max_age is 0.5 s' in found['c_hole']
    assert content['attention'] == [2, 1]


def test_text_from_data_is_never_markup(tmp_path, tiny_contract, embed):
    quality = make_quality(damage=EVIL)
    quality['streams'] = {EVIL: quality['streams']['front']}

    def embed_any(sentences):
        return np.zeros((len(sentences), 8), np.float32)

    path = write_folder(
        tmp_path / 'r', tiny_contract, embed_any, [quality], source=EVIL, instruction=EVIL
    )
    _, page = read(path, [EVIL])
    assert 'script' not in page.tags
    shown = EVIL.replace('\ud800', '?')
    assert page.texts.count(shown) >= 3
    assert f'damaged: {shown}' in page.texts


@pytest.mark.parametrize(
    'quality',
    [
        {},
        {'streams': 7, 'saturation': 'x', 'ticks': 'many', 'idle': None, 'stale': True},
        {'streams': {'front': 3, 'left': {'age': [], 'rate': 'fast', 'messages': 1e308}}},
        {'damage': ['a'], 'stale': -1, 'idle': 10**400},
    ],
)
def test_a_quality_record_may_hold_anything(tmp_path, tiny_contract, embed, quality):
    path = write_folder(tmp_path / 'r', tiny_contract, embed, [quality, make_quality()])
    report, _ = read(path)
    assert report['summary']['episodes'] == 2


def test_the_page_is_bounded(tmp_path, tiny_contract, embed):
    count = 600
    qualities = [make_quality(stale=3)] * 60 + [make_quality()] * (count - 60)
    path = write_folder(
        tmp_path / 'r', tiny_contract, embed, qualities, instruction='touch ' + 'x' * 5000
    )
    report, page = read(path, [f'bag_{index}: {"y" * 5000}' for index in range(1000)])
    assert len(report['episodes']) == count
    assert len(page.images) == STRIPS
    assert (path / 'report.html').stat().st_size < 1_500_000
    assert '100 more episodes in report.json.' in page.texts
    assert max(len(text) for text in page.texts if 'x' * 99 in text or 'y' * 99 in text) < 700


def test_is_reproducible(tmp_path, tiny_contract, embed):
    files = []
    for name in ('one', 'two'):
        path = write_folder(tmp_path / name, tiny_contract, embed, [make_quality(), None])
        for _ in range(2):
            write_report(path, ['a: b'])
            files.append([(path / f).read_bytes() for f in ('report.json', 'report.html')])
    assert all(found == files[0] for found in files)


def test_an_environment_that_is_no_robot(tmp_path):
    spec = Spec(cameras=(Camera(name='view', height=8, width=8, channels=2),), num_actions=2)
    with ReplayWriter(tmp_path / 'r', spec, None) as writer:
        base = make_spec_episode(spec)
        writer.add(base)
    report, page = read(tmp_path / 'r')
    assert report['contract'] is None
    assert [action['name'] for action in report['actions']] == ['dimension 0', 'dimension 1']
    assert page.images[0].shape == (8, 4 * 8 + 3 * GAP, 3)


def make_spec_episode(spec):
    from qt_core.replay import ReplayEpisode

    return ReplayEpisode(
        images={'view': np.zeros((4, 8, 8, 2), np.uint8)},
        state=np.zeros((4, 0), np.float32),
        bins=np.zeros((3, 2), np.int64),
        reward=np.zeros(3, np.float32),
        terminal=False,
        timeout=True,
        instruction='',
    )


def test_no_replay_folder(tmp_path):
    with pytest.raises(ReplayError, match='not a replay folder'):
        write_report(tmp_path)
