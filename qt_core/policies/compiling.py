# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""torch.compile for what a control step runs: the encoder, and the critic's reading of a draft.

Each is compiled for the shapes it meets and no others: a history that is not full yet is shorter,
so a network of F frames is compiled F times over, once each time its history grows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qt_core.configuration import ConfigurationError
from qt_core.models import QRoboticTransformer

# CUDA graphs: a call runs once as it is, is captured in the next, and replayed from then on.
CALLS_UNTIL_REPLAY = 3


def compile_network(model: QRoboticTransformer, *, graphs: bool) -> None:
    """Compile what `model` runs at a control step, in place, when it first runs.

    Args:
        model: In evaluation mode, and used with a batch of one from now on.
        graphs: Whether compiled code is replayed as CUDA graphs.
    """
    config = torch._dynamo.config
    limit = 'recompile_limit' if hasattr(config, 'recompile_limit') else 'cache_size_limit'
    setattr(config, limit, config.accumulated_cache_size_limit)  # as many shapes as there are
    model.encode = _compiled(model.encode, graphs)  # type: ignore[method-assign]
    for critic in model.critics:
        critic.begin = _compiled(critic.begin, graphs)  # type: ignore[method-assign]
        critic.read = _compiled(critic.read, graphs)  # type: ignore[method-assign]


def _compiled(function: Callable[..., Any], graphs: bool) -> Callable[..., Any]:
    compiled = torch.compile(
        function,
        fullgraph=True,
        dynamic=False,
        mode='reduce-overhead' if graphs else 'default',
    )

    def run(*arguments: Any) -> Any:
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            result = compiled(*arguments)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = next(filter(None, map(str.strip, str(error).splitlines())), repr(error))
            raise ConfigurationError(
                f'compile is True, expected False where torch.compile does not work: {reason}'
            ) from error
        return _cloned(result) if graphs else result  # the next replay writes over it

    return run


def _cloned(value: Any) -> Any:
    """Copy the tensors in what the encoder and the critic give."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple):
        return tuple(_cloned(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _cloned(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value
