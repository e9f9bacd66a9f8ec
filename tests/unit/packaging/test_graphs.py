"""Archives of several graphs: an encoder, and a decoder that the handler runs."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from onnx.external_data_helper import convert_model_to_external_data

from marship import check
from marship.contract import GOLDEN_REQUESTS_FILE, Contract, digest_files, read_golden
from marship.errors import DataError, LoadError, ModelError, SealError, UsageError
from marship.packaging import graphs
from marship.packaging.configure import configure
from marship.packaging.sbom import model as bill
from marship.packaging.sealing import rewrap
from marship.packaging.step import PackageSettings, package
from marship.proof import onnx_proof
from marship.serving.handler import OnnxHandler, Placement
from marship.serving.model import session
from marship.serving.model.graphs import Graphs
from marship.serving.model.session import SessionSettings
from marship.serving.model.share import Share
from marship.serving.model.siblings import Siblings
from marship.trust import archive, extract
from seq2seq import translated, write_decoder, write_encoder, write_handler

pytestmark = pytest.mark.slow

KEY, OTHER = "11" * 32, "22" * 32
SOURCE = [[3, 4, 5], [5, 6, 7]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both graphs and the page's handler."""
    folder = tmp_path_factory.mktemp("made")
    write_encoder(folder)
    write_decoder(folder)
    write_handler(folder)
    (folder / "request.json").write_text(json.dumps({"source": SOURCE}))
    return folder


def pack(made: Path, store: Path, *more: str, **settings: object) -> Path:
    """Package the encoder with the decoder."""
    chosen = {
        "name": "translate",
        "model_store": store,
        "handler": made / "translate_handler.py",
        "graph": (f"decoder={made / 'decoder.onnx'}", *more),
        **settings,
    }
    return package(made / "encoder.onnx", PackageSettings(**chosen))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def mar(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, with a golden request."""
    store = tmp_path_factory.mktemp("store")
    return pack(made, store, golden_request=(str(made / "request.json"),))


@pytest.fixture(scope="module")
def sealed_mar(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, sealed with the key in the variable ONE."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONE", KEY)
        return pack(made, tmp_path_factory.mktemp("sealed"), seal="env:ONE")


def unpack(mar: Path, folder: Path) -> Path:
    """The archive as a worker finds it."""
    extract.unpack(mar, archive.read(mar).plain, folder)
    return folder


def load(folder: Path) -> OnnxHandler:
    """A worker that has loaded the archive, with marship's own handler."""
    (folder / GOLDEN_REQUESTS_FILE).unlink(missing_ok=True)  # they are the other handler's
    handler = OnnxHandler()
    handler.load(Placement(folder=folder, name="translate", version="1.0", config={}))
    return handler


def test_a_handler_runs_the_second_graph_by_its_name(mar: Path, made: Path) -> None:
    """Token by token, as ONNX's reference implementation does; the golden request holds it."""
    done = check(mar, made / "request.json")
    wanted = translated(made / "encoder.onnx", made / "decoder.onnx", SOURCE)
    assert done.response is not None
    assert json.loads(done.response.body) == {"tokens": wanted}
    assert len({tuple(row) for row in wanted}) == 2
    assert done.golden_requests == 1


def test_each_graph_has_a_contract_golden_cases_and_a_proof_of_its_own(
    mar: Path, made: Path, tmp_path: Path
) -> None:
    """The digest is of its own file, rows are independent, and check replays the cases of both."""
    folder = unpack(mar, tmp_path)
    read = archive.read(mar)
    inner = folder / "graphs" / "decoder"
    contract = read.graphs["decoder"]
    assert contract == Contract.from_json((inner / "contract.json").read_bytes())
    assert contract.digest == digest_files(inner / "model.onnx")
    assert contract.digest == digest_files(made / "decoder.onnx")
    assert contract.batch_axis == "batch"
    assert read.evidence["graphs"]["decoder"]["rows_alone_and_together"]["agrees"]
    cases = [read_golden(place / "golden.npz") for place in (folder, inner)]
    assert all(cases)
    assert check(mar).golden_cases == sum(map(len, cases))


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "contract.json"])
def test_an_altered_file_of_a_further_graph_is_found(mar: Path, tmp_path: Path, name: str) -> None:
    """Before a request is served; the error names the graph."""
    folder = unpack(mar, tmp_path)
    path = folder / "graphs" / "decoder" / name
    path.write_bytes(path.read_bytes()[:-9] + b"altered!!")
    with pytest.raises(LoadError, match="graph decoder: "):
        load(folder)


def test_all_graphs_are_sealed_and_rewrapped(
    sealed_mar: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of either graph lies in the archive, and each file opens with the new key alone."""
    monkeypatch.setenv("ONE", KEY)
    monkeypatch.setenv("TWO", OTHER)
    mar = Path(shutil.copy(sealed_mar, tmp_path))
    read = archive.read(mar)
    wanted = [f"{place}{name}.sealed" for place in ("", "graphs/decoder/") for name in FILES]
    assert sorted(read.sealed) == sorted(wanted)
    plain = {one.name for one in read.members} - set(wanted)
    assert not [name for name in plain if name.endswith((".onnx", ".npz", ".weights"))]
    assert "details" not in str(read.evidence["graphs"])
    rewrap(mar, "env:ONE", "env:TWO")
    with pytest.raises(SealError, match="must be opened with the key"):
        check_with(monkeypatch, mar, "env:ONE")
    body = check_with(monkeypatch, mar, "env:TWO", made / "request.json")
    wanted_tokens = translated(made / "encoder.onnx", made / "decoder.onnx", SOURCE)
    assert json.loads(body) == {"tokens": wanted_tokens}


FILES = ("model.onnx", "golden.npz")


def check_with(
    monkeypatch: pytest.MonkeyPatch, mar: Path, key: str, request: Path | None = None
) -> str:
    """The response of an archive that is loaded with a key."""
    monkeypatch.setenv("MARSHIP_SEAL_KEY", key)
    response = check(mar, request).response
    return response.body if response else ""


def test_a_plain_graph_in_a_sealed_archive_is_refused(
    sealed_mar: Path, mar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So nobody without the key can put a graph of their own in the place of one."""
    monkeypatch.setenv("ONE", KEY)
    folder, plain = unpack(sealed_mar, tmp_path / "sealed"), unpack(mar, tmp_path / "plain")
    shutil.rmtree(folder / "graphs")
    shutil.copytree(plain / "graphs", folder / "graphs")
    monkeypatch.setenv("MARSHIP_SEAL_KEY", "env:ONE")
    with pytest.raises(SealError, match=r"graphs/decoder/model\.onnx\.sealed"):
        load(folder)


def test_a_graph_of_another_sealing_is_refused(
    sealed_mar: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sealed with the same key, name and version, but not together with the rest."""
    monkeypatch.setenv("ONE", KEY)
    folder = unpack(sealed_mar, tmp_path / "sealed")
    other = unpack(pack(made, tmp_path, seal="env:ONE"), tmp_path / "other")
    shutil.rmtree(folder / "graphs")
    shutil.copytree(other / "graphs", folder / "graphs")
    monkeypatch.setenv("MARSHIP_SEAL_KEY", "env:ONE")
    with pytest.raises(SealError, match="sealed together"):
        load(folder)


def test_a_graph_may_have_external_data(made: Path, tmp_path: Path) -> None:
    """Under a name that the archive's top has as well, which is another folder."""
    model = onnx.load(made / "decoder.onnx")
    convert_model_to_external_data(model, location="model.onnx", size_threshold=0)
    (tmp_path / "split").mkdir()
    onnx.save(model, tmp_path / "split" / "decoder_graph.onnx")
    graph = f"decoder={tmp_path / 'split' / 'decoder_graph.onnx'}"
    mar = pack(made, tmp_path, graph=(graph,))
    assert archive.read(mar).graphs["decoder"].files == ("model.onnx", "external-1.data")
    response = check(mar, made / "request.json").response
    assert response is not None
    wanted = translated(made / "encoder.onnx", made / "decoder.onnx", SOURCE)
    assert json.loads(response.body) == {"tokens": wanted}


def test_a_folder_of_encoder_and_decoder_is_packed(made: Path, tmp_path: Path) -> None:
    """In Hugging Face's layout, named as the folder; a graph that is named goes first."""
    folder = tmp_path / "my exported (2)"
    (folder / "onnx").mkdir(parents=True)
    for name in ("encoder", "decoder"):
        shutil.copyfile(made / f"{name}.onnx", folder / "onnx" / f"{name}_model.onnx")
    handler = made / "translate_handler.py"
    mar = package(folder, PackageSettings(model_store=tmp_path, handler=handler))
    assert mar.name == "my-exported-2-.mar"
    response = check(mar, made / "request.json").response
    assert response is not None
    assert response.status == 200
    settings = PackageSettings(graph=("decoder=other.onnx",))
    assert graphs.of_folder(folder, settings)[1].graph == ("decoder=other.onnx",)
    with pytest.raises(UsageError, match=r"graphs \(decoder\) must come with a handler"):
        package(folder, PackageSettings(model_store=tmp_path))
    with pytest.raises(UsageError, match=r"got quantized of .*encoder_model\.onnx\. Package the"):
        package(folder, PackageSettings(variant="quantized", handler=handler))


def test_names_and_files_of_graphs_are_checked_first(made: Path, tmp_path: Path) -> None:
    """One line each, and nothing is written."""
    shutil.copyfile(made / "decoder.onnx", tmp_path / "same.onnx")
    (tmp_path / "linked.onnx").symlink_to(made / "decoder.onnx")
    for settings, message in (
        ({"graph": ("decoder",)}, "graph must read name=file, .* got 'decoder'"),
        ({"graph": ("De=a.onnx",)}, "graph must read name=file"),
        ({"graph": ("../a=a.onnx",)}, "graph must read name=file"),
        ({"graph": ("a=none.onnx",)}, "graph a must be an ONNX file, got no such file: none.onnx"),
        ({"graph": (f"a={made}",)}, r"got a folder: .* --graph a=FILE\.onnx"),
        ({"graph": (f"a={made / 'encoder.onnx'}",)}, "file of its own, got that of the model"),
        ({"graph": ("a=x", "a=y")}, "graph a must be given once, got it twice"),
        ({"graph_example": ("c=a.npz",)}, "graph-example must be of a graph, decoder, got c"),
        ({"graph_example": ("decoder=a.npz",)}, "example of graph decoder must exist"),
        ({"handler": None}, r"graphs \(decoder\) must come with a handler"),
    ):
        with pytest.raises(UsageError, match=message):
            pack(made, tmp_path, **settings)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="graph b must be a file of its own, got that of graph d"):
        pack(made, tmp_path, f"b={tmp_path / 'linked.onnx'}")
    with pytest.raises(UsageError, match="graph b must be a model of its own, got that of graph d"):
        pack(made, tmp_path, f"b={tmp_path / 'same.onnx'}")
    many = [f"g{index}={write_decoder(tmp_path, f'd{index}')}" for index in range(16)]
    with pytest.raises(UsageError, match="graphs must be at most 16, got 17"):
        pack(made, tmp_path, *many)
    assert not list(tmp_path.glob("*.mar"))


def test_what_is_wrong_with_a_graph_names_it(made: Path, tmp_path: Path) -> None:
    """And the flag that gives it an example."""
    (tmp_path / "no.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"graph b: .*no\.onnx must be a valid ONNX model"):
        pack(made, tmp_path, f"b={tmp_path / 'no.onnx'}")
    np.savez(tmp_path / "example.npz", tokens=np.ones((4, 3), np.int64))
    with pytest.raises(DataError, match=r"graph decoder: .*named tokens, memory, got tokens"):
        pack(made, tmp_path, graph_example=(f"decoder={tmp_path / 'example.npz'}",))


def test_the_advice_about_examples_names_the_graphs_flag(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the proof's own text speaks of the first file's."""

    def refuse(*_: object) -> None:
        raise ModelError("Give it some that it takes: --example inputs.npz.")

    monkeypatch.setattr(graphs.onnx_proof, "describe", refuse)
    settings = PackageSettings(graph=(f"decoder={made / 'decoder.onnx'}",))
    with pytest.raises(ModelError, match=r"--graph-example decoder=inputs\.npz"):
        list(graphs._proofs(settings, tmp_path))


def test_real_golden_cases_of_a_graph_without_an_example_name_its_flag(
    made: Path, tmp_path: Path
) -> None:
    """The first file's own example is none of the decoder's."""
    np.savez(tmp_path / "encoder.npz", source=np.array(SOURCE))
    with pytest.raises(UsageError, match=r"give some: --graph-example decoder=inputs\.npz"):
        pack(made, tmp_path, golden="real", example=tmp_path / "encoder.npz")


def test_values_that_a_narrow_type_cannot_hold_do_not_reach_a_further_graph(
    tmp_path: Path,
) -> None:
    """A handler computes them, so that nothing has checked them before."""
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.INT4, ["n"]) for n in "xy")
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    made = helper.make_model(inner, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(made, tmp_path / "m.onnx")
    proof = onnx_proof._prove(tmp_path / "m.onnx", tmp_path, onnx_proof.Wishes(proof_seconds=1))
    folder = tmp_path / "archive" / "graphs" / "narrow"
    folder.mkdir(parents=True)
    shutil.copyfile(proof.model, folder / "m.onnx")
    (folder / "contract.json").write_text(proof.contract.to_json())
    graph = Graphs.opened(tmp_path / "archive", SessionSettings(), None)["narrow"]
    assert graph.run({"x": np.array([-8, 7], np.int8)})["y"].tolist() == [-8, 7]
    with pytest.raises(ModelError, match="x must hold values of int4, from -8 to 7, got 9"):
        graph.run({"x": np.array([0, 9], np.int8)})


def test_a_handler_that_asks_for_another_name_is_told_those_there_are(
    made: Path, tmp_path: Path
) -> None:
    """When the archive loads, not at the first request."""
    handler = tmp_path / "other_handler.py"
    handler.write_text((made / "translate_handler.py").read_text().replace('s["decoder', 's["de'))
    mar = pack(made, tmp_path, handler=handler)
    with pytest.raises(LoadError, match="graph de must be in the archive, got decoder"):
        check(mar)


def test_all_sessions_follow_the_number_of_workers(mar: Path, tmp_path: Path) -> None:
    """The second graph gets the first one's threads, at once and after a scale."""
    folder = unpack(mar, tmp_path)
    handler = load(folder)
    siblings = Siblings(folder)
    siblings.join()
    others = [Siblings(folder) for _ in range(2)]
    share = Share(handler.session, siblings, handler.graphs.values())
    for other in others:
        other.join()
    share.check(0.0)
    share.check(100.0)
    for one in (handler.session, handler.graphs["decoder"]):
        assert one.settings.workers == 3
        options = one._session.get_session_options()
        assert options.intra_op_num_threads == max(1, session.usable_cores() // 3)
    for one in (siblings, *others):
        one.leave()


def test_a_session_that_had_no_memory_follows_later(
    mar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two was renewed: the other is tried again."""
    folder = unpack(mar, tmp_path)
    settings = SessionSettings(workers=2)
    opened = Graphs.opened(folder, settings, None)["decoder"]
    first = load(folder).session
    siblings = Siblings(folder)
    siblings.join()
    refusals = iter([False])
    real = type(opened).renew

    def renew(one: session.Session, wanted: SessionSettings) -> bool:
        return real(one, wanted) if one is first else next(refusals, True) and real(one, wanted)

    monkeypatch.setattr(session.Session, "renew", renew)
    first.settings = settings
    share = Share(first, siblings, [opened])
    for now_s in (0.0, 100.0, 200.0):
        share.check(now_s)
    assert [one.settings.workers for one in (first, opened)] == [1, 1]
    siblings.leave()


def test_a_bill_of_materials_names_each_graph(mar: Path) -> None:
    """With its tensors, as a model of its own."""
    named = {part["name"]: part for part in bill.describe(mar)["components"]}
    parameters = named["translate/decoder"]["modelCard"]["modelParameters"]
    assert parameters["outputs"] == [{"format": "logits: float32 (batch, steps, 12)"}]


def test_settings_of_the_handler_can_be_changed(sealed_mar: Path, tmp_path: Path) -> None:
    """The graphs stay as they are."""
    mar = Path(shutil.copy(sealed_mar, tmp_path))
    before = archive.read(mar).graphs
    configure(mar, ["most=3"])
    assert archive.read(mar).graphs == before


@given(st.text(st.characters(exclude_characters="="), max_size=12))  # behind = is the file
def test_a_name_is_a_folder_of_its_own_and_an_attribute(name: str) -> None:
    """Whatever else is given as a name is refused."""
    try:
        found = graphs._named("graph", [f"{name}=a.onnx"])
    except UsageError:
        assert not (name.isascii() and name.isidentifier() and name.islower() and name[0] != "_")
    else:
        assert found == {name: Path("a.onnx")}
        assert Path(name).name == name
        assert name.isascii()
