"""The part that travels inside every archive: numpy, onnxruntime, orjson and no more."""

import sys
from importlib.util import find_spec

from marship.errors import LoadError
from marship.serving import earlier

# A host may take an ImportError for a handler that is not there, so what is missing is said here,
# as an error of another kind.
for _name in ("numpy", "onnxruntime", "orjson"):
    if find_spec(_name) is None:
        raise LoadError(
            f"{_name} must be installed in the Python that runs the worker, got none. "
            f"Install it there: pip install {_name}"
        )

sys.meta_path.append(earlier.Finder())
