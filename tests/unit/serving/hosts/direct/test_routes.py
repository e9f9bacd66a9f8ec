"""What the direct address says of a model."""

import json

from marship.contract import Contract, TensorSpec
from marship.serving.hosts.direct import routes
from marship.serving.service import Service

CONTRACT = Contract((TensorSpec("ids", "int64", ("batch", "length")),), (), (), "", 17)


class Letters(Service):
    """A handler whose requests are no tensors."""

    def advice(self) -> object:
        """A request of the right form."""
        return {"text": "a letter"}


def test_metadata_names_tensors_only_where_requests_hold_them() -> None:
    """A handler of texts would refuse the tokens that its model takes."""

    def facts(service: Service) -> dict[str, object]:
        reply = routes.metadata("m", ["1"], CONTRACT, service.own_advice())
        found: dict[str, object] = json.loads(reply.body)
        return found

    assert facts(Service())["inputs"] == [{"name": "ids", "datatype": "INT64", "shape": [-1, -1]}]
    found = facts(Letters())
    assert found["inputs"] == []
    assert found["parameters"] == {"expects": {"text": "a letter"}}
