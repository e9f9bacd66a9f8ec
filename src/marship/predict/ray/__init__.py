"""Many files, predicted by an archive's own handler on all nodes of a cluster of Ray.

The nodes read the files, and run the archive as a replica does; Ray Data hands them their shares,
and gives those of a node that died to others. Rows come back to this process, which writes them
into the same output file as predictions by a server: it goes on after an interruption likewise.

job.py     an archive and a cluster: what is checked before the first file
shares.py  files and rows on their way between the nodes
asker.py   what runs on a node
"""

import logging
import time
import traceback
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

from marship import console
from marship.engines.ray import problems
from marship.errors import MarshipError
from marship.predict import Run, Watcher, remaining, with_transcripts
from marship.predict.ledger import Ledger
from marship.predict.outcome import Outcome
from marship.predict.ray import shares
from marship.predict.ray.job import Job, Prepared
from marship.predict.rows import Row
from marship.predict.sources import Source


def predict_archive(run: Run, job: Job, watcher: Watcher) -> Outcome:
    """Predict every file that has no response yet, on a cluster.

    Args:
        run: The files and options; its model and version are the archive's.
        job: The archive and the cluster.
        watcher: Receives progress.

    Raises:
        UsageError: The output file belongs to another run, or a setting is invalid.
        NotRunningError: There is no cluster.
        StorageError: The output cannot be written, or a node cannot read the files or the archive.
        LoadError: A node has not what the archive needs, or the archive fails to load.
        MarshipError: As `registration.examined`.
    """
    found = job.examined()
    run = replace(run, model=found.name, version=found.version)
    with Ledger(run.out, f"{found.name} {found.version}", again=run.again) as ledger:
        waiting = remaining(run, ledger)
        before = len(run.sources) - len(waiting)
        prepared = job.prepare(found, run, waiting) if waiting else None
        watcher.on_start(len(waiting), before, is_torn=ledger.is_torn)
        began = time.monotonic()
        if prepared is not None:
            _predict(prepared, run, waiting, ledger, watcher)
        done = Outcome(before, time.monotonic() - began)
        ledger.finish()
        done.take(ledger.rows(run.sources))
        return done


def _predict(
    prepared: Prepared, run: Run, waiting: list[Source], ledger: Ledger, watcher: Watcher
) -> None:
    sources = {source.name: source for source in waiting}
    with closing(_rows(prepared, waiting)) as rows:  # an interrupted run ends on the nodes, too
        for row in rows:
            kept = with_transcripts(run, sources[row.file], row)
            ledger.add(kept)
            watcher.on_row(kept)


def _rows(prepared: Prepared, sources: list[Source]) -> Generator[Row, None, None]:
    """The rows of files, share by share as nodes finish them.

    Raises:
        MarshipError: A node's own error that is not one of a file.
    """
    with console.muted(logging.CRITICAL):  # Ray logs the traceback of each error
        try:
            for table in _tables(prepared, sources):
                yield from shares.rows(table)
        except MarshipError:
            raise
        except Exception as error:  # Ray's own errors are of many kinds
            told = "".join(traceback.format_exception(error))
            raise problems.found(told, prepared.label) from error


def _tables(prepared: Prepared, sources: list[Source]) -> Iterator[Any]:
    """What the nodes return, a table for each share."""
    import ray

    from marship.predict.ray.asker import ShareAsker

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    count = prepared.shares_of(len(sources))
    dataset = ray.data.from_items(
        [shares.packed(source) for source in sources], override_num_blocks=count
    ).map_batches(
        ShareAsker,
        fn_constructor_args=(prepared.task,),
        batch_size=None,  # a whole share
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            initial_size=min(count, prepared.workers),
            max_size=min(count, prepared.workers),
            max_tasks_in_flight_per_actor=3,
            max_concurrent_calls_per_actor=2,  # a share's last files leave no worker idle
            enable_true_multi_threading=True,
        ),
        num_cpus=prepared.plan.cpus,
        num_gpus=prepared.plan.gpus,
    )
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
