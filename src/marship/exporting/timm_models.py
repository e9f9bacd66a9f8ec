"""Exports an image classifier of timm by its name, with weights of a local file."""

from functools import partial
from pathlib import Path
from typing import Any

from marship.contract import Contract, digest_files
from marship.errors import UsageError
from marship.exporting.pretrained import Companion, ExportPlan, Run, picture_recipe

PREFIX = "timm:"
BUILD = "marship.pretrained.timm_model:build"
INPUT = "x"
"""What forward of timm's models calls the picture."""


def planned(
    name: str, weights: Path | None, weights_key: str | None, run_dir: Path
) -> tuple[ExportPlan, dict[str, Any]]:
    """How a model is exported, and what it is built with.

    Raises:
        UsageError: timm is missing, does not know the model, or there are no weights.
        CheckpointError: The weights do not match the model.
        ParityError: timm gives other pixels than a worker would.
    """
    if weights is None or not weights.exists():
        raise UsageError(
            f"weights of {PREFIX}{name} must be a file, got {weights or 'none'}. Nothing is "
            f"downloaded: marship export {PREFIX}{name} --weights model.safetensors"
        )
    from marship.fit import torchfile
    from marship.fit.checkpoint import load_weights
    from marship.pretrained import crosscheck, pictures, timm_model

    count = timm_model.classes_of(name, torchfile.read_weights(weights))
    network = timm_model.build(name, count)
    load_weights(weights, network, weights_key)
    classifier = timm_model.Classifier(network)
    names, processor = classifier.labels(count), classifier.processor()
    examples = pictures.checked(processor, classifier.values, f"timm's {name}")
    files = pictures.files(names, "softmax", processor)
    evidence = {"timm": name, "weights_sha256": digest_files(*torchfile.weight_files(weights))}

    def compare(draft: Path, contract: Contract, run: Run) -> dict[str, Any]:  # noqa: ARG001  as for texts
        rows = partial(crosscheck.rows_of, names=names)
        wanted = [rows(classifier.scores(pixels)) for pixels in pictures.samples().values()]
        return crosscheck.compare_scores(wanted, processor, names, "softmax", contract, run)

    companion = Companion(files, compare, f"timm's {name}")
    recipe = picture_recipe(run_dir, BUILD, evidence)
    plan = ExportPlan(recipe, {INPUT: examples[pictures.INPUT]}, companion)
    return plan, {"name": name, "num_classes": count}
