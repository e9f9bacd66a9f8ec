"""How optimizing is set: apart from the step, so that the command line loads at once."""

from dataclasses import dataclass

from marship.settings import Settings, setting

PASSES = ("float32", "int8_dynamic", "int8_static", "int8_blocks", "float16")


@dataclass(frozen=True, slots=True)
class OptimizeSettings(Settings):
    """How variants are measured and chosen.

    Example:
        >>> marship.OptimizeSettings(variant="int8_dynamic").threads
        1
    """

    variant: str | None = setting(
        None, "choose this variant whatever the measurements say: exported, " + ", ".join(PASSES)
    )
    threads: int = setting(1, "threads within one call while measuring", minimum=1)
    batch: int = setting(16, "rows of the larger of the two calls that are timed", minimum=2)
    least_gain: float = setting(
        0.05, "speed gain over float32 that is worth a change, as a share", minimum=0
    )
    metric: str | None = setting(
        None, "the judge's metric that decides; the recipe's, or the only one that it gives"
    )
    lower_is_better: bool = setting(False, "a smaller metric is better")
    budget: float | None = setting(
        None, "the largest drop of the metric that is allowed; the recipe's, or 0", minimum=0
    )
    most_error: float = setting(
        0.05,
        "without a judge: what a float output may differ by on real inputs, as a share of its "
        "spread (root mean square)",
        minimum=0,
    )
    least_agreement: float = setting(
        0.99,
        "without a judge: share of real inputs whose top class, whole numbers and texts must be "
        "the same",
        minimum=0,
        maximum=1,
    )
    search_s: float = setting(
        180.0, "seconds to find the layers that must stay float in int8", minimum=0
    )
    measure_s: float = setting(8.0, "seconds of timing, for both batch sizes together", minimum=0)
    golden: str = setting(
        "synthetic",
        "golden cases of an ONNX file: synthetic, nobody's data, or real, rows of the calibration "
        "data, which then travel in the archive",
        usual=("synthetic", "real"),
    )
    missing_values: str = setting(
        "auto",
        "null and NaN in float inputs of an ONNX file: allow or refuse; any: infinity, too; auto "
        "asks its operators",
        usual=("auto", "allow", "refuse", "any"),
    )
    proof_seconds: float = setting(
        60.0, "what the proof of an ONNX file's rows may cost", minimum=1
    )
    limit_s: int = setting(
        600, "an ONNX file that loads and runs longer than this is refused, seconds", minimum=1
    )
    again: bool = setting(False, "optimize anew where nothing has changed, too")
