"""`marship tune --host torchserve`: a candidate behind TorchServe's frontend."""

import json
from pathlib import Path

import psutil

import marship
from marship.operate.tune import answers, load, served
from marship.operate.tune.answers import SampleRequest


def test_a_candidate_is_served_by_a_torchserve_of_its_own(
    linear_onnx: Path, tmp_path: Path
) -> None:
    """With the archive's workers; it answers under load, and nothing of it runs afterwards."""
    settings = marship.PackageSettings(model_store=tmp_path, name="m", batch_size=4, max_workers=2)
    archive = marship.package(linear_onnx, settings)
    place = tmp_path / "server"
    place.mkdir()
    sample = SampleRequest("one.json", "application/json", b'{"input": [[1, 2, 3]]}')
    with served.torchserve(archive, place, 60) as model:
        (response,) = answers.ask(model.endpoint, [sample])
        found = load.closed(
            model.endpoint, [model.endpoint.request(sample.body, sample.content_type)], 4, 0.5
        )
        running = [model.process, *model.process.children(recursive=True)]
        assert model.memory_mb() > 100
    assert json.loads(response.response) == {"output": [[16, 22]]}
    assert found.answered
    assert found.failed == 0
    assert not psutil.wait_procs(running, timeout=10)[1]
