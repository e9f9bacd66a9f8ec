"""The script that starts a worker: TorchServe's own, but PyTorch is imported only on use.

TorchServe's message handler imports PyTorch to recognize tensors in a handler's output, which
costs each worker about two seconds and 200 MB, although an ONNX handler never returns a tensor. A
server that marship starts runs this file in place of `ts/model_service_worker.py`, and this file
then runs that one.

Nothing of marship is imported here: a worker uses the copy in its archive. Nor is pathlib, which
takes 10 ms.
"""

import os
import runpy
import sys
from importlib import import_module
from types import ModuleType


class _NoTensor:
    """Stands for torch.Tensor before PyTorch is imported: nothing is an instance of it."""


class _Torch(ModuleType):
    """`torch` as TorchServe's message handler sees it.

    Only that module refers to it: handlers and libraries import the real one, and find "torch"
    in sys.modules only once it is imported.
    """

    def __getattr__(self, name: str) -> object:
        if name == "Tensor" and "torch" not in sys.modules:
            return _NoTensor
        if sys.modules.get("torch") is self:  # a TorchServe version that uses it during import
            del sys.modules["torch"]
        return getattr(import_module("torch"), name)


def _find_packages() -> None:
    """Have TorchServe found where only PYTHONPATH of `marship serve` led to it (pip --target).

    Workers do not get that PYTHONPATH, so that an archive's own copy of marship comes first. The
    folder goes last; whatever this worker starts finds it too.
    """
    links = os.path.dirname(os.path.abspath(__file__))
    torchserve = os.path.dirname(os.path.realpath(os.path.join(links, "__init__.py")))
    packages = os.path.dirname(torchserve)
    if packages not in map(os.path.realpath, sys.path):
        sys.path.append(packages)
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{before}{os.pathsep}{packages}" if before else packages


def _import_message_handler() -> None:
    sys.modules["torch"] = stand_in = _Torch("torch")
    import_module("ts.protocol.otf_message_handler")
    if sys.modules.get("torch") is stand_in:
        del sys.modules["torch"]


if __name__ == "__main__":
    # Python adds this file's folder to the path; its modules must not hide a handler's.
    folder = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [entry for entry in sys.path if entry != folder]
    _find_packages()
    _import_message_handler()
    runpy.run_module("ts.model_service_worker", run_name="__main__", alter_sys=True)
