"""A tiny image model, packed: the more red, green or blue a picture is, the likelier its label."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from marship.packaging.mar import Contents, build
from marship.packaging.step import PackageSettings
from marship.proof import graph, parity
from models import write_model
from workers import HANDLERS

LABELS = ["red", "green", "blue"]
WIDEST, DEFECT, NO_NUMBER = 2000, 50, 60
ABOUT = {"labels": LABELS, "side": 28, "crop": 0.875, "tag_threshold": 0.3}


def write_colours(path: Path) -> Path:
    """`probabilities = softmax(mean(pixels) / 32)`, uint8 (batch, height, width, 3) to (batch, 3).

    Pixels 50 wide pass the contract and fail in the run: a table names no place for them. 60 wide
    they are divided by NaN.
    """
    taken = helper.make_tensor_value_info(
        "pixels", TensorProto.UINT8, ["batch", "height", "width", 3]
    )
    given = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3])
    places = np.zeros(WIDEST + 1, np.int64)
    places[DEFECT], places[NO_NUMBER] = 99, 1
    constants = {
        "axes": np.array([1, 2]),
        "places": places,
        "scale": np.array([32, np.nan], np.float32),
        "third": np.array(2),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values", "axes"], ["mean"], keepdims=0),
        helper.make_node("Shape", ["pixels"], ["shape"]),
        helper.make_node("Gather", ["shape", "third"], ["width"]),
        helper.make_node("Gather", ["places", "width"], ["place"]),
        helper.make_node("Gather", ["scale", "place"], ["divisor"]),
        helper.make_node("Div", ["mean", "divisor"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"]),
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return write_model(path, helper.make_graph(nodes, "colours", [taken], [given], initializers))


def pack_colours(folder: Path, *, name: str = "colours", **settings: object) -> Path:
    """The archive, in `folder`, with the image handler."""
    model = write_colours(folder / "model.onnx")
    contract, golden = parity.describe(graph.contract_of(model), parity.runner(model))
    about = folder / "picture.json"
    about.write_text(json.dumps(ABOUT))
    return build(
        Contents(
            name=name,
            handler=HANDLERS / "image_handler.py",
            model=model,
            contract=replace(contract, batch_axis="batch"),
            golden=golden,
            evidence={},
            assets=(about,),
        ),
        PackageSettings(**{"model_store": folder, **settings}),
    )
