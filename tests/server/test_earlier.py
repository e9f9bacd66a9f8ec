"""Archives and handlers of earlier versions of marship still work."""

from io import BytesIO
from pathlib import Path

import numpy as np

from marship import Client
from marship.contract import read_golden
from marship.trust import archive

EARLIER = Path(__file__).parents[1] / "earlier"


def test_an_archive_packed_before_the_modules_moved_is_served(client: Client, store: Path) -> None:
    """It carries its own copy of marship; commit d025c96 packed it. It gives its golden outputs."""
    mar = EARLIER / "diabetes.mar"
    (store / mar.name).write_bytes(mar.read_bytes())
    client.register(mar.name, workers=1)
    try:
        for case in read_golden(BytesIO(archive.read(mar).contents("golden.npz"))):
            found = client.predict("diabetes", case.inputs["input"].tolist())
            np.testing.assert_allclose(found, case.outputs["output"], rtol=1e-4)
    finally:
        client.unregister("diabetes")
