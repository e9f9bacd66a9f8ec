"""Versions of the packages with which a model was built and packaged."""

from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "cryptography",
    "marship",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "orjson",
    "pillow",
    "simplejpeg",
    "soundfile",
    "soxr",
    "torch",
    "torch-model-archiver",
    "torchserve",
)


def versions() -> dict[str, str]:
    """The version of each package, or "not installed"."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
