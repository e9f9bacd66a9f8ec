"""EfficientNet-Lite0 is the network that its weights were published with."""

import io
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet

from marship.fit.recipe import resolve
from published import put
from recipes import REPOSITORY


@pytest.fixture(scope="module")
def lite() -> ModuleType:
    """training/efficientnet_lite.py."""
    return sys.modules[resolve(str(REPOSITORY / "training/efficientnet_lite.py:load")).__module__]


@pytest.fixture
def published(lite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EfficientNet:
    """The authors' own definition, with random weights that lie in the cache as theirs do."""
    torch.manual_seed(0)
    model = EfficientNet.from_name("efficientnet-lite0").eval()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # as after training: none is 0 and 1
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    weights = io.BytesIO()
    torch.save(model.state_dict(), weights)
    monkeypatch.setenv("MARSHIP_CACHE", str(tmp_path / "cache"))
    put(lite, "WEIGHTS", {lite.WEIGHTS_MEMBER: weights.getvalue()}, monkeypatch)
    return model


def test_it_predicts_as_the_published_definition(lite: ModuleType, published: EfficientNet) -> None:
    """With equal weights both give the same logits for the same pictures."""
    pictures = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        wanted = published(pictures)
        got = lite.load().eval()(pictures)
    assert wanted.abs().max() > 0.01
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)


def test_a_new_head_leaves_the_features(lite: ModuleType, published: EfficientNet) -> None:
    """Fine-tuning for other classes begins with the published features and a new last layer."""
    model = lite.load(classes=7).eval()
    pictures = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        assert model(pictures).shape == (1, 7)
        wanted = lite.load().eval()
        assert torch.equal(
            model.head(model.blocks(model.stem(pictures))),
            wanted.head(wanted.blocks(wanted.stem(pictures))),
        )
    assert sum(p.numel() for p in published.parameters()) == sum(
        p.numel() for p in wanted.parameters()
    )


def test_statistics_follow_within_a_short_fine_tuning(lite: ModuleType) -> None:
    """After some forty steps on other pictures than ImageNet's, the network normalises by those."""
    model = lite.EfficientNetLite0(3).train()
    (norm,) = [layer for layer in model.stem.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    norm.running_mean.fill_(5.0)
    pictures = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(40):
            model(pictures)
        mean = model.stem[0][0](pictures).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, mean, rtol=0, atol=0.1)
