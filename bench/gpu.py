#!/usr/bin/env python3
# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Speed on an NVIDIA GPU: latency of a control step, and training throughput, in bf16.

    python bench/gpu.py --out bench/results/gpu.json

The network is the one of the public package's README: 6 frames of 224x224, 8 dimensions of 256
bins. A control step is what a robot waits for: one new frame in host memory, encoded, put behind
the tokens of the five before, 8 dimensions decoded, the bins back in host memory. It is timed as
written (`eager`), with the encoder compiled by torch.compile (`compiled`), and with the whole
step captured as one CUDA graph (`graph`, `compiled graph`). Training steps are those of a
`QLearner`; their share of the machine's peak is FLOPs counted by torch over those of a large
matrix product measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from qt_core import QLearner, QRoboticTransformer, ReplayMemoryDataset
from qt_core.models import Decoding
from qt_core.models.decoding import decode_actions
from qt_core.replay import ReplayEpisode, ReplayWriter, WindowBatch

AIM_MS = 4.0
SIZES: dict[str, dict[str, Any]] = {
    'readme': {
        'vit': {
            'dim_conv_stem': 64,
            'dim': 64,
            'dim_head': 64,
            'depth': (2, 2, 5, 2),
            'window_size': 7,
            'mbconv_expansion_rate': 4,
            'mbconv_shrinkage_rate': 0.25,
            'dropout': 0.1,
        },
        'depth': 1,
        'heads': 8,
        'dim_head': 64,
        'cond_drop_prob': 0.2,
        'dueling': True,
    },
    'small': {
        'vit': {'dim': 16, 'depth': (1, 1), 'heads': 2, 'dim_head': 8, 'window_size': 4},
        'cameras': [{'name': 'video', 'height': 64, 'width': 64}],
        'depth': 1,
        'heads': 2,
        'dim_head': 16,
    },
}


class ControlStep:
    """A control step with buffers that stay where they are, so that it can be captured.

    Args:
        model: In evaluation mode, on the device.
        dtype: Of the weights and activations.
        encode: `model.encode`, or a compiled one.
    """

    def __init__(
        self, model: QRoboticTransformer, dtype: torch.dtype, encode: Callable[..., Tensor]
    ) -> None:
        config, device = model.config, model.device
        camera = config.cameras[0]
        self.model, self.encode = model, encode
        self.text = torch.randn(1, config.text_dim, device=device, dtype=dtype)
        shape = (1, 1, camera.height, camera.width, camera.channels)
        self.image = torch.zeros(shape, dtype=torch.uint8, device=device)
        self.tokens = torch.zeros(
            1, config.frames, config.tokens, config.width, device=device, dtype=dtype
        )
        self.bins = torch.zeros(1, config.num_actions, dtype=torch.long, device=device)
        self.camera, self.graph = camera.name, None

    @torch.inference_mode()
    def run(self) -> None:
        """Encode the image in `image` and leave the bins in `bins`."""
        newest = self.encode({self.camera: self.image}, None, self.text)
        self.tokens.copy_(torch.cat([self.tokens[:, 1:], newest], dim=1))
        self.bins.copy_(decode_actions(self.model, self.tokens, Decoding())[0])

    def capture(self) -> None:
        """Capture `run` as one CUDA graph."""
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(5):
                self.run()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.run()

    def act(self, image: Tensor) -> Tensor:
        """Do a control step on an image in host memory; gives the bins there."""
        self.image.copy_(image, non_blocking=True)
        if self.graph is None:
            self.run()
        else:
            self.graph.replay()
        return self.bins.cpu()


def latency(step: ControlStep, repeats: int) -> dict[str, float]:
    """Time control steps, p50 and p99 in ms."""
    image = torch.randint(0, 256, tuple(step.image.shape), dtype=torch.uint8)
    if torch.cuda.is_available():
        image = image.pin_memory()
    for _ in range(20):
        step.act(image)
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        step.act(image)  # waits for the bins
        taken.append(1e3 * (time.perf_counter() - start))
    return {
        'p50_ms': statistics.median(taken),
        'p99_ms': float(np.percentile(taken, 99)),
        'max_ms': max(taken),
    }


def latencies(options: dict[str, Any], device: torch.device, repeats: int) -> dict[str, Any]:
    """Time a control step in every form the device has."""
    dtype = torch.bfloat16 if device.type == 'cuda' else torch.float32
    torch.manual_seed(0)
    model = QRoboticTransformer(**options).to(device, dtype).eval()
    forms = {'eager': ControlStep(model, dtype, model.encode)}
    if device.type == 'cuda':
        forms['graph'] = ControlStep(model, dtype, model.encode)
        compiled = torch.compile(model.encode, mode='max-autotune-no-cudagraphs')
        forms['compiled'] = ControlStep(model, dtype, compiled)
        forms['compiled graph'] = ControlStep(model, dtype, compiled)
    results = {}
    for name, form in forms.items():
        if name.endswith('graph'):
            form.capture()
        results[name] = latency(form, repeats)
        print(
            f'control step, {name}: ' + ', '.join(f'{k} {v:.2f}' for k, v in results[name].items())
        )
    if 'graph' in forms:  # the same bins, whatever the form
        image = torch.randint(0, 256, tuple(forms['eager'].image.shape), dtype=torch.uint8)
        for form in forms.values():
            form.tokens.zero_()
        chosen = {name: form.act(image).tolist() for name, form in forms.items()}
        results['graph equals eager'] = chosen['graph'] == chosen['eager']
    return results


def random_batch(model: QRoboticTransformer, batch: int) -> WindowBatch:
    """Make a batch of windows with random content."""
    config = model.config
    camera, frames = config.cameras[0], config.frames
    shape = (batch, frames + 1, camera.height, camera.width, camera.channels)
    valid = torch.zeros(batch, frames, dtype=torch.bool)
    valid[:, -1] = True
    zeros = torch.zeros(batch, frames)
    return WindowBatch(
        images={camera.name: torch.randint(0, 256, shape, dtype=torch.uint8)},
        state=torch.zeros(batch, frames + 1, 0),
        text=torch.randn(batch, config.text_dim),
        bins=torch.randint(0, config.action_bins, (batch, frames, config.num_actions)),
        reward=zeros,
        terminal=zeros.bool(),
        returns=zeros,
        valid=valid,
        length=torch.full((batch,), frames),
        instruction=torch.zeros(batch, dtype=torch.long),
        start=torch.zeros(batch, dtype=torch.long),
    )


def learner(model: QRoboticTransformer, folder: Path, batch: int, precision: str) -> QLearner:
    """Make a QLearner over the smallest replay folder that will do."""
    config = model.config
    camera = config.cameras[0]

    def embed(sentences: Any) -> Any:
        return np.zeros((len(sentences), config.text_dim), np.float32)

    with ReplayWriter(folder / 'replay', config.shapes, embed) as writer:
        writer.add(
            ReplayEpisode(
                images={
                    camera.name: np.zeros(
                        (batch + 1, camera.height, camera.width, camera.channels), np.uint8
                    )
                },
                state=np.zeros((batch + 1, 0), np.float32),
                action=None,
                bins=np.zeros((batch, config.num_actions), np.int64),
                reward=np.zeros(batch, np.float32),
                terminal=True,
                timeout=False,
                instruction='go',
            )
        )
    return QLearner(
        model,
        dataset=ReplayMemoryDataset(folder / 'replay'),
        checkpoint_folder=folder / 'run',
        num_train_steps=1000,
        learning_rate=3e-4,
        batch_size=batch,
        mixed_precision=precision,
    )


def training(
    options: dict[str, Any], device: torch.device, batches: list[int], repeats: int
) -> list[dict[str, float]]:
    """Time training steps at several batch sizes, until memory is full."""
    precision = 'bf16' if device.type == 'cuda' else 'no'
    results = []
    for batch in batches:
        torch.manual_seed(0)
        try:
            with tempfile.TemporaryDirectory() as folder:
                learn = learner(QRoboticTransformer(**options), Path(folder), batch, precision)
                data = random_batch(learn.network, batch).to(device)
                with FlopCounterMode(display=False) as counter:
                    learn.train_step(data)
                for _ in range(2):
                    learn.train_step(data)
                _wait(device)
                start = time.perf_counter()
                for _ in range(repeats):
                    learn.train_step(data)
                _wait(device)
                seconds = (time.perf_counter() - start) / repeats
        except torch.cuda.OutOfMemoryError:
            print(f'training, batch {batch}: out of memory')
            break
        flops = counter.get_total_flops()
        results.append(
            {
                'batch_size': batch,
                'step_ms': 1e3 * seconds,
                'samples_per_s': batch / seconds,
                'tflops': flops / seconds / 1e12,
                'memory_gb': torch.cuda.max_memory_allocated() / 1e9
                if device.type == 'cuda'
                else float('nan'),
            }
        )
        print('training, ' + ', '.join(f'{k} {v:.4g}' for k, v in results[-1].items()))
        if device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats()
    return results


def matrix_peak(device: torch.device) -> float:
    """Measure the TFLOP/s of a large matrix product in bf16 (float32 on a CPU)."""
    size = 8192 if device.type == 'cuda' else 1024
    dtype = torch.bfloat16 if device.type == 'cuda' else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float('inf')
    for _ in range(20):
        _wait(device)
        start = time.perf_counter()
        a @ b
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e12


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize()


def main() -> int:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--out', type=Path, default=Path('bench/results/gpu.json'))
    parser.add_argument('--device', default='cuda', help='cpu only tries the script')
    parser.add_argument('--size', choices=SIZES, default='readme')
    parser.add_argument('--repeats', type=int, default=300)
    parser.add_argument('--batches', type=int, nargs='+', default=[4, 16, 32, 64])
    arguments = parser.parse_args()
    if arguments.device == 'cuda' and not torch.cuda.is_available():
        print('bench/gpu.py: no NVIDIA GPU here; nothing was measured', file=sys.stderr)
        return 1
    device = torch.device(arguments.device)
    torch.set_float32_matmul_precision('high')
    name = torch.cuda.get_device_name() if device.type == 'cuda' else 'cpu'
    peak = matrix_peak(device)
    print(f'{name}, torch {torch.__version__}: matrix product {peak:.4g} TFLOP/s')
    options = SIZES[arguments.size]
    steps = latencies(options, device, arguments.repeats)
    trained = training(options, device, arguments.batches, max(2, arguments.repeats // 30))
    for row in trained:
        row['share_of_peak'] = row['tflops'] / peak
    best = min(form['p50_ms'] for form in steps.values() if isinstance(form, dict))
    share = max(row['share_of_peak'] for row in trained)
    print(f'best control step p50 {best:.2f} ms (aim {AIM_MS:g}); best share of peak {share:.1%}')
    result = {
        'device': name,
        'torch': torch.__version__,
        'size': arguments.size,
        'matrix_product_tflops': peak,
        'control_step': steps,
        'training': trained,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1), encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
