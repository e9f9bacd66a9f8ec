"""What an archive says of the packages that its model was made and packed with."""

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
    """Version of each of the packages, or that it is not installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
