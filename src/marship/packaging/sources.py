"""Which files an archive is packed from."""

from collections.abc import Iterator
from pathlib import Path

from marship.fit.recipe import RECIPE_FILE, Recipe
from marship.packaging import shipped
from marship.packaging.settings import PackageSettings


def files(source: Path, settings: PackageSettings) -> Iterator[Path]:
    """The model's files, the handler, and what the settings name beside them.

    Args:
        source: A run folder, or an ONNX file.
        settings: How it is packed.

    Raises:
        UsageError: The handler is not there, or the recipe cannot be read.
    """
    is_run = source.is_dir()
    yield from sorted(source.iterdir()) if is_run else [source]
    yield from map(Path, (*settings.asset, *settings.golden_request, *settings.custom_ops))
    yield from (Path(named.partition("=")[2]) for named in settings.graph)
    if settings.handler is not None:
        yield shipped.named(settings.handler)
    elif is_run and (source / RECIPE_FILE).is_file():
        yield shipped.handler(Recipe.load(source).handler)
