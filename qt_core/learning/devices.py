# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Devices and processes of a training, and tensors that are in shards over them."""

from __future__ import annotations

import os

from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from qt_core.configuration import ConfigurationError, require

USE_FSDP = 'ACCELERATE_USE_FSDP'


def is_sharded(value: Tensor) -> bool:
    """Tell whether a process holds only a part of the tensor."""
    return isinstance(value, DTensor)


def gathered(value: Tensor) -> Tensor:
    """Give a tensor, put together where it is in shards: then all processes must call."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def placed(value: Tensor, like: Tensor) -> Tensor:
    """Bring a whole tensor to where `like` is, in shards when that is."""
    value = value.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(value, like.device_mesh, like.placements)
    return value


def start_accelerator(mixed_precision: str, *, fsdp: bool) -> Accelerator:
    """Find the devices and processes to train on.

    Args:
        mixed_precision: `no`, `bf16` or `fp16`.
        fsdp: Shard weights, gradients and optimiser over the processes (FSDP2). Without it, the
            environment decides: `accelerate launch --use_fsdp --fsdp_version 2`.

    Raises:
        ConfigurationError: The device cannot do what is asked.
    """
    state = AcceleratorState._shared_state
    if state and state.get('_mixed_precision') != mixed_precision:
        AcceleratorState._reset_state()  # that of an earlier training in this process
    plugin = None
    asked = os.environ.get(USE_FSDP)
    if fsdp:
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy='no_wrap')
    try:
        accelerator = Accelerator(mixed_precision=mixed_precision, fsdp_plugin=plugin)
    except ValueError as error:
        raise ConfigurationError(f'mixed_precision: {error}') from error
    finally:
        if asked is None:
            os.environ.pop(USE_FSDP, None)  # accelerate sets it for good
    sharding = accelerator.distributed_type == DistributedType.FSDP
    allowed = 'false: it needs GPUs and a start by torchrun or accelerate launch'
    require(sharding or not fsdp, 'fsdp', fsdp, allowed)
    if sharding:
        version = accelerator.state.fsdp_plugin.fsdp_version
        require(version == 2, 'fsdp_version', version, '2')
    return accelerator
