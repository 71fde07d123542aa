# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Work in processes: results in order, little of it ahead, and a process that dies is no end."""

import os
import signal
import time
from contextlib import closing
from functools import partial

import pytest

from qt_ros.bags.engines import Died, run_here, run_in_processes, run_on_ray


def work(number, deadly=(), folder=None):
    """Give the square; leave a trace; or die."""
    if folder is not None:
        (folder / f'{number}').write_text(str(os.getpid()))
    if number in deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.02 * (number % 3))
    return number * number


SQUARES = [n * n for n in range(12)]


def test_results_are_in_the_order_of_the_items():
    assert list(run_here(work, range(12))) == SQUARES
    assert list(run_in_processes(work, range(12), 3)) == SQUARES
    assert list(run_in_processes(work, [], 3)) == []


def test_process_that_is_killed_costs_one_item():
    results = list(run_in_processes(partial(work, deadly=(2, 3, 11)), range(12), 2))
    died = [number for number, result in enumerate(results) if isinstance(result, Died)]
    assert died == [2, 3, 11]
    assert 'was killed' in results[2].reason
    assert [r for r in results if not isinstance(r, Died)] == [
        square for number, square in enumerate(SQUARES) if number not in died
    ]


def test_only_a_little_is_begun_ahead(tmp_path):
    with closing(run_in_processes(partial(work, folder=tmp_path), range(40), 2)) as results:
        for number in range(5):
            assert next(results) == number * number
            assert len(list(tmp_path.iterdir())) <= number + 4
        processes = {int(file.read_text()) for file in tmp_path.iterdir()}
    for process in processes:  # nothing is left running
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_ray_on_two_nodes(tmp_path):
    ray = pytest.importorskip('ray', reason='ray is not installed')
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 1})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        assert sum(node['Alive'] for node in ray.nodes()) == 2
        assert list(run_on_ray(work, range(12), None, None)) == SQUARES
        results = list(run_on_ray(partial(work, deadly=(1,)), range(4), 1, None))
        assert isinstance(results[1], Died)
        assert [results[n] for n in (0, 2, 3)] == [0, 4, 9]
    finally:
        ray.shutdown()
        cluster.shutdown()
