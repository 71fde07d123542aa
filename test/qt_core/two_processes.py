# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One of the processes that test_trainer.py starts: trains, and writes the weights it ends with.

python -m torch.distributed.run --nproc_per_node=2 two_processes.py ddp|fsdp REPLAY OUT
"""

import sys
from pathlib import Path

import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import save_file

from qt_core.learning import trainer
from qt_core.learning.devices import gathered, start_accelerator
from qt_core.learning.q_learner import QLearnerConfig
from test.qt_core.test_trainer import make_learner


def start_sharding_accelerator(mixed_precision, *, fsdp):
    """Accelerate offers FSDP on GPUs only; torch shards on CPUs too."""
    accelerator = start_accelerator(mixed_precision, fsdp=fsdp)
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy='no_wrap'
    )
    return accelerator


def main(sharding, replay, out):
    torch.set_num_threads(1)
    if sharding == 'fsdp':
        trainer.start_accelerator = start_sharding_accelerator
    config = QLearnerConfig(
        num_train_steps=3,
        batch_size=4,
        warmup_steps=2,
        regenerative_rate=1.0,
        log_every=1,
        checkpoint_every=3,
    )
    learner = make_learner(config, replay, Path(out) / 'run')
    assert learner.accelerator.num_processes == 2
    assert learner.sharded == (sharding == 'fsdp')
    learner()
    weights = {n: gathered(w).detach().clone() for n, w in learner.network.state_dict().items()}
    save_file(weights, Path(out) / f'{learner.accelerator.process_index}.safetensors')
    torch.distributed.destroy_process_group()


main(*sys.argv[1:])
