"""TorchServe as a host: the only part of serving that knows it.

entry.py    what its model loader calls of a handler: `initialize` and `handle`
worker.py   its worker made to read and write through `wire`
wire.py     its worker protocol, read through a buffer and written in one go
outbox.py   which responses of a batch may leave early
report.py   a worker's metrics, as lines on its standard output
"""
