"""Orion v2 with one model: a peer of private_orion.py, run by the Python of Orion's own venv.

    python benchmarks/servers/orion.py MODEL.npz PARAMETERS.json

MODEL.npz holds arrays in the order of the layers: 0.weight, 0.bias, ...; `rows` to fit the compiler
with and to ask for. A weight of rank 4 is a convolution's, with `0.stride` and `0.padding`. All
layers but the last are followed by a square. It prints a line of JSON with sizes, then one for each
line of its input, the number of a row: times in milliseconds, and the answer.
"""

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

# Two Go runtimes: one thread each, as ours has.
os.environ["GOMAXPROCS"] = "1"

import numpy as np
import torch
from lattigo import ckks, rlwe
from orion_compiler import CKKSParams, Compiler
from orion_compiler import nn as orion
from orion_evaluator import Evaluator, Model

Arrays = dict[str, np.ndarray]


class Net(orion.Module):
    """Linear layers with squares between them."""

    def __init__(self, arrays: Arrays) -> None:
        super().__init__()
        count = sum(name.endswith(".weight") for name in arrays)
        self.steps = []
        for n in range(count):
            weight, bias = (torch.from_numpy(arrays[f"{n}.{part}"]) for part in ("weight", "bias"))
            layer = _layer(arrays, n, weight)
            layer.weight.data, layer.bias.data = weight, bias
            if n and weight.dim() == 2 and arrays[f"{n - 1}.weight"].ndim == 4:
                self._add(f"flat{n}", orion.Flatten())
            self._add(f"layer{n}", layer)
            if n < count - 1:
                self._add(f"square{n}", orion.Quad())

    def _add(self, name: str, module: torch.nn.Module) -> None:
        setattr(self, name, module)
        self.steps.append(name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows to outputs."""
        for name in self.steps:
            x = getattr(self, name)(x)
        return x


def _layer(arrays: Arrays, n: int, weight: torch.Tensor) -> orion.Module:
    if weight.dim() == 2:
        return orion.Linear(weight.shape[1], weight.shape[0])
    stride, padding = int(arrays[f"{n}.stride"]), int(arrays[f"{n}.padding"])
    return orion.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], stride, padding)


class Asked:
    """A compiled model, a client's keys, and an evaluator that has them."""

    def __init__(self, arrays: Arrays, parameters: dict[str, Any]) -> None:
        self.rows = arrays["rows"]
        net = Net(arrays).eval()
        with torch.no_grad(), Compiler(net, CKKSParams(**parameters)) as compiler:
            compiler.fit(torch.from_numpy(self.rows[:1]))
            data = compiler.compile().to_bytes()
        self.model = Model.load(data)
        found, manifest, self.level = self.model.client_params()
        self.params = ckks.Parameters.from_dict(found)
        self.encoder = ckks.Encoder(self.params)
        started = time.perf_counter()
        keygen = rlwe.KeyGenerator(self.params)
        secret = keygen.gen_secret_key()
        elements = manifest["galois_elements"]
        keys = rlwe.MemEvaluationKeySet(
            keygen.gen_relin_key(secret) if manifest["needs_rlk"] else None,
            [keygen.gen_galois_key(secret, element) for element in elements],
        ).marshal_binary()
        public = keygen.gen_public_key(secret)
        self.encryptor = rlwe.Encryptor(self.params, public)
        self.decryptor = rlwe.Decryptor(self.params, secret)
        self.sizes = {
            "keys, MB": len(keys) / 1e6,
            "rotations": len(elements),
            "keys, ms": 1e3 * (time.perf_counter() - started),
        }
        self.evaluator = Evaluator(found, keys)

    def ask(self, number: int) -> dict[str, Any]:
        """One row's times and answer."""
        slots, row = self.params.max_slots(), self.rows[number].ravel().astype(float)
        values = [*row.tolist(), *[0.0] * (slots - len(row))]
        times = [time.perf_counter()]
        plain = self.encoder.encode(values, self.level, self.params.default_scale())
        question = self.encryptor.encrypt_new(plain).marshal_binary()
        times.append(time.perf_counter())
        before = time.process_time()
        (answer,) = self.evaluator.forward(self.model, [question])
        processor_ms = 1e3 * (time.process_time() - before)
        times.append(time.perf_counter())
        opened = self.decryptor.decrypt_new(rlwe.Ciphertext.unmarshal_binary(answer))
        output = self.encoder.decode(opened, slots)
        times.append(time.perf_counter())
        encrypt_ms, server_ms, decrypt_ms = (1e3 * float(ms) for ms in np.diff(times))
        return {
            "server, ms": server_ms,
            "of the processor, ms": processor_ms,
            "encrypt, ms": encrypt_ms,
            "decrypt, ms": decrypt_ms,
            "up, KB": len(question) / 1e3,
            "down, KB": len(answer) / 1e3,
            "output": [float(value) for value in output],
        }


def main() -> None:
    """Compile, then answer."""
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):
        asked = Asked(dict(np.load(sys.argv[1])), json.loads(Path(sys.argv[2]).read_text()))
    print(json.dumps(asked.sizes), flush=True)
    for line in sys.stdin:
        print(json.dumps(asked.ask(int(line))), flush=True)


main()
