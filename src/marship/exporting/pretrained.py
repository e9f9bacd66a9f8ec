"""Exports a model of transformers from a folder: texts or pictures go in, labels come out."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from marship import console
from marship.contract import Arrays, Contract
from marship.exporting.layout import completed
from marship.fit.recipe import Recipe
from marship.pretrained.folder import ModelFolder

PREFIX = "hf:"
BUILD = "marship.pretrained.model:build"
Run = Callable[[Arrays], Arrays]


@dataclass(frozen=True, slots=True)
class Companion:
    """What is written beside the model, and compared with the pipeline.

    Attributes:
        files: By name in the run folder.
        compare: Compares responses; given the folder with the files, the contract, and how to run
            the exported model, it returns what the evidence says.
        reference: What they are compared with.
    """

    files: Mapping[str, bytes]
    compare: Callable[[Path, Contract, Run], dict[str, Any]]
    reference: str = "transformers.pipeline()"

    def write(self, draft: Path, contract: Contract, run: Run) -> dict[str, Any]:
        """Write the files, and compare.

        Raises:
            ParityError: Responses would differ.
        """
        for name, content in self.files.items():
            (draft / name).write_bytes(content)
        found = self.compare(draft, contract, run)
        count = next(f"{value} {key}" for key, value in found.items() if isinstance(value, int))
        console.out.print(
            f"{count}, in one batch and each alone, get what {self.reference} gives; "
            f"largest difference {found['largest_difference']:.2g}",
            soft_wrap=True,
        )
        return found


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What a folder's model is exported with."""

    recipe: Recipe
    examples: Arrays
    companion: Companion


def folder_of(source: str, task: str | None) -> ModelFolder:
    """The folder that `hf:FOLDER` names.

    Raises:
        UsageError: It has no model that can be served.
    """
    return ModelFolder.at(Path(source.removeprefix(PREFIX)).expanduser(), task)


def planned(folder: ModelFolder, run_dir: Path, bounds: tuple[str, ...]) -> ExportPlan:
    """How the model of a folder is exported.

    Args:
        folder: The model's.
        run_dir: The run folder to write.
        bounds: As `ExportSettings.bounds`: samples are no longer than these allow.

    Raises:
        UsageError: It cannot be read, or served.
        ParityError: The image processor does what is not done here.
    """
    if not folder.is_text:
        return _of_pictures(folder, run_dir)
    from marship.pretrained import texts

    wanted = completed(Recipe(name="", build=BUILD), (), bounds).bounds.get(texts.AXIS)
    return _of_texts(folder, run_dir, wanted[1] if wanted else None)


def name_of(run_dir: Path) -> str:
    """The model's name by that of its run folder."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", run_dir.resolve().name)


def _of_texts(folder: ModelFolder, run_dir: Path, wanted: int | None) -> ExportPlan:
    from marship.pretrained import crosscheck, model, texts

    tokenizer, network = texts.tokenizer_of(folder), model.loaded(folder)
    names = texts.inputs_of(tokenizer, network)
    shortest = texts.row_of(tokenizer, names, texts.SHORTEST)
    bounds = texts.stated_bounds(folder, tokenizer)
    bounds = [min(wanted, bound) for bound in bounds] if wanted else bounds
    most = texts.longest(partial(model.states, network), shortest, bounds)
    samples = texts.samples_of(folder, tokenizer, most)
    rows = [texts.row_of(tokenizer, names, text) for text in samples]
    _say_others(model.others(network, shortest))
    pads = {k: v for k, v in texts.pads_of(tokenizer, network.config).items() if k in names}
    if pads and not model.ignores_padding(network, rows, pads):
        pads = {}
    if not pads:
        console.out.print(
            "texts of different lengths run apart: padding would change what they get"
        )
    files = texts.files(folder, tokenizer, model.output_of(folder.task), samples)
    recipe = Recipe(
        name=name_of(run_dir),
        build=BUILD,
        handler="text_handler.py",
        pad_values=pads,
        dynamic=() if pads else tuple(f"{name}:1={texts.AXIS}" for name in names),
        bounds={texts.AXIS: (1, most)},
        assets=tuple(name for name in files if name != texts.SAMPLES_FILE),
        requests=(texts.SAMPLES_FILE,),
        evidence=folder.evidence(),
    )

    def compare(draft: Path, contract: Contract, run: Run) -> dict[str, Any]:
        return crosscheck.compare_texts(network, tokenizer, samples, draft, contract, run)

    return ExportPlan(recipe, texts.padded(rows, pads), Companion(files, compare))


def _of_pictures(folder: ModelFolder, run_dir: Path) -> ExportPlan:
    from marship.pretrained import crosscheck, model, pictures

    processor, network = pictures.processor_of(folder), model.loaded(folder)
    files, examples = pictures.prepared(folder, processor)
    _say_others(model.others(network, examples))
    recipe = picture_recipe(run_dir, BUILD, folder.evidence())

    def compare(draft: Path, contract: Contract, run: Run) -> dict[str, Any]:  # noqa: ARG001  as for texts
        return crosscheck.compare_pictures(network, processor, contract, run)

    return ExportPlan(recipe, examples, Companion(files, compare))


def picture_recipe(run_dir: Path, build: str, evidence: Mapping[str, object]) -> Recipe:
    """The recipe of a classifier of pictures."""
    from marship.pretrained import pictures

    return Recipe(
        name=name_of(run_dir),
        build=build,
        handler="image_handler.py",
        assets=(pictures.PICTURE_FILE,),
        requests=tuple(pictures.SAMPLES),
        evidence=evidence,
    )


def _say_others(names: Sequence[str]) -> None:
    if names:
        console.out.print(f"left out of the outputs: {', '.join(names)}", soft_wrap=True)
