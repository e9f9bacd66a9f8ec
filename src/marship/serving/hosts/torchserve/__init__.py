"""TorchServe as a host: the only part of serving that depends on it.

entry.py    the entry points that its model loader calls: `initialize` and `handle`
worker.py   patches its worker to read and write through `wire`
wire.py     its worker protocol, with buffered reading and writing
outbox.py   which responses of a batch may be sent early
report.py   a worker's metrics, as lines on its standard output
"""
