"""An ONNX Runtime session: its threads and providers, warm-up, and golden replay."""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import onnxruntime as ort

from marship.contract import GOLDEN_FILE, Arrays, Contract, read_golden
from marship.contract.tolerance import agree, largest_difference, used_share
from marship.errors import LoadError, ModelError, SealError
from marship.serving.model import custom_ops, heap, memory, weights
from marship.serving.model.sealed import SUFFIX, Opener

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
ERRORS, FATAL = 3, 4
"""ONNX Runtime's levels of its log, onnxruntime_c_api.h, OrtLoggingLevel."""
CGROUPS = Path("/sys/fs/cgroup")

_COPIES = 3
"""Free memory required for a second session, in multiples of the model's size on disk: loading
takes up to 2.7 times (docs/sealing.md)."""

_KEPT_BACK = "an error that is kept back, for it could tell of the sealed graph."


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Settings of a session, from `marship:` in model-config.yaml.

    Attributes:
        providers: Names from `PROVIDERS`, the preferred one first.
        intra_op_threads: Threads of one call; None is the usable cores divided by workers.
        workers: Number of workers to divide the cores by: the archive's maximum, until the actual
            ones have been counted (`share`).
        spinning: Whether idle threads spin if there are more cores than workers: lower latency on
            an idle machine, much slower on a busy one.
        device_id: The accelerator to run on; None on CPU.
        share_weights: Whether workers map one copy of the weights; on CPU only.
        libraries: Files with custom operators, verified: see `custom_ops`.
    """

    providers: tuple[str, ...] = ("cpu",)
    intra_op_threads: int | None = None
    workers: int = 1
    spinning: bool = False
    device_id: int | None = None
    share_weights: bool = True
    libraries: tuple[Path, ...] = ()

    @classmethod
    def from_config(
        cls, section: Mapping[str, Any], workers: int = 1, device_id: int | None = None
    ) -> "SessionSettings":
        """Read them from `marship:` in the parsed model-config.yaml.

        Raises:
            LoadError: A value is invalid.
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
        """Whether idle threads spin: never if others need the core."""
        return self.spinning and self.has_spare_cores

    @property
    def has_spare_cores(self) -> bool:
        """Whether the host has a core left while every worker is busy on one."""
        return usable_cores() > self.workers

    @property
    def uses_all_cores(self) -> bool:
        """Whether calls of all workers at once leave no core of the host."""
        return self.providers == ("cpu",) and self.threads * self.workers >= usable_cores()


def usable_cores(cgroups: Path = CGROUPS) -> int:
    """The number of usable cores: CPU affinity, and a container's quota rounded up.

    Args:
        cgroups: Where the container's control group is mounted.
    """
    cores = len(os.sched_getaffinity(0))
    quota = _quota(cgroups)
    return cores if quota is None else max(1, min(cores, -(-quota[0] // quota[1])))


def _quota(cgroups: Path) -> tuple[int, int] | None:
    """Microseconds of processor time, and the period that they are for; None without a limit.

    Both are in `cpu.max` of cgroup v2, the first as `max` without a limit, or in two files of
    v1, the first as -1 (Linux, admin-guide/cgroup-v2 and scheduler/sched-bwc).
    """
    v1 = cgroups / "cpu"
    for files in ((cgroups / "cpu.max",), (v1 / "cpu.cfs_quota_us", v1 / "cpu.cfs_period_us")):
        with suppress(OSError, ValueError):
            quota, period = " ".join(file.read_text() for file in files).split()
            return None if quota in ("max", "-1") else (int(quota), int(period))
    return None


class Session:
    """A loaded model, verified to be the contract's.

    Args:
        folder: The folder with the contract's files.
        contract: The model's contract.
        settings: Threads and providers.
        opener: Decrypts the files if they are sealed. ONNX Runtime's messages are suppressed
            then, as they name parts of the graph.

    Attributes:
        sample: One row of inputs that the model takes; empty until golden cases are replayed.
        drift: By how much golden outputs were off here, as a share of the tolerance.

    Raises:
        LoadError: A file is missing or modified, a provider is missing, or ONNX Runtime cannot
            load the model.
        SealError: A sealed file cannot be decrypted.
    """

    drift: float = 0.0

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
        self.sample: Arrays = {}
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
        """Run the model once, with tensors by name.

        Raises:
            ModelError: ONNX Runtime failed on these inputs.
        """
        try:
            outputs = self._session.run(self._output_names, inputs, options)
        except Exception as error:  # ONNX Runtime's own exceptions share no narrower base
            if self._is_sealed:
                raise ModelError(f"ONNX Runtime must run the model, got {_KEPT_BACK}") from None
            raise ModelError(f"ONNX Runtime must run the model, got: {error}") from error
        return dict(zip(self._output_names, outputs, strict=True))

    def renew(self, settings: SessionSettings) -> bool:
        """Replace the session by one with another number of threads, if the settings changed.

        The new one is created beside the one in use and checked with the golden cases, and calls
        switch over one by one: meanwhile the model is in memory twice, unless it is shared.

        Returns:
            Whether the settings apply now; False if there is not enough memory for a second model
            at the moment.

        Raises:
            LoadError: The new session fails the golden cases; the old one stays.
            SealError: A sealed file cannot be decrypted.
        """
        if (settings.threads, settings.spins) != (self.settings.threads, self.settings.spins):
            if not self.is_shared and not memory.has_room(self._size_bytes() * _COPIES):
                return False
            fresh = Session(self._folder, self.contract, settings, self._opener)
            fresh.replay_golden(fresh.golden_source())
            self._session, self.is_shared = fresh._session, fresh.is_shared
            del fresh
            heap.release_freed()
        self.settings = settings
        return True

    def _size_bytes(self) -> int:
        suffix = SUFFIX if self._is_sealed else ""
        return sum((self._folder / f"{n}{suffix}").stat().st_size for n in self.contract.files)

    def golden_source(self) -> Path | BinaryIO:
        """The model's own golden cases, for `replay_golden`."""
        return self._opener.stream(GOLDEN_FILE) if self._opener else self._folder / GOLDEN_FILE

    def replay_golden(self, source: Path | BinaryIO) -> list[float]:
        """Warm up on the golden inputs and compare with the golden outputs.

        Args:
            source: `golden.npz`, or a stream of its bytes if that file is sealed.

        Returns:
            The seconds of a second, warm call of each case.

        Raises:
            LoadError: An output differs from the reference by more than the tolerance.
        """
        seconds: list[float] = []
        tolerance = self.contract.tolerance
        self.drift = 0.0
        shrinking = _shrinking(self._session.get_providers()[0])
        try:
            cases = read_golden(source)
            self.sample = _sample(cases[0].inputs, self.contract) if cases else {}
            for index, case in enumerate(cases):
                self.run(case.inputs)
                started = time.perf_counter()
                outputs = self.run(case.inputs, shrinking)
                seconds.append(time.perf_counter() - started)
                self.drift = max(self.drift, used_share(outputs, case.outputs, tolerance))
                if not agree(outputs, case.outputs, tolerance):
                    absolute, relative = largest_difference(outputs, case.outputs)
                    raise LoadError(
                        f"golden case {index} must agree within {tolerance}, got a "
                        f"difference of {absolute:g} ({relative:g} relative). This host computes "
                        "other outputs than the model that was trained: package a float32 "
                        "variant, or on this hardware."
                    )
        except ModelError as error:
            raise LoadError(f"{GOLDEN_FILE} must replay, got: {error}") from error
        return seconds


def _open(
    folder: Path, contract: Contract, settings: SessionSettings
) -> tuple[ort.InferenceSession, bool]:
    """Open the copy that workers share, or the model itself, verified by the contract's digest.

    Returns:
        The session, and whether it maps shared weights.
    """
    if (
        settings.share_weights
        and settings.providers == ("cpu",)
        and weights.worth_sharing(folder, contract)
    ):
        shared = weights.open_shared(folder, contract, _options(settings), settings.libraries)
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
    """Open the model from memory, without a copy of the weights that workers share.

    Weights are external to the graph, as files provided from memory: ONNX Runtime would hold
    internal ones twice, and once more while prepacking them.
    """
    options = _options(settings)
    options.log_severity_level = FATAL
    graph, *outside = contract.files
    # onnxruntime_session_options_config_keys.h: no arena, in which freed weights would stay; the
    # peak was 2.6 times the model's size with it, and is 2.1 times without
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    buffers = [
        opener.open(name) for name in outside
    ]  # they must be alive until the session is created
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
    custom_ops.register(options, settings.libraries)
    return options


def _sample(inputs: Arrays, contract: Contract) -> Arrays:
    """The smallest request of a golden case, copied: the rest of it need not stay in memory."""
    if contract.batch_axis is None:
        return inputs
    return {name: array[: contract.least_rows].copy() for name, array in inputs.items()}


def _shrinking(provider: str) -> ort.RunOptions:
    """Run options that shrink the memory arena after the run.

    Golden cases have many rows, and an arena keeps the memory of its largest run: 1.5 GB of 1.9
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
