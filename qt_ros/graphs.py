# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which processes make up each use; read by the launch files and by `qt-ros up` alike."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from qt_core.share import share_path

LOG_LEVELS = ('debug', 'info', 'warn', 'error', 'fatal')
FAST_DDS_VARIABLES = ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE')

Value = bool | int | float | str


class ArgumentError(ValueError):
    """An argument of a graph that cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """One node in a process of its own.

    Attributes:
        executable: Installed program, and module of `qt_ros.nodes`.
        name: Name of the node.
        namespace: Its namespace, '' for none.
        params_file: Parameter file, read first.
        parameters: Parameters that win over the file.
        remappings: Pairs of names, from and to.
        lifecycle: Whether it is a lifecycle node.
        announces: Whether it will log '<name> ready' by itself.
        log_level: One of `LOG_LEVELS`.
        patience: Seconds it may take to end by itself when it is asked to.
    """

    executable: str
    name: str
    namespace: str
    params_file: Path
    parameters: Mapping[str, Value]
    remappings: tuple[tuple[str, str], ...] = ()
    lifecycle: bool = False
    announces: bool = True
    log_level: str = 'info'
    patience: float = 10.0


def _argument(default: Any, description: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={'description': description, 'choices': choices})


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What a person may set when starting a graph: launch arguments, and flags of `qt-ros up`.

    None leaves a parameter to the graph and then to the parameter file.
    """

    namespace: str = _argument('', 'Namespace of every node, for several robots side by side.')
    use_sim_time: bool | None = _argument(None, 'Whether the nodes follow /clock.')
    params_file: str = _argument('', 'Parameter file instead of the shipped config/nodes.yaml.')
    autostart: bool = _argument(True, 'Whether lifecycle nodes configure and activate themselves.')
    log_level: str = _argument('info', 'Least severe messages to log.', LOG_LEVELS)
    contract: str | None = _argument(None, "The robot's contract file.")
    checkpoint: str | None = _argument(None, 'Checkpoint folder of the policy.')
    device: str | None = _argument(None, "torch device of the policy, such as 'cpu' or 'cuda'.")
    output: str | None = _argument(None, 'Folder that the recorder writes bags into.')
    start_gate: str | None = _argument(
        None, 'What an episode needs of each stream to begin.', ('rate', 'alive')
    )
    compression: str | None = _argument(None, 'Compression of the bags.', ('zstd', 'none'))
    lock_step: bool | None = _argument(None, 'Whether the simulator waits for each command.')
    seed: int | None = _argument(None, 'Episode that the simulator lays out first.')
    sentences: str | None = _argument(
        None, 'Wordings of the task that the simulator draws from.', ('train', 'unseen')
    )
    noise: float | None = _argument(None, 'How careless the demonstrator is, 0 to 1.')
    guard: bool = _argument(True, 'Whether commands pass a guard, a process of its own.')
    input: str | None = _argument(
        None, 'What a person drives with.', ('keyboard', 'joy', 'leader')
    )
    urdf: str | None = _argument(None, "The arm's URDF, for Cartesian jog.")
    tip: str | None = _argument(None, 'Link that Cartesian jog moves.')


_NOTHING_SAID = Arguments()
STANDARD = (
    'namespace',
    'use_sim_time',
    'params_file',
    'autostart',
    'log_level',
    'contract',
    'checkpoint',
)


@dataclass(frozen=True, kw_only=True)
class Option:
    """One argument of a graph, as text outside and typed inside."""

    name: str
    kind: type
    default: Value | None
    description: str
    choices: tuple[str, ...]

    @property
    def default_text(self) -> str:
        """The default as `parse` reads it."""
        if self.default is None:
            return ''
        return str(self.default).lower() if self.kind is bool else str(self.default)

    def parse(self, text: str) -> Value | None:
        """Read a value.

        Raises:
            ArgumentError: It is not one of the argument's kind.
        """
        if text == '' and (self.default is None or self.kind is str):
            return self.default if self.default is None else ''
        allowed = ' or '.join(self.choices) or f'a value of type {self.kind.__name__}'
        try:
            if self.kind is bool:
                allowed = 'true or false'
                return {'true': True, 'false': False}[text.lower()]
            if self.choices and text not in self.choices:
                raise ValueError
            value: Value = self.kind(text)
        except (ValueError, KeyError):
            raise ArgumentError(f'{self.name} is {text!r}, expected {allowed}') from None
        return value


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The processes of one use.

    Attributes:
        summary: What it is for, one line.
        build: Arguments -> processes.
        arguments: Names of the arguments that it takes.
        defaults: Values for those that are None.
    """

    summary: str
    build: Callable[[Arguments], tuple[Process, ...]]
    arguments: tuple[str, ...]
    defaults: Mapping[str, Any]

    @property
    def options(self) -> tuple[Option, ...]:
        """The arguments with their types and defaults."""
        fields = {f.name: f for f in dataclasses.fields(Arguments)}
        return tuple(
            Option(
                name=name,
                kind=_KINDS[str(fields[name].type).removesuffix(' | None')],
                default=self.defaults.get(name, getattr(_NOTHING_SAID, name)),
                description=fields[name].metadata['description'],
                choices=fields[name].metadata['choices'],
            )
            for name in self.arguments
        )

    def processes(self, **arguments: Any) -> tuple[Process, ...]:
        """List the processes; `arguments` are named as in `Arguments`.

        Raises:
            ArgumentError: The graph lacks an argument, does not take one, or a file is missing.
        """
        for name in arguments:
            if name not in self.arguments:
                allowed = ', '.join(self.arguments)
                raise ArgumentError(f'{name} is not an argument; allowed: {allowed}')
        given = {name: value for name, value in arguments.items() if value is not None}
        return self.build(Arguments(**{**self.defaults, **given}))

    def processes_from_text(self, texts: Mapping[str, str]) -> tuple[Process, ...]:
        """List the processes from arguments as text; others than the graph's are ignored.

        Raises:
            ArgumentError: As `processes`, or a value is not of its argument's kind.
        """
        options = [option for option in self.options if option.name in texts]
        return self.processes(**{o.name: o.parse(texts[o.name]) for o in options})


_KINDS: dict[str, type] = {'bool': bool, 'int': int, 'float': float, 'str': str}


def environment(present: Mapping[str, str]) -> dict[str, str]:
    """Variables that every process needs and `present` lacks: the profile for camera images.

    With Fast DDS's own defaults most best-effort VGA images are lost on one machine.
    """
    profile = str(share_path('config/fastdds.xml'))
    return {name: profile for name in FAST_DDS_VARIABLES if name not in present}


def _policy(arguments: Arguments) -> tuple[Process, ...]:
    # A rendered picture has no noise, and is the same again while nothing moves.
    still = arguments.use_sim_time and not (
        arguments.params_file and _sets(arguments, 'frozen_after')
    )
    frozen_after = 0.0 if still else None
    if not arguments.guard:
        return (_policy_process(arguments, frozen_after=frozen_after),)
    return (
        _guard_process(arguments, source='policy', checkpoint=_checkpoint(arguments)),
        _policy_process(arguments, frozen_after=frozen_after, guarded=True),
    )


def _teleop(arguments: Arguments) -> tuple[Process, ...]:
    if not arguments.contract and not _sets(arguments, 'contract'):
        raise ArgumentError("contract is not set; give the robot's contract file")
    processes = (_guard_process(arguments, source='teleop'), _recorder_process(arguments))
    if arguments.input == 'keyboard':
        return processes  # needs a terminal of its own: `qt-ros teleop`
    words = {'input': arguments.input, 'urdf': arguments.urdf, 'tip': arguments.tip}
    return (*processes, _process(arguments, 'teleop', **words))


def _record(arguments: Arguments) -> tuple[Process, ...]:
    if not arguments.contract and not _sets(arguments, 'contract'):
        raise ArgumentError("contract is not set; give the robot's contract file")
    return (_recorder_process(arguments),)


def _sim(arguments: Arguments) -> tuple[Process, ...]:
    return (_simulator_process(_tabletop(arguments)),)


def _demo(arguments: Arguments) -> tuple[Process, ...]:
    arguments = _tabletop(arguments)
    return (
        _simulator_process(arguments),
        _policy_process(arguments, trigger='observation', stamp_commands=True, frozen_after=0.0),
        _recorder_process(arguments),
    )


def _collect(arguments: Arguments) -> tuple[Process, ...]:
    arguments = _tabletop(arguments)
    return (
        _simulator_process(arguments),
        _process(arguments, 'demonstrator', noise=arguments.noise, stamp_commands=True),
        _recorder_process(arguments),
    )


def _tabletop(arguments: Arguments) -> Arguments:
    if arguments.contract or _sets(arguments, 'contract'):
        return arguments
    contract = str(share_path('config/contracts/tabletop.yaml'))
    return dataclasses.replace(arguments, contract=contract)


def _simulator_process(arguments: Arguments) -> Process:
    # It is the source of /clock, so it cannot follow it.
    return _process(
        dataclasses.replace(arguments, use_sim_time=False),
        'simulator',
        lock_step=arguments.lock_step,
        seed=arguments.seed,
        sentences=arguments.sentences,
    )


def _checkpoint(arguments: Arguments) -> str | None:
    if arguments.checkpoint or _sets(arguments, 'checkpoint'):
        return arguments.checkpoint
    return str(share_path('config/policies/reach'))


def _guard_process(arguments: Arguments, **parameters: Value | None) -> Process:
    return _process(arguments, 'guard', **parameters)


def _policy_process(arguments: Arguments, **parameters: Value | None) -> Process:
    process = _process(
        arguments,
        'policy',
        checkpoint=_checkpoint(arguments),
        device=arguments.device,
        autostart=arguments.autostart,
        **parameters,
    )
    return dataclasses.replace(
        process, lifecycle=True, announces=process.announces and arguments.autostart
    )


def _recorder_process(arguments: Arguments) -> Process:
    process = _process(
        arguments,
        'recorder',
        output=arguments.output,
        start_gate=arguments.start_gate,
        compression=arguments.compression,
    )
    # What waits for a slow disk is written first.
    return dataclasses.replace(process, patience=120.0)


def _params_file(arguments: Arguments) -> Path:
    path = Path(arguments.params_file or share_path('config/nodes.yaml')).absolute()
    if not path.is_file():
        raise ArgumentError(f'params_file is {arguments.params_file!r}, which is not a file')
    return path


def _sets(arguments: Arguments, parameter: str) -> bool:
    """Whether the parameter file sets a parameter of that name, for any node."""

    def search(content: Any) -> bool:
        if not isinstance(content, dict):
            return False
        parameters = content.get('ros__parameters')
        found = isinstance(parameters, dict) and parameter in parameters
        return found or any(search(below) for below in content.values())

    try:
        return search(yaml.safe_load(_params_file(arguments).read_text(encoding='utf-8')))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        line = ' '.join(str(error).split())
        raise ArgumentError(f'params_file cannot be read: {line}') from error


def _process(arguments: Arguments, name: str, **parameters: Value | None) -> Process:
    if not re.fullmatch(r'/?([A-Za-z_]\w*(/[A-Za-z_]\w*)*/?)?', arguments.namespace, re.ASCII):
        raise ArgumentError(
            f'namespace is {arguments.namespace!r}, expected letters, digits and _ between /'
        )
    given = {'contract': arguments.contract, **parameters}
    return Process(
        executable=f'{name}_node',
        name=name,
        namespace=arguments.namespace,
        params_file=_params_file(arguments),
        parameters={
            'use_sim_time': bool(arguments.use_sim_time),
            **{key: value for key, value in given.items() if value is not None},
        },
        announces=arguments.log_level in ('debug', 'info'),
        log_level=arguments.log_level,
    )


# Between episodes the simulator stands still, which leaves no rate to wait for.
STANDING_STILL = {'start_gate': 'alive'}

GRAPHS: Mapping[str, Graph] = {
    'policy': Graph(
        summary='run a policy on a robot',
        build=_policy,
        arguments=(*STANDARD, 'device', 'guard'),
        defaults={'use_sim_time': False},
    ),
    'teleop': Graph(
        summary='drive a robot by hand and record it',
        build=_teleop,
        arguments=(*STANDARD, 'input', 'urdf', 'tip', 'output', 'start_gate', 'compression'),
        defaults={'use_sim_time': False, 'input': 'keyboard'},
    ),
    'record': Graph(
        summary='record episodes of a robot to bags',
        build=_record,
        arguments=(*STANDARD, 'output', 'start_gate', 'compression'),
        defaults={'use_sim_time': False},
    ),
    'sim': Graph(
        summary='simulate the tabletop arm',
        build=_sim,
        arguments=(*STANDARD, 'lock_step', 'seed', 'sentences'),
        defaults={'use_sim_time': True},
    ),
    'demo': Graph(
        summary='run the shipped policy in the simulator and record it',
        build=_demo,
        arguments=(*STANDARD, 'device', 'output', 'lock_step', 'seed', 'sentences'),
        defaults={'use_sim_time': True, **STANDING_STILL},
    ),
    'collect': Graph(
        summary='record the scripted demonstrator in the simulator',
        build=_collect,
        arguments=(*STANDARD, 'output', 'lock_step', 'seed', 'sentences', 'noise'),
        defaults={'use_sim_time': True, 'lock_step': True, **STANDING_STILL},
    ),
}
