"""The engine in use: the only module outside `engines.torchserve` that says which one."""

from marship.engines.engine import Engine
from marship.engines.torchserve.engine import TorchServe

DefaultEngine: type[Engine] = TorchServe
