"""Which variant is chosen, and that each verdict is true of the figures, whatever they are."""

import io
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from marship.errors import UsageError
from marship.optimizing.choice import EXPORTED, ROUNDING, Choice, Rule, Variant, choose
from marship.optimizing.fidelity import Fidelity
from marship.optimizing.measure import Latency
from marship.optimizing.report import closeness, draw, entry, figures, verdicts

RULE = Rule(base="float32", metric="accuracy", budget=0.01, least_gain=0.05)
NAMES = ("int8_dynamic", "int8_static", "int8_blocks", "float16")


def made(name: str, speedup: float, drop: float, objection: str | None = None) -> Variant:
    """A measured variant."""
    return Variant(
        name, file=f"{name}.onnx", speedup=speedup, metric_drop=drop, objection=objection
    )


def test_the_fastest_within_the_budget_is_chosen() -> None:
    """A faster one over the budget is not, and the reasons give both figures."""
    found = [made("float32", 1.0, 0.0), made("a", 1.5, 0.005), made("b", 3.0, 0.02)]
    choice = choose([*found, made("c", 1.2, 0.0)], RULE)
    assert choice.chosen == "a"
    assert "1.5 times" in choice.why
    assert choice.verdicts["b"].outcome == "over budget"
    assert "0.02, 0.01 over the budget of 0.01" in choice.verdicts["b"].why
    assert "1.2 times as fast as float32, but a at least 1.5" in choice.verdicts["c"].why


@pytest.mark.parametrize("speedup", [0.7, 1.0, 1.04])
def test_float32_stays_where_nothing_is_worth_a_change(speedup: float) -> None:
    """A gain below five per cent is too small, and the verdict gives it beside what is needed."""
    choice = choose([made("float32", 1.0, 0.0), made("a", speedup, 0.0)], RULE)
    assert choice.chosen == "float32"
    assert choice.verdicts["a"].outcome == "too slow"
    assert f"at least {speedup:.3g} with" in choice.verdicts["a"].why
    assert "more than 1.05 is needed" in choice.verdicts["a"].why


def test_an_objection_rejects_a_variant() -> None:
    """However fast it is; the base then says that no other passed, not that none was built."""
    choice = choose([made("float32", 1, 0), made("a", 9, 0, "padding")], RULE)
    assert choice.chosen == "float32"
    assert choice.verdicts["a"].why == "padding"
    assert "no other variant passes its checks" in choice.why


def test_a_base_with_an_objection_gives_way_to_the_exported_model() -> None:
    """float32 is no exception: its outputs, too, must be within the export's tolerance."""
    found = [made("exported", 1, 0), made("float32", 1, 0, "off"), made("a", 9, 0, "padding")]
    assert choose(found, RULE).chosen == "exported"


def test_the_smaller_of_two_equally_fast_ones_is_chosen() -> None:
    """The other's verdict says by how much it is larger."""
    large, small = (replace(made(name, 2, 0), size_bytes=n) for name, n in (("a", 2500), ("b", 1)))
    choice = choose([made("float32", 1, 0), large, small], RULE)
    assert choice.chosen == "b"
    assert "2,499 bytes larger" in choice.verdicts["a"].why


def test_a_variant_that_was_not_built_cannot_be_forced() -> None:
    """The error lists those that were."""
    with pytest.raises(UsageError, match="float32; got a"):
        choose([made("float32", 1, 0), Variant("a", reason="no data")], replace(RULE, forced="a"))


def test_a_drop_of_the_whole_budget_is_within_it() -> None:
    """0.754 - 0.749 is 0.005, whatever binary fractions make of it."""
    found = [made("float32", 1.0, 0.0), made("a", 2.0, 0.754 - 0.749)]
    assert choose(found, replace(RULE, budget=0.005)).chosen == "a"


SPEEDUPS = st.one_of(
    st.floats(0.01, 100), st.sampled_from([1.0, 1.05, math.nextafter(1.05, 2), 1.0501, 1.4999, 1.5])
)
DROPS = st.one_of(st.floats(-1, 1), st.sampled_from([0.0, 0.01, 0.010000001, 0.0101, math.nan]))


@st.composite
def trials(draw_from: st.DrawFn) -> tuple[list[Variant], Rule]:
    """Variants with any figures, as `optimize` may measure them, and a rule."""
    metric = draw_from(st.sampled_from(["accuracy", None]))

    def measured(name: str, *, speedup: float | None = None) -> Variant:
        return Variant(
            name,
            file=f"model.{name}.onnx",
            objection=draw_from(st.sampled_from([None, None, "padding changes its outputs"])),
            size_bytes=draw_from(st.integers(1, 3)),
            load_ms=1.0,
            latency_ms={"1": Latency(1.0, 2.0), "16": Latency(3.0, 4.0)},
            speedup=speedup or draw_from(SPEEDUPS),
            median_speedup=draw_from(SPEEDUPS),
            metrics={"accuracy": 0.5},
            metric_drop=draw_from(DROPS) if metric else None,
        )

    base = draw_from(st.sampled_from(["float32", "float32", EXPORTED]))
    exported = measured(EXPORTED, speedup=1.0 if base == EXPORTED else None)
    exported = replace(exported, objection=None, metric_drop=0.0 if metric else None)
    float32 = Variant("float32", reason="the optimizer failed")
    found = [exported, measured("float32", speedup=1.0) if base == "float32" else float32]
    for name in NAMES:
        built = draw_from(st.booleans())
        found.append(measured(name) if built else Variant(name, reason="it needs a loop"))
    gain = draw_from(st.sampled_from([0.0, 0.05, 0.051, 1.0]))
    built_names = [v.name for v in found if v.file]
    forced = draw_from(st.sampled_from([None, None, None, *built_names]))
    return found, Rule(base, metric, 0.01, gain, forced)


@settings(deadline=None)
@given(trials())
def test_every_verdict_is_true_of_the_figures(trial: tuple[list[Variant], Rule]) -> None:
    """Whatever was measured, each variant has one verdict, and every figure in it decides so."""
    variants, rule = trial
    choice = choose(variants, rule)
    assert list(choice.verdicts) == [variant.name for variant in variants]
    assert [n for n, v in choice.verdicts.items() if v.outcome == "chosen"] == [choice.chosen]
    by_name = {variant.name: variant for variant in variants}
    for variant in variants:
        verdict = choice.verdicts[variant.name]
        assert verdict.why
        if variant.name != choice.chosen:
            CHECKS[verdict.outcome](variant, by_name[choice.chosen], rule, verdict.why)
    check_chosen(by_name, choice, rule)


def allowed(variant: Variant, rule: Rule) -> bool:
    """Whether nothing but its speed speaks against a variant that was built."""
    drop = variant.metric_drop
    return variant.objection is None and (drop is None or drop <= rule.budget + ROUNDING)


def check_chosen(by_name: dict[str, Variant], choice: Choice, rule: Rule) -> None:
    """The chosen one is what the rule demands, and no other would have been better."""
    best = by_name[choice.chosen]
    better = [
        v
        for v in by_name.values()
        if v.file and v.name != rule.base and allowed(v, rule) and v.speedup > 1 + rule.least_gain
    ]
    if rule.forced:
        assert best.name == rule.forced
        assert ("although" in choice.why) == (not allowed(best, rule))
    elif better:
        assert allowed(best, rule)
        assert best.speedup == max(v.speedup for v in better)
        assert f"at least {best.speedup:.3g} times" in choice.why
    else:
        assert best.name == (rule.base if allowed(by_name[rule.base], rule) else EXPORTED)
        assert "no other variant passes its checks" in choice.why


def check_not_built(variant: Variant, best: Variant, rule: Rule, why: str) -> None:
    """It has no file; the reason is the pass's."""
    del best, rule
    assert variant.file is None
    assert why == variant.reason


def check_rejected(variant: Variant, best: Variant, rule: Rule, why: str) -> None:
    """Its outputs were objected to, or could not be rated."""
    del best, rule
    unrated = variant.metric_drop is not None and math.isnan(variant.metric_drop)
    assert why == (variant.objection or "accuracy is not a number")
    assert variant.objection or unrated


def check_over_budget(variant: Variant, best: Variant, rule: Rule, why: str) -> None:
    """The drop that is stated is larger than the budget that is stated, and both are right."""
    del best
    drop, over, budget = (float(figure) for figure in re.findall(r"-?\d[\d.e+-]*", why))
    assert drop > budget
    assert budget == pytest.approx(rule.budget, rel=0.01)
    assert drop == pytest.approx(variant.metric_drop, rel=0.01)
    assert over == pytest.approx(variant.metric_drop - rule.budget, rel=0.06)


def check_too_slow(variant: Variant, best: Variant, rule: Rule, why: str) -> None:
    """The speed that is stated is no more than what is needed, and both are right."""
    del best
    assert allowed(variant, rule)
    found = re.fullmatch(
        rf"(\S+) times as fast as {rule.base} at the median, "
        r"at least (\S+) with 97.5 % confidence; more than (\S+) is needed",
        why,
    )
    median, sure, needed = (float(figure) for figure in found.groups())
    assert sure <= needed
    assert median == pytest.approx(variant.median_speedup, rel=0.01)
    assert sure == pytest.approx(variant.speedup, rel=0.01)
    assert needed == pytest.approx(1 + rule.least_gain, rel=0.01)


def check_beaten(variant: Variant, best: Variant, rule: Rule, why: str) -> None:
    """It passed, and the chosen one is faster, or as fast and no larger; the figures show it."""
    assert allowed(variant, rule)
    assert best.name in why
    if variant.name == rule.base:
        assert float(re.search(r"at least (\S+) times", why)[1]) > 1
    elif variant.speedup < best.speedup:
        slower, faster = (float(figure) for figure in re.findall(r"at least (\S+) times", why))
        assert slower < faster
    else:
        assert variant.speedup == best.speedup
        larger = variant.size_bytes - best.size_bytes
        assert larger >= 0
        assert (f"{larger} bytes larger" if larger else "no smaller") in why


def check_not_requested(variant: Variant, best: Variant, rule: Rule, why: str) -> None:
    """It passed, and another was chosen by hand."""
    assert allowed(variant, rule)
    assert rule.forced == best.name
    assert best.name in why


CHECKS = {
    "not built": check_not_built,
    "rejected": check_rejected,
    "over budget": check_over_budget,
    "too slow": check_too_slow,
    "beaten": check_beaten,
    "not requested": check_not_requested,
}


@settings(deadline=None, max_examples=40)
@given(
    errors=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    rows=st.integers(1, 500),
    data=st.data(),
)
def test_without_a_judge_the_choice_names_what_was_measured(
    errors: list[float], rows: int, data: st.DataObject
) -> None:
    """The largest error of an output and the smallest share of rows that agree."""
    same = [data.draw(st.integers(0, rows)) for _ in errors]
    int8 = replace(made("int8_static", 2, 0), metric_drop=None, is_exact=False)
    int8.fidelity = {
        f"output {number}": Fidelity(rows, error, error, count, is_class=True)
        for number, (error, count) in enumerate(zip(errors, same, strict=True))
    }
    rule = replace(RULE, metric=None, most_error=1.0)
    why = choose([made("float32", 1, 0), int8], rule).why
    found = re.search(r"off by at most (\S+) of their spread, (\S+) % of (\d+) rows agree", why)
    assert float(found[1]) == pytest.approx(max(errors), rel=0.05)
    assert float(found[2]) == pytest.approx(100 * min(same) / rows, abs=0.01)
    assert int(found[3]) == rows
    console = Console(width=80, file=io.StringIO())
    console.print(closeness([int8]))
    lines = console.file.getvalue().splitlines()[1:]
    assert len(lines) == len(errors)
    assert all(f"top class in {count} of {rows}" in "\n".join(lines) for count in same)


@settings(deadline=None, max_examples=40)
@given(trials())
def test_every_verdict_is_in_the_table_and_in_the_json(trial: tuple[list[Variant], Rule]) -> None:
    """At 80 columns nothing is cut off, and optimize.json has the same words."""
    variants, rule = trial
    choice = choose(variants, rule)
    console = Console(width=80, file=io.StringIO())
    console.print(figures(variants, choice.chosen, rule))
    console.print(verdicts(choice))
    text = console.file.getvalue()
    assert "…" not in text
    flat = " ".join(text.split())
    for variant in variants:
        verdict = choice.verdicts[variant.name]
        assert f"{variant.name} {verdict.outcome} " in flat
        assert set(verdict.why.split()) <= set(flat.split())
        stated = entry(variant, verdict)
        assert (stated["verdict"], stated["why"]) == (verdict.outcome, verdict.why)


@pytest.mark.parametrize("error", [0.02, math.inf])
def test_errors_on_real_inputs_are_in_the_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: float
) -> None:
    """With the output's name and how many rows agree; below, what that does not prove."""
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    built = [made("float32", 1, 0), replace(made("int8_static", 2, 0), is_exact=False)]
    for variant in built:
        variant.latency_ms = {"1": Latency(1.0, 2.0)}
    built[1].fidelity = {
        "scores": Fidelity(25, error, error, 24, is_class=True),
        "small": Fidelity(25, 0.01, 0.02),
    }
    rule = replace(RULE, metric=None, most_error=0.05)
    draw(built, choose(built, rule), rule, tmp_path / "picture.png", "mine")
    (figure,) = drawn
    figure.draw_without_rendering()
    texts = [text.get_text() for text in figure.axes[-2].texts]
    assert texts == [f"scores {error:.2g}, 96 % agree", "0"]
    assert "does not prove accuracy on labels" in figure.get_supxlabel()


def test_every_verdict_is_in_the_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A row for each variant, those that were not built too, with the verdict's words."""
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    built = [made("exported", 1, 0), made("float32", 1, 0), made("int8_static", 2, 0.5)]
    for variant in built:
        variant.latency_ms = {"1": Latency(1.0, 2.0)}
    variants = [*built, Variant("float16", reason="it needs a CUDA provider")]
    choice = choose(variants, RULE)
    draw(variants, choice, RULE, tmp_path / "picture.png", "mine")
    texts = [text.get_text() for text in drawn[0].axes[-1].texts]
    assert len(texts) == len(variants)
    for variant, text in zip(variants, reversed(texts), strict=True):
        verdict = choice.verdicts[variant.name]
        assert text.replace("\n", " ") == f"{verdict.outcome}: {verdict.why}"
