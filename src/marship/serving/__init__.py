"""The part that travels inside every archive: numpy, onnxruntime, orjson and no more."""

from importlib.util import find_spec

from marship.errors import LoadError

# TorchServe reports an ImportError in a handler as a missing `ts.torch_handler.<name>`,
# so what is missing is said here, as an error of another kind.
for _name in ("numpy", "onnxruntime", "orjson"):
    if find_spec(_name) is None:
        raise LoadError(
            f"{_name} must be installed in the Python that runs TorchServe, got none. "
            f"Install it there: pip install {_name}"
        )
