"""An ONNX Runtime session: its threads and providers, warm-up, and golden replay."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import onnxruntime as ort

from marship.contract import (
    GOLDEN_FILE,
    Arrays,
    Contract,
    agree,
    largest_difference,
    read_golden,
)
from marship.errors import LoadError, ModelError, SealError
from marship.serving.model import heap, memory, weights
from marship.serving.model.sealed import SUFFIX, Opener

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
ERRORS, FATAL = 3, 4
"""ONNX Runtime's levels of its log, onnxruntime_c_api.h, OrtLoggingLevel."""
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")

_COPIES = 3
"""A model's size on the disk, so many times, is free before a second one is made: loading takes
up to 2.7 times (docs/sealing.md)."""

_KEPT_BACK = "an error that is kept back, for it could tell of the sealed graph."


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How a session runs, as `marship:` in model-config.yaml says.

    Attributes:
        providers: Names from `PROVIDERS`, the preferred one first.
        intra_op_threads: Threads of one call; None is the usable cores divided by workers.
        workers: How many workers share the machine, to divide its cores by: those that the
            archive states at most, until those that there are have been counted (`share`).
        spinning: Whether idle threads spin where there are more cores than workers: lower
            latency alone, much slower in company.
        device_id: The accelerator to run on; None on CPU.
        share_weights: Whether workers map one copy of the weights; on the CPU alone.
    """

    providers: tuple[str, ...] = ("cpu",)
    intra_op_threads: int | None = None
    workers: int = 1
    spinning: bool = False
    device_id: int | None = None
    share_weights: bool = True

    @classmethod
    def from_config(
        cls, section: Mapping[str, Any], workers: int = 1, device_id: int | None = None
    ) -> "SessionSettings":
        """Read them from `marship:` in the parsed model-config.yaml.

        Raises:
            LoadError: A value cannot be meant.
        """
        providers = section.get("providers", ["cpu"])
        if not isinstance(providers, list) or not set(providers) <= set(PROVIDERS) or not providers:
            raise LoadError(
                f"marship.providers in model-config.yaml must list some of {', '.join(PROVIDERS)}, "
                f"got {providers!r}."
            )
        threads = section.get("intra_op_threads")
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise LoadError(
                "marship.intra_op_threads in model-config.yaml must be a whole number from 1, "
                f"got {threads!r}. Leave it out for cores divided by workers."
            )
        share = section.get("share_weights", True)
        if not isinstance(share, bool):
            raise LoadError(
                f"marship.share_weights in model-config.yaml must be true or false, got {share!r}."
            )
        return cls(
            providers=tuple(providers),
            intra_op_threads=threads,
            workers=workers,
            spinning=bool(section.get("spinning", False)),
            device_id=device_id,
            share_weights=share,
        )

    @property
    def threads(self) -> int:
        """Threads of one call, resolved for this machine."""
        return self.intra_op_threads or max(1, usable_cores() // self.workers)

    @property
    def spins(self) -> bool:
        """Whether idle threads spin: never where others wait for their core."""
        return self.spinning and self.has_spare_cores

    @property
    def has_spare_cores(self) -> bool:
        """Whether the host keeps a core to itself while every worker is busy on one."""
        return usable_cores() > self.workers


def usable_cores(quota_file: Path = CGROUP_QUOTA) -> int:
    """Cores this process may use: its affinity, and a container's quota rounded up.

    The quota is `cpu.max` of cgroup v2: microseconds of CPU time and the period, or `max`.
    """
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = quota_file.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, -(-int(quota) // int(period))))


class Session:
    """A loaded model, which is what its contract says it is.

    Args:
        folder: Holds the contract's files.
        contract: What the model takes and gives.
        settings: Threads and providers.
        opener: Opens the files where they are sealed. ONNX Runtime's messages are kept back
            then, for they name parts of the graph.

    Raises:
        LoadError: A file is missing or altered, a provider is missing, or ONNX Runtime
            refuses the model.
        SealError: A sealed file cannot be opened.
    """

    def __init__(
        self,
        folder: Path,
        contract: Contract,
        settings: SessionSettings,
        opener: Opener | None = None,
    ) -> None:
        self.contract = contract
        self.settings = settings
        self._folder, self._opener = folder, opener
        self._is_sealed = opener is not None
        self._output_names = [spec.name for spec in contract.outputs]
        _check_providers(settings)
        try:
            if opener is None:
                self._session, self.is_shared = _open(folder, contract, settings)
            else:
                self._session, self.is_shared = _open_sealed(opener, contract, settings), False
        except (LoadError, SealError):
            raise
        except Exception as error:  # ONNX Runtime's own exceptions share no narrower base
            if self._is_sealed:
                raise LoadError(f"ONNX Runtime must load the model, got {_KEPT_BACK}") from None
            raise LoadError(f"ONNX Runtime must load the model, got: {error}") from error
        heap.release_freed()
        preferred = PROVIDERS[settings.providers[0]]
        if preferred not in self._session.get_providers():
            raise LoadError(
                f"provider {settings.providers[0]} must start on this machine, but ONNX Runtime "
                "fell back to others. Its driver or libraries are missing: see the log above."
            )

    def run(self, inputs: Arrays, options: ort.RunOptions | None = None) -> Arrays:
        """Run the model once; tensors by name, as the contract says.

        Raises:
            ModelError: ONNX Runtime could not run the model on these inputs.
        """
        try:
            outputs = self._session.run(self._output_names, inputs, options)
        except Exception as error:  # ONNX Runtime's own exceptions share no narrower base
            if self._is_sealed:
                raise ModelError(f"ONNX Runtime must run the model, got {_KEPT_BACK}") from None
            raise ModelError(f"ONNX Runtime must run the model, got: {error}") from error
        return dict(zip(self._output_names, outputs, strict=True))

    def renew(self, settings: SessionSettings) -> bool:
        """Go over to a session with other threads, if these settings ask for them.

        It is made beside the one in use and proven on the golden cases, and calls change over
        one by one: for as long as that takes the model is in memory twice, unless it is shared.

        Returns:
            Whether the settings hold now; False where memory is too small for a second model
            at the moment.

        Raises:
            LoadError: The second session does not answer as the model does; the first one stays.
            SealError: A sealed file cannot be opened.
        """
        if (settings.threads, settings.spins) != (self.settings.threads, self.settings.spins):
            if not self.is_shared and not memory.has_room(self._size_bytes() * _COPIES):
                return False
            fresh = Session(self._folder, self.contract, settings, self._opener)
            opener = self._opener
            golden = opener.stream(GOLDEN_FILE) if opener else self._folder / GOLDEN_FILE
            fresh.replay_golden(golden)
            self._session, self.is_shared = fresh._session, fresh.is_shared
            del fresh, golden
            heap.release_freed()
        self.settings = settings
        return True

    def _size_bytes(self) -> int:
        suffix = SUFFIX if self._is_sealed else ""
        return sum((self._folder / f"{n}{suffix}").stat().st_size for n in self.contract.files)

    def replay_golden(self, source: Path | BinaryIO) -> list[float]:
        """Warm up on the golden inputs and compare with the golden outputs.

        Args:
            source: `golden.npz`, or a stream of its bytes where that file is sealed.

        Returns:
            Of each case the seconds that a second call took, warm.

        Raises:
            LoadError: An output is further from the reference's than the tolerance allows.
        """
        seconds: list[float] = []
        tolerance = self.contract.tolerance
        shrinking = _shrinking(self._session.get_providers()[0])
        try:
            cases = read_golden(source)
            for index, case in enumerate(cases):
                self.run(case.inputs)
                started = time.perf_counter()
                outputs = self.run(case.inputs, shrinking)
                seconds.append(time.perf_counter() - started)
                if not agree(outputs, case.outputs, tolerance):
                    absolute, relative = largest_difference(outputs, case.outputs)
                    raise LoadError(
                        f"golden case {index} must agree within {tolerance}, got a "
                        f"difference of {absolute:g} ({relative:g} relative). This host computes "
                        "another answer than the model that was trained: package a float32 "
                        "variant, or on this hardware."
                    )
        except ModelError as error:
            raise LoadError(f"{GOLDEN_FILE} must replay, got: {error}") from error
        return seconds


def _open(
    folder: Path, contract: Contract, settings: SessionSettings
) -> tuple[ort.InferenceSession, bool]:
    """Open the copy that workers share, or the model itself, proven to be the contract's.

    Returns:
        The session, and whether it maps shared weights.
    """
    if (
        settings.share_weights
        and settings.providers == ("cpu",)
        and weights.worth_sharing(folder, contract)
    ):
        shared = weights.open_shared(folder, contract, _options(settings))
        if shared is not None:
            return shared, True
    weights.check_digest(folder, contract)
    alone = ort.InferenceSession(
        str(folder / contract.files[0]), _options(settings), providers=_providers(settings)
    )
    return alone, False


def _open_sealed(
    opener: Opener, contract: Contract, settings: SessionSettings
) -> ort.InferenceSession:
    """Open the model from memory; no copy of its weights is made for workers to share.

    Weights stand outside the graph, as files that are given from memory: ONNX Runtime would
    hold those inside it twice, and once more as it rearranges them.
    """
    options = _options(settings)
    options.log_severity_level = FATAL
    graph, *outside = contract.files
    # onnxruntime_session_options_config_keys.h: no arena, in which freed weights would stay; the
    # peak was 2.6 times the model's size with it, and is 2.1 times without
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    buffers = [opener.open(name) for name in outside]  # they must live until the session exists
    if buffers:
        sizes = [buffer.nbytes for buffer in buffers]
        options.add_external_initializers_from_files_in_memory(outside, buffers, sizes)
    return ort.InferenceSession(
        opener.open(graph).tobytes(), options, providers=_providers(settings)
    )


def _check_providers(settings: SessionSettings) -> None:
    available = ort.get_available_providers()
    missing = [name for name in settings.providers if PROVIDERS[name] not in available]
    if missing:
        have = [name for name, full in PROVIDERS.items() if full in available]
        raise LoadError(
            f"provider {missing[0]} must be in the installed ONNX Runtime {ort.__version__}, which "
            f"has {', '.join(have)}. Install the build that has it, or change marship.providers."
        )


def _options(settings: SessionSettings) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS
    spin = "1" if settings.spins else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spin)
    return options


def _shrinking(provider: str) -> ort.RunOptions:
    """Options of a run behind which memory goes back that it alone needed.

    Golden cases have many rows, and an arena keeps what its largest run took: 1.5 GB of 1.9
    in a worker of Whisper tiny.
    """
    options = ort.RunOptions()
    if provider == PROVIDERS["cpu"]:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _providers(settings: SessionSettings) -> list[str | tuple[str, dict[str, str]]]:
    device = {} if settings.device_id is None else {"device_id": str(settings.device_id)}
    return [
        (PROVIDERS[name], device) if name in ("cuda", "tensorrt") else PROVIDERS[name]
        for name in settings.providers
    ]
