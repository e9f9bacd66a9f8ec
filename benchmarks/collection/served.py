"""An archive as a worker has it, asked in all formats, and its answers as arrays."""

import json
import logging
import struct
import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ml_dtypes import bfloat16

from marship.contract import Array, Arrays, Contract, TensorSpec
from marship.serving.formats import extent, kserve
from marship.serving.handler import OnnxHandler
from marship.serving.message import JSON_TYPE, Reply, Request
from marship.serving.service import Placement

_LENGTH = struct.Struct("<I")
_TYPES: Mapping[str, tuple[type, ...]] = {
    "f": (float, int, type(None)),
    "i": (int,),
    "u": (int,),
    "b": (bool,),
    "O": (str,),
}


class AnsweredError(Exception):
    """A response that is not 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Faults(logging.Handler):
    """Keeps where the last logged exception was raised: responses do not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.last: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the exception of a log record."""
        if record.exc_info and record.exc_info[1] is not None:
            self.last = record.exc_info[1]


class Served:
    """An archive, extracted and loaded.

    Raises:
        MarshipError: The worker refuses it.
    """

    def __init__(self, archive: Path, folder: Path) -> None:
        with zipfile.ZipFile(archive) as zipped:
            zipped.extractall(folder)
        config = yaml.safe_load((folder / "model-config.yaml").read_text())
        self.contract = Contract.from_json((folder / "contract.json").read_bytes())
        self._faults = _Faults()
        logging.getLogger().addHandler(self._faults)
        self._service = OnnxHandler()
        self._service.load(_placement(folder, config))

    def named(self, inputs: Arrays) -> Arrays:
        """Ask in JSON by name."""
        (outputs,) = self.joined([inputs])
        return outputs

    def joined(self, inputs: Sequence[Arrays]) -> list[Arrays]:
        """Ask several requests of JSON by name at once, as a batch."""
        requests = [
            Request(body=json.dumps(_listed(arrays)).encode(), content_type=JSON_TYPE)
            for arrays in inputs
        ]
        return [self._from_json(json.loads(reply.body)) for reply in self._ask(*requests)]

    def raw(self, inputs: Arrays) -> Arrays:
        """Ask in KServe v2 with raw tensors in and out."""
        entries, parts = [], []
        types = {spec.name: kserve.datatype(spec) for spec in self.contract.inputs}
        for name, array in inputs.items():
            datatype = types.get(name) or kserve.NAMES[_dtype(array)]
            parts.append(_raw(array.astype(bfloat16) if datatype == kserve.BFLOAT16 else array))
            entries.append(
                {
                    "name": name,
                    "shape": list(array.shape),
                    "datatype": datatype,
                    "parameters": {"binary_data_size": len(parts[-1])},
                }
            )
        head = {"inputs": entries, "parameters": {"binary_data_output": True}}
        text = json.dumps(head).encode()
        headers = {kserve.LENGTH_HEADER.lower(): str(len(text))}
        (reply,) = self._ask(Request(body=text + b"".join(parts), headers=headers))
        length = int(dict(reply.headers).get(kserve.LENGTH_HEADER, len(reply.body)))
        return _from_raw(json.loads(reply.body[:length])["outputs"], reply.body[length:])

    def npy(self, inputs: Arrays) -> Arrays:
        """Ask with one npy file, of a model with one input and one output."""
        buffer = BytesIO()
        (array,) = inputs.values()
        if self.contract.inputs[0].narrow == "bfloat16":
            array = array.astype(bfloat16)
        np.save(buffer, array.astype(str) if array.dtype.kind == "O" else array)
        request = Request(body=buffer.getvalue(), content_type="application/x-npy")
        (reply,) = self._ask(request)
        return {self.contract.outputs[0].name: np.load(BytesIO(reply.body))}

    def _ask(self, *requests: Request) -> Sequence[Reply]:
        replies, _ = self._service.reply(requests)
        for reply in replies:
            if reply.status != 200:
                message = json.loads(reply.body)["message"]
                raise AnsweredError(reply.status, message) from self._faults.last
        return replies

    def _from_json(self, value: Mapping[str, Any]) -> Arrays:
        return {spec.name: _from_lists(value[spec.name], spec) for spec in self.contract.outputs}


def _placement(folder: Path, config: Mapping[str, Any]) -> Placement:
    """As on the server as shipped."""
    most = extent.SHIPPED_BYTES
    return Placement(
        folder=folder, name="m", config=config, max_request_bytes=most, max_response_bytes=most
    )


def _dtype(array: Array) -> str:
    return "str" if array.dtype.kind in "OU" else array.dtype.name


def _listed(arrays: Arrays) -> dict[str, Any]:
    """Nested lists; NaN is null, which models with missing values take."""
    found = {}
    for name, array in arrays.items():
        gaps = np.isnan(array) if array.dtype.kind == "f" else np.zeros(array.shape, bool)
        found[name] = (np.where(gaps, None, array) if gaps.any() else array).tolist()
    return found


def _from_lists(value: Any, spec: TensorSpec) -> Array:  # noqa: ANN401  any JSON value
    """The array; its values must be of the output's type, and its objects have its labels.

    Raises:
        ValueError: They do not.
    """
    if labels := spec.labels:
        if any(tuple(row) != labels for row in value):
            raise ValueError(f"{spec.name} must be objects of {', '.join(labels)}")
        value = [list(row.values()) for row in value]
    array = np.array(value, dtype=object)
    dtype = np.dtype(object if spec.dtype == "str" else spec.dtype)
    types = _TYPES[dtype.kind]
    strange = [item for item in array.flat if type(item) not in types]
    if strange:
        raise ValueError(f"{spec.name} must be {spec.dtype}, got {strange[0]!r}")
    return array if dtype.kind == "O" else array.astype(dtype)


def _raw(array: Array) -> bytes:
    if array.dtype.kind not in "OU":
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    texts = [str(text).encode() for text in array.flat]
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)


def _from_raw(entries: Sequence[Mapping[str, Any]], body: bytes) -> Arrays:
    found, place = {}, 0
    for entry in entries:
        size = entry["parameters"]["binary_data_size"]
        part, datatype = body[place : place + size], entry["datatype"]
        place += size
        if datatype == kserve.BFLOAT16:
            values = np.frombuffer(part, bfloat16).astype(np.float32)
        elif datatype == "BYTES":
            values = _texts(part)
        else:
            values = np.frombuffer(part, kserve.DTYPES[datatype])
        found[entry["name"]] = values.reshape(entry["shape"])
    return found


def _texts(part: bytes) -> Array:
    texts, place = [], 0
    while place < len(part):
        (size,) = _LENGTH.unpack_from(part, place)
        place += _LENGTH.size + size
        texts.append(part[place - size : place].decode())
    return np.array(texts, dtype=object)
