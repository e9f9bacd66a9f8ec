"""The part of marship inside every archive; depends on numpy, onnxruntime and orjson only."""

import sys
from importlib.util import find_spec

from marship.errors import LoadError
from marship.serving import earlier

# A host may report an ImportError as a missing handler, so a missing package is raised here as an
# error of another type.
for _name in ("numpy", "onnxruntime", "orjson"):
    if find_spec(_name) is None:
        raise LoadError(
            f"{_name} must be installed in the Python that runs the worker, got none. "
            f"Install it there: pip install {_name}"
        )

sys.meta_path.append(earlier.Finder())
