"""The mel spectrogram of speech models: equal to torch's own, in the graph as in PyTorch."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marship.fit.recipe import resolve
from recipes import REPOSITORY

AudioFormat = tuple[int, int, int, int, str]
FORMS: list[AudioFormat] = [(8000, 200, 80, 40, "constant"), (16000, 400, 160, 80, "reflect")]


@pytest.fixture(scope="module")
def logmel() -> ModuleType:
    """training/logmel.py."""
    return sys.modules[resolve(str(REPOSITORY / "training/logmel.py:mel_filters")).__module__]


def noise(rate: int, seconds: float, rows: int = 3) -> torch.Tensor:
    """Loud and 80 dB fainter noise by turns, so that rounding would show."""
    generator = torch.Generator().manual_seed(1)
    audio = 0.1 * torch.randn(rows, round(rate * seconds), generator=generator)
    audio[:, rate // 4 : rate // 2] *= 1e-4
    return audio


def by_stft(logmel: ModuleType, audio: torch.Tensor, form: AudioFormat) -> torch.Tensor:
    """The same with torch.stft."""
    rate, window, hop, bands, edge = form
    hann = torch.hann_window(window)
    spectrum = torch.stft(audio, window, hop, window=hann, pad_mode=edge, return_complex=True)
    filters = torch.from_numpy(logmel.mel_filters(rate, window, bands, rate / 2))
    return filters @ spectrum.abs().square()


@pytest.mark.parametrize("form", FORMS)
def test_it_is_torchs_spectrogram(logmel: ModuleType, form: AudioFormat) -> None:
    """In float32 its logarithm is within 1e-4 of that with torch.stft, loud or faint."""
    audio = noise(form[0], 1.0)
    got, want = logmel.MelPower(*form)(audio), by_stft(logmel, audio, form)
    assert got.shape == want.shape
    assert (got.log() - want.log()).abs().max() < 1e-4


@pytest.mark.parametrize("form", FORMS)
def test_the_graph_gives_it_too(logmel: ModuleType, form: AudioFormat, tmp_path: Path) -> None:
    """With rows and samples of any number, ONNX Runtime's logarithm is within 1e-4 of torch's."""
    rate = form[0]
    path = tmp_path / "mel.onnx"
    dims = {"audio": {0: torch.export.Dim("batch"), 1: torch.export.Dim("samples", min=rate // 2)}}
    program = torch.onnx.export(
        logmel.MelPower(*form), (noise(rate, 1.0),), dynamo=True, dynamic_shapes=dims, verbose=False
    )
    assert program is not None
    program.save(path)
    session = onnxruntime.InferenceSession(path)
    for rows, seconds in ((1, 0.6), (2, 1.7)):
        audio = noise(rate, seconds, rows)
        (got,) = session.run(None, {"audio": audio.numpy()})
        want = by_stft(logmel, audio, form)
        assert np.abs(np.log(got) - want.log().numpy()).max() < 1e-4


def test_whispers_features_can_be_made_of_it(logmel: ModuleType) -> None:
    """Its logarithm, cut and scaled, is what transformers' feature extractor makes of a sound."""
    import transformers

    audio = noise(16000, 30.0, rows=1)
    extractor = transformers.WhisperFeatureExtractor()
    want = extractor(audio[0].numpy(), sampling_rate=16000).input_features[0]
    power = logmel.MelPower(*FORMS[1])(audio)[0, :, :-1]
    mel = power.clamp(min=1e-10).log10()
    got = (mel.clamp(min=float(mel.max()) - 8) + 4) / 4
    assert np.abs(got.numpy() - want).max() < 1e-3


@given(st.integers(4000, 48000), st.integers(8, 80), st.floats(0.2, 1.5))
@settings(max_examples=30, deadline=None)
def test_the_bands_cover_the_audible_range(
    logmel: ModuleType, rate: int, bands: int, top: float
) -> None:
    """Between the first band's middle and the last one's, neighbours fill each other up."""
    window, top_hz = rate // 2, top * rate / 2  # bins of 2 Hz: the triangles show
    filters = logmel.mel_filters(rate, window, bands, top_hz)
    corners_hz = logmel.mel_to_hz(np.linspace(0, logmel.hz_to_mel(np.array(top_hz)), bands + 2))
    heights = filters * ((corners_hz[2:] - corners_hz[:-2]) / 2)[:, None]
    bins_hz = np.arange(window // 2 + 1) * rate / window
    inside = (bins_hz >= corners_hz[1]) & (bins_hz <= corners_hz[-2])
    np.testing.assert_allclose(heights.sum(0)[inside], 1, atol=1e-3)


def test_bands_are_the_same_at_another_rate(logmel: ModuleType) -> None:
    """Up to 4 kHz samples at 8 and 16 kHz have equal bands, and above that the first have none."""
    half = logmel.MelPower(8000, 200, 80, 80, top_hz=8000)
    whole = logmel.MelPower(*FORMS[1])
    assert (half.top_hz, whole.top_hz) == (8000, 8000)
    torch.testing.assert_close(half.filters, whole.filters[:, :101], rtol=0, atol=0)
    assert (half.filters.sum(1) == 0).any()


@given(st.floats(0, 24000))
def test_the_mel_scale_has_an_inverse(logmel: ModuleType, hz: float) -> None:
    """There and back is the same frequency."""
    assert logmel.mel_to_hz(logmel.hz_to_mel(np.array(hz))) == pytest.approx(hz, abs=1e-6)
