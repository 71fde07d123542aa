# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The frame of the `qt-ros` command: its subcommands, and what bad input looks like."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from qt_ros import __version__
from qt_ros.cli import (
    call,
    collect,
    convert,
    demo,
    doctor,
    evaluate,
    export,
    import_,
    inspect,
    record,
    replay,
    say,
    teleop,
    train,
    up,
    verify,
)

SUBCOMMANDS = (
    up,
    say,
    call,
    record,
    teleop,
    doctor,
    collect,
    convert,
    inspect,
    verify,
    replay,
    export,
    import_,
    train,
    evaluate,
    demo,
)
EXTRAS = {  # module -> the extra of the package that brings it
    'accelerate': 'train',
    'av': 'lerobot',
    'gymnasium': 'gymnasium',
    'matplotlib': 'train',
    'mink': 'teleop',
    'mujoco': 'sim',
    'pyarrow': 'lerobot',
    'ray': 'ray',
    'rclpy': 'ros',
    'tensorboard': 'train',
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `qt-ros`.

    Args:
        arguments: The words after `qt-ros`; those of the process when None.

    Returns:
        The exit status: 0, 1 on bad input (one line on stderr), 2 on bad usage, 130 on Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        prog='qt-ros',
        description='Q-Transformer for ROS 2: run, record, train and measure a policy that turns '
        'a camera and a sentence into joint commands.',
    )
    parser.add_argument('--version', action='version', version=f'qt-ros {__version__}')
    subparsers = parser.add_subparsers(required=True, metavar='COMMAND')
    for subcommand in SUBCOMMANDS:
        subcommand.add_parser(subparsers)
    parsed = parser.parse_args(arguments)
    # A shell script's background job starts with SIGINT ignored; SIGTERM and a closed terminal
    # would leave the nodes that a subcommand has started running.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)
    try:
        status: int = parsed.run(parsed)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        line = _explanation(error)
        if line is None:
            raise
        print(f'qt-ros: {line}', file=sys.stderr)
        return 1
    return status


def _exit(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _explanation(error: Exception) -> str | None:
    """One line for an error that is the user's to mend; None for one that is ours."""
    if isinstance(error, ModuleNotFoundError):
        extra = EXTRAS.get((error.name or '').partition('.')[0])
        return (
            extra and f"needs {error.name}, which is not installed: pip install 'qt_ros[{extra}]'"
        )
    # Every error class of the project is raised for what its user can mend. Looking at where the
    # class is defined, instead of importing each, keeps torch out of `qt-ros --help`.
    module = type(error).__module__
    ours = module.partition('.')[0] in ('qt_core', 'qt_ros')
    # A name that ROS does not allow; rclpy is not imported for `qt-ros --help`.
    ours = ours or (module == 'rclpy.exceptions' and type(error).__name__.startswith('Invalid'))
    return ' '.join(str(error).split()) if ours or isinstance(error, OSError) else None
