"""A model's interface (inputs, outputs, bounds) and its golden cases, shared by all steps.

A contract is read from the ONNX graph, completed by what was proven about it (which axis is
the batch, which padding value does not change the outputs), and is stored in the archive as
`contract.json`. Golden cases are beside it, `golden.npz`: inputs and the reference's outputs.

interface.py   inputs, outputs and bounds
golden.py      golden cases
digests.py     digests of a model's files
strings.py     arrays of strings, stored without pickle
tolerance.py   how far two results may be apart
"""

from marship.contract.digests import (
    CHUNK_BYTES,
    digest_files,
    digest_streams,
    digest_variant,
)
from marship.contract.golden import (
    GOLDEN_FILE,
    MOST_GOLDEN_BYTES,
    NPZ_FAULTS,
    Array,
    Arrays,
    GoldenCase,
    read_golden,
    write_golden,
)
from marship.contract.interface import (
    CONTRACT_FILE,
    FORMAT,
    WIDENED,
    ColumnRange,
    Contract,
    Library,
    TensorSpec,
    Widened,
)

GOLDEN_REQUESTS_FILE = "golden_requests.json"
GRAPHS_FOLDER, LIBRARIES_FOLDER = "graphs", "custom_ops"
"""Folders of an archive: one for each further graph, with the files of a model; and libraries."""

__all__ = [
    "CHUNK_BYTES",
    "CONTRACT_FILE",
    "FORMAT",
    "GOLDEN_FILE",
    "GOLDEN_REQUESTS_FILE",
    "GRAPHS_FOLDER",
    "LIBRARIES_FOLDER",
    "MOST_GOLDEN_BYTES",
    "NPZ_FAULTS",
    "WIDENED",
    "Array",
    "Arrays",
    "ColumnRange",
    "Contract",
    "GoldenCase",
    "Library",
    "TensorSpec",
    "Widened",
    "digest_files",
    "digest_streams",
    "digest_variant",
    "read_golden",
    "write_golden",
]
