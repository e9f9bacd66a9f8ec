"""Engines run archives: each starts and stops servers, and manages the models on them.

engine.py      the interface of every engine, and its types
default.py     the engine in use, for all that need no particular one
home.py        the private folder of one server, and whether the server runs
processes.py   a server's processes
addresses.py   the environment variables with addresses and tokens
metrics.py     what a server's metrics say of its models
torchserve/    TorchServe 0.12.0
gateway/       gRPC in front of the direct address
"""
