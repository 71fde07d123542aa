# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What `learning.py` found: rows, requirements, table, page and picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learning_data import TASKS
from learning_runs import LEARNERS, REFERENCES, Result
from rich.table import Table

from qt_core.evaluation import wilson_interval

TITLES = {**{name: learner.title for name, learner in LEARNERS.items()}, **REFERENCES}


@dataclass(frozen=True, kw_only=True)
class Row:
    """All seeds of one learner on one task.

    Attributes:
        rate: Share of all episodes that succeeded.
        low: Of its 95% interval, with the episodes of all seeds taken as independent.
        high: Of its 95% interval.
        rates: Share of each seed.
        length: Mean steps of an episode.
        errors: Why seeds have no result.
    """

    task: str
    learner: str
    successes: int
    episodes: int
    rate: float
    low: float
    high: float
    rates: tuple[float, ...]
    length: float
    parameters: int
    steps: int
    windows: int
    actions: int
    minutes: float
    wall_minutes: float
    errors: tuple[str, ...]


def rows(results: Sequence[Result]) -> list[Row]:
    """Put the seeds together; counts of training are those of one seed."""
    made = []
    for task in TASKS:
        for learner in TITLES:
            all_seeds = [r for r in results if (r.task, r.learner) == (task, learner)]
            if not all_seeds:
                continue
            done = [result for result in all_seeds if not result.error]
            successes = sum(result.successes for result in done)
            episodes = sum(result.episodes for result in done)
            low, high = wilson_interval(successes, episodes) if episodes else (0.0, 1.0)
            count = max(1, len(done))
            made.append(
                Row(
                    task=task,
                    learner=learner,
                    successes=successes,
                    episodes=episodes,
                    rate=successes / max(1, episodes),
                    low=low,
                    high=high,
                    rates=tuple(result.successes / result.episodes for result in done),
                    length=sum(result.length for result in done) / count,
                    parameters=max((result.parameters for result in done), default=0),
                    steps=sum(result.steps for result in done) // count,
                    windows=sum(result.windows for result in done) // count,
                    actions=sum(result.actions for result in done) // count,
                    minutes=sum(result.minutes for result in done) / count,
                    wall_minutes=sum(result.wall_minutes for result in done) / count,
                    errors=tuple(f'seed {r.seed}: {r.error}' for r in all_seeds if r.error),
                )
            )
    return made


def misses(found: Sequence[Row]) -> list[str]:
    """Name the rows that miss a requirement; rows that were not run miss none."""
    by_name = {(row.task, row.learner): row for row in found}
    missed = []
    for task, about in TASKS.items():
        pairs = [(learner, 'random') for learner in about.solvers]
        for learner, other in [*pairs, *about.ahead]:
            row, below = by_name.get((task, learner)), by_name.get((task, other))
            if row is None or below is None or not row.episodes or not below.episodes:
                continue
            if row.low <= below.high:
                missed.append(
                    f'{task}, {learner}: {row.rate:.0%} ({row.low:.0%} - {row.high:.0%}), '
                    f'required above {other} ({below.low:.0%} - {below.high:.0%})'
                )
    return missed


def errors(found: Sequence[Row]) -> list[str]:
    """Name the rows that have no result, and why."""
    return [f'{row.task}, {row.learner}, {error}' for row in found for error in row.errors]


def table(found: Sequence[Row]) -> Table:
    """Lay the rows out."""
    shown = Table()
    for column in ('task', 'learner'):
        shown.add_column(column, no_wrap=True)
    for column in ('success', '95% interval', 'seeds', 'params', 'steps', 'actions', 'min'):
        shown.add_column(column, justify='right', no_wrap=True)
    for task in TASKS:
        group = [row for row in found if row.task == task]
        for index, row in enumerate(group):
            first, last = index == 0, index == len(group) - 1
            shown.add_row(task if first else '', *cells(row), end_section=last)
    return shown


def cells(row: Row) -> list[str]:
    """Give a row's cells, from the learner's title on."""
    if not row.episodes:
        return [TITLES[row.learner], 'ERROR' if row.errors else '', *[''] * 6]
    trained = row.steps > 0
    return [
        TITLES[row.learner],
        f'{row.successes}/{row.episodes} = {row.rate:.2f}',
        f'{row.low:.2f} - {row.high:.2f}',
        f'{min(row.rates):.2f} … {max(row.rates):.2f}' if len(row.rates) > 1 else '',
        f'{row.parameters / 1e6:.2f} M' if trained else '',
        f'{row.steps:,}' if trained else '',
        thousands(row.actions) if trained else '',
        f'{row.minutes:.1f}' if trained else '',
    ]


def thousands(count: int) -> str:
    """Write a count in thousands, where it has any."""
    return f'{count / 1000:,.0f} k' if count >= 10_000 else f'{count:,}'


def page(content: Mapping[str, Any], found: Sequence[Row], picture: str) -> str:
    """Write docs/results.md.

    Args:
        content: What learning.json holds.
        found: Its rows.
        picture: Path of the plot, relative to the page.
    """
    machine, seeds = content['machine'], content['seeds']
    hours = sum(result['wall_minutes'] for result in content['results']) / 60
    lines = [
        '# Results: six learners, the same data and budget',
        '',
        '<!-- Written by `python bench/learning.py`; do not edit. -->',
        '',
        f'`{content["part"] or "python bench/learning.py"}` trained each learner with the '
        f'{"seeds" if len(seeds) > 1 else "seed"} {", ".join(map(str, seeds))} on the same '
        'replay folders, each for the same core-minutes: the time that its gradient steps take '
        'with one thread and nothing else on the machine, probed before and turned into a number '
        'of steps. A seed decides the data, the first weights and the order of the samples. '
        f'{machine["processes"]} trainings ran side by side on {machine["cores"]} cores '
        f'({machine["processor"]}), Python {machine["python"]}, torch {machine["torch"]}, no '
        f'GPU; together they took {hours:.1f} hours.',
        '',
        f'![success rates]({picture})',
        '',
    ]
    for task, data in content['data'].items():
        group = [row for row in found if row.task == task]
        budget = content['budgets'][task]
        title = TASKS[task].title
        lines += [
            f'## {task}',
            '',
            f'{title[0].upper()}{title[1:]}. Data of each seed: {data[0]["episodes"]:,} episodes, '
            f'about {thousands(data[0]["steps"])} actions, {data[0]["successes"]:.0%} successes. '
            f'{budget["minutes"]:g} core-minutes of training. {TASKS[task].tried}: '
            f'{budget["episodes"]} episodes a seed.',
            '',
            '| learner | success | 95% interval | over seeds | parameters | steps | actions seen '
            '| core-minutes |',
            '|---|--:|--:|--:|--:|--:|--:|--:|',
            *(f'| {" | ".join(cells(row))} |' for row in group),
            '',
        ]
    lines += [
        '## What this does not say',
        '',
        '- The interval is Wilson’s over the episodes of all seeds, taken as independent. '
        'Episodes of one training share its luck: look at the spread over the seeds beside it.',
        '- Each learner has the settings of its file in `config/train`, for every task; where '
        'there are no pictures the Q-Transformer and its other head have the discount and the '
        'conservative weight of `bench/learning_tasks.py`, which were chosen for them.',
        '- Nobody searched for settings as long for each learner. For `reach` those of Decision '
        'Transformer and cloning are the best of four that were tried for 7 core-minutes on 50 of '
        'the same episodes, those of the Q-Transformer are made for 33 core-minutes, and those of '
        'Gato are a guess. A longer budget may change the order.',
        '- Equal time is not equal steps: a step of a learner that reads whole windows takes '
        'longer and holds more actions. `actions seen` counts them, repeats included.',
        '- The data are a script’s, in simulation. Nothing here says how people’s demonstrations '
        'or a real arm would compare the learners.',
        '- Cloning on successes alone keeps every episode that earned a reward, not the best '
        'tenth: rewards here are success and nothing else.',
        '',
        *verdict(content),
        '',
    ]
    return '\n'.join(lines)


def verdict(content: Mapping[str, Any]) -> list[str]:
    """Say what was part of the run, and what it missed."""
    lines = []
    if content['part']:
        lines += [
            'This was a part of the comparison. The whole of it, all tasks, three seeds and more '
            'time for each training, is `python bench/learning.py`: about eleven hours on such a '
            'machine, after which this page is written anew.',
            '',
        ]
    missed = [*content['missed'], *content['errors']]
    if missed:
        return [*lines, 'Missed:', '', *(f'- {row}' for row in missed)]
    nothing = 'Nothing was required of it.'
    return [*lines, 'Requirements of the run: all met.' if content['required'] else nothing]


def plot(found: Sequence[Row], path: Path) -> None:
    """Draw the success rates with their intervals, one panel per task."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    tasks = [task for task in TASKS if any(row.task == task for row in found)]
    figure, panels = pyplot.subplots(
        1, len(tasks), figsize=(2.4 + 2.6 * len(tasks), 3.2), sharey=True, squeeze=False
    )
    names = [name for name in TITLES if any(row.learner == name for row in found)]
    for panel, task in zip(panels[0], tasks, strict=True):
        for row in found:
            if row.task != task or not row.episodes:
                continue
            place = names.index(row.learner)
            colour = '0.7' if row.learner in REFERENCES else 'tab:blue'
            panel.barh(place, row.rate, color=colour)
            panel.plot([row.low, row.high], [place, place], color='0.2', linewidth=1.5)
            panel.plot(row.rates, [place] * len(row.rates), 'k.', markersize=4)
        panel.set_title(task)
        panel.set_xlim(0, 1)
        panel.set_xlabel('success')
    panels[0][0].set_yticks(range(len(names)), [TITLES[name] for name in names])
    panels[0][0].invert_yaxis()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={'Software': None})
    pyplot.close(figure)
