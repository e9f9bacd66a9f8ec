"""Loads in one worker only, as with a licence for one."""

from pathlib import Path


class OnlyOne:
    """The first worker takes the file, the others find it taken."""

    def initialize(self, context):
        """Take the file."""
        folder = Path(context.system_properties["model_dir"])
        try:
            (folder / "taken").touch(exist_ok=False)
        except FileExistsError:
            raise RuntimeError("one worker must be enough, got a second") from None

    def handle(self, data, context):
        """Answer anything."""
        return ["fine"] * len(data)
