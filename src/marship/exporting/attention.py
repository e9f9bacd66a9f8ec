"""Attention of PyTorch's own modules, as it can be exported."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.modules import transformer


def _stated_causality(
    mask: torch.Tensor | None,  # noqa: ARG001  the replaced function's signature
    is_causal: bool | None = None,
    size: int | None = None,  # noqa: ARG001  the same
) -> bool:
    return bool(is_causal)


class _Exchanged:
    """What PyTorch had before the first thread exchanged it: the last one puts it back."""

    def __init__(self) -> None:
        self.lock, self.users = threading.Lock(), 0
        self.fused, self.detect = True, transformer._detect_is_causal_mask


_exchanged = _Exchanged()


@contextmanager
def plain() -> Iterator[None]:
    """Disable the fast path of nn.Transformer's modules, which cannot be exported.

    The fast path outputs zeros at padded positions, unlike the plain path, and its detection of
    a causal mask branches on the mask's values; the mask itself is applied either way.
    """
    with _exchanged.lock:
        if not _exchanged.users:
            _exchanged.fused = torch.backends.mha.get_fastpath_enabled()
            _exchanged.detect = transformer._detect_is_causal_mask  # there is no public switch
            torch.backends.mha.set_fastpath_enabled(False)
            transformer._detect_is_causal_mask = _stated_causality
        _exchanged.users += 1
    try:
        yield
    finally:
        with _exchanged.lock:
            _exchanged.users -= 1
            if not _exchanged.users:
                torch.backends.mha.set_fastpath_enabled(_exchanged.fused)
                transformer._detect_is_causal_mask = _exchanged.detect
