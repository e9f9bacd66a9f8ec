"""Writes the graphs of an archive: the model's own, and further ones that its handler runs.

The first lies at the archive's top, the others in `graphs/NAME`, each with its own contract, golden
cases and external data. What holds for the first, sealing and free names, holds for all.
"""

import io
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from marship.contract import (
    CONTRACT_FILE,
    GOLDEN_FILE,
    Contract,
    GoldenCase,
    digest_streams,
    write_golden,
)
from marship.packaging import sealing
from marship.serving.model.sealed import Sealer
from marship.trust import archive

MODEL_FILE = "model.onnx"


@dataclass(frozen=True, slots=True)
class Graph:
    """An ONNX file for an archive.

    Attributes:
        outside: The files of its external data, by name in the archive.
        names: Their names by the location that the file states; empty where these are equal.
    """

    model: Path
    contract: Contract
    golden: list[GoldenCase]
    outside: Mapping[str, Path] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def with_outside(self, others: Iterable[str] = (), own: Iterable[str] = ()) -> "Graph":
        """The graph with its external data under names that are free in its folder."""
        from marship.proof import graph

        files = graph.external_files(self.model)
        names = archive.free_names(files, others, own)
        outside = {names[location]: path for location, path in files.items()}
        contract = replace(self.contract, files=(MODEL_FILE, *outside))
        found = replace(self, outside=outside, contract=contract)
        if all(location == name for location, name in names.items()):
            return found
        found = replace(found, names=names)
        with ExitStack() as opened:
            streams = [opened.enter_context(path.open("rb")) for path in outside.values()]
            digest = digest_streams(io.BytesIO(found._relocated()), *streams)
        return replace(found, contract=replace(contract, digest=digest))

    def write(self, extra: Path, sealer: Sealer | None, place: str = "") -> None:
        """Write model, contract and golden cases into a folder of an archive.

        Sealed ones never lie there in the plain, golden cases neither: they are data that the model
        was made for, and its outputs.

        Args:
            extra: The archive's top.
            sealer: Encrypts model and golden cases; None leaves them plain.
            place: The folder there, with a slash at its end; empty for the top.
        """
        folder, contract = extra / place, self.contract
        folder.mkdir(parents=True, exist_ok=True)
        if sealer is None:
            self._write_plain(folder)
        else:
            plain = sealing.PlainModel(self.model, self.outside, self.names)
            contract = sealing.write_model(sealer, plain, contract, extra, place)
            golden = io.BytesIO()
            write_golden(golden, self.golden)
            sealer.write(extra, f"{place}{GOLDEN_FILE}", golden)
        (folder / CONTRACT_FILE).write_text(contract.to_json())

    def _write_plain(self, folder: Path) -> None:
        if self.names:
            (folder / MODEL_FILE).write_bytes(self._relocated())
        else:
            shutil.copyfile(self.model, folder / MODEL_FILE)
        for name, path in self.outside.items():
            shutil.copyfile(path, folder / name)
        write_golden(folder / GOLDEN_FILE, self.golden)

    def _relocated(self) -> bytes:
        """The model's file, with the new names of its external data."""
        import onnx

        from marship.proof import graph

        model = onnx.load(str(self.model), load_external_data=False)
        return graph.relocated(model, self.names).SerializeToString(deterministic=True)


class WholeFile(Graph):
    """A model in a file that is no ONNX, under its name in the contract: it stays as it is."""

    def with_outside(self, others: Iterable[str] = (), own: Iterable[str] = ()) -> "WholeFile":
        """The same: there is no external data."""
        del others, own
        return self

    def write(self, extra: Path, sealer: Sealer | None, place: str = "") -> None:
        """Write file, contract and golden cases, as `Graph.write`."""
        folder, (name,) = extra / place, self.contract.files
        folder.mkdir(parents=True, exist_ok=True)
        golden = io.BytesIO()
        write_golden(golden, self.golden)
        for file, stream in ((name, io.BytesIO(self.model.read_bytes())), (GOLDEN_FILE, golden)):
            if sealer is None:
                (folder / file).write_bytes(stream.getvalue())
            else:
                sealer.write(extra, f"{place}{file}", stream)
        (folder / CONTRACT_FILE).write_text(self.contract.to_json())
