"""Further graphs of an archive, which its handler runs by name: a decoder beside an encoder.

Each lies in a folder `graphs/NAME` with the files of a model: its own contract and golden cases.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnxruntime as ort

from marship.contract import CONTRACT_FILE, GRAPHS_FOLDER, Arrays, Contract
from marship.errors import LoadError, ModelError
from marship.serving.formats.ranges import outside
from marship.serving.model.sealed import Opener
from marship.serving.model.session import Session, SessionSettings


class _Checked(Session):
    """A session whose inputs come from a handler, and not from a request that was checked."""

    def run(self, inputs: Arrays, options: ort.RunOptions | None = None) -> Arrays:
        """As `Session.run`, but values that a narrow type cannot hold never wrap.

        Raises:
            ModelError: There are some, or ONNX Runtime failed.
        """
        for spec in self.contract.inputs:
            if (
                spec.narrow
                and spec.name in inputs
                and (problem := outside(inputs[spec.name], spec))
            ):
                raise ModelError(f"{problem} Clip it in the handler.")
        return super().run(inputs, options)


class Graphs(dict[str, Session]):
    """The sessions of an archive's further graphs, by name.

    Example:
        >>> Graphs()["decoder"]
        Traceback (most recent call last):
        marship.errors.LoadError: graph decoder must be in the archive, got none. Package it with \
--graph decoder=FILE.onnx.
    """

    def __missing__(self, name: str) -> Session:
        raise LoadError(
            f"graph {name} must be in the archive, got {', '.join(self) or 'none'}. Package it "
            f"with --graph {name}=FILE.onnx."
        )

    @classmethod
    def opened(cls, folder: Path, settings: SessionSettings, opener: Opener | None) -> "Graphs":
        """Open all graphs of an extracted archive.

        Args:
            folder: The extracted archive.
            settings: Those of the archive's first graph.
            opener: Decrypts the archive's files if it is sealed; then all graphs must be.

        Raises:
            LoadError: As `Session`.
            SealError: A sealed file cannot be decrypted.
        """
        graphs, root = cls(), folder / GRAPHS_FOLDER
        for place in sorted(root.iterdir()) if root.is_dir() else ():
            inner = opener.within(f"{GRAPHS_FOLDER}/{place.name}") if opener else None
            with _named(place.name):
                graphs[place.name] = _Checked(place, contract_in(place), settings, inner)
        return graphs

    def replay_golden(self) -> list[float]:
        """Replay the golden cases of all graphs, as `Session.replay_golden`."""
        seconds: list[float] = []
        for name, session in self.items():
            with _named(name):
                seconds += session.replay_golden(session.golden_source())
        return seconds


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Name the graph that does not load."""
    try:
        yield
    except LoadError as error:
        raise LoadError(f"graph {name}: {error}") from error


def contract_in(folder: Path) -> Contract:
    """The contract of a model's files.

    Raises:
        LoadError: There is none, or it is damaged.
    """
    try:
        return Contract.from_json((folder / CONTRACT_FILE).read_bytes())
    except (OSError, ModelError) as error:
        raise LoadError(f"{CONTRACT_FILE} must be in the archive, got: {error}") from error
