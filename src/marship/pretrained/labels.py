"""The names and the scores of a classifier's outputs, as its pipeline has them."""

from typing import Any

from marship.errors import UsageError


def labels_of(config: Any) -> list[str]:  # noqa: ANN401  a class for each kind of model
    """The labels in the order of the outputs.

    Raises:
        UsageError: Some have no name.
    """
    names = {int(place): str(name) for place, name in (config.id2label or {}).items()}
    if sorted(names) != list(range(config.num_labels)):
        raise UsageError(
            f"id2label of config.json must name {config.num_labels} labels from 0, got "
            f"{sorted(names)[:10]}."
        )
    return [names[place] for place in range(config.num_labels)]


def scores_of(config: Any) -> str:  # noqa: ANN401  a class for each kind of model
    """The function from logits to scores: softmax, sigmoid or none.

    As TextClassificationPipeline.postprocess chooses it (transformers 5.23).
    """
    if config.problem_type == "regression":
        return "none"
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return "sigmoid"
    return "softmax"
