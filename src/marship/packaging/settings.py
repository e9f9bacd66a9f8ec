"""How packing is set: apart from the step, so that the command line loads at once."""

from dataclasses import dataclass
from pathlib import Path

from marship.settings import Settings, setting


@dataclass(frozen=True)
class PackageSettings(Settings):
    """How a model is packed, and how its workers run unless the server overrides it.

    Example:
        >>> marship.PackageSettings(name="tiny", max_workers=2).response_timeout_s
        60
    """

    name: str | None = setting(None, "name on the server; the recipe's, or the file's")
    version: str = setting("1.0", "version on the server, digits and dots")
    model_store: Path = setting(Path("model_store"), "folder that takes the archive")
    versioned: bool = setting(
        False, "name the file NAME-VERSION.mar: other versions stay beside it"
    )
    handler: Path | None = setting(
        None, "a file, or the name of one of marship's; else the recipe's, or tensors in and out"
    )
    variant: str | None = setting(None, "model variant to pack; the one that optimize chose")
    asset: tuple[str, ...] = setting((), "further file that the handler reads; may be repeated")
    option: tuple[str, ...] = setting(
        (), "a setting of the handler's own, as NAME=VALUE, like review=0.4; may be repeated"
    )
    min_workers: int = setting(1, "workers at start", minimum=1)
    max_workers: int = setting(1, "workers at most; cores are divided by it at first", minimum=1)
    profile: str = setting(
        "latency",
        "latency: one by one; throughput: batches of 32 within 1 ms",
        usual=("latency", "throughput"),
    )
    batch_size: int | None = setting(None, "requests run together; the profile's", minimum=1)
    max_batch_delay_ms: int | None = setting(
        None, "wait for a batch to fill, milliseconds; the profile's", minimum=1
    )
    response_timeout_s: int = setting(60, "a worker that takes longer is restarted", minimum=1)
    startup_timeout_s: int = setting(120, "a worker must load within this", minimum=1)
    client_timeout_s: int | None = setting(
        None,
        "the clients' timeout: requests of a batch that waited longer are dropped; by default none",
        minimum=1,
    )
    provider: tuple[str, ...] = setting(("cpu",), "cpu, cuda, tensorrt or openvino, best first")
    intra_op_threads: int | None = setting(None, "threads of one call; cores / workers", minimum=1)
    spinning: bool = setting(False, "idle threads spin: only for a worker alone on its cores")
    example: Path | None = setting(
        None,
        "inputs that an ONNX file takes, where it does not run on drawn ones: an npz by input "
        "name, a .json with one request or a list of them, or a folder of such files",
    )
    golden: str = setting(
        "synthetic",
        "golden cases: synthetic, nobody's data, or real, rows of the example, or where they were "
        "exported so",
        usual=("synthetic", "real"),
    )
    missing_values: str = setting(
        "auto",
        "null and NaN in float inputs: allow or refuse; any: infinity, too; auto asks the ONNX "
        "file's operators",
        usual=("auto", "allow", "refuse", "any"),
    )
    golden_request: tuple[str, ...] = setting(
        (),
        "a file with a request as clients send it, recorded with its response and replayed by "
        "every worker that loads; may be repeated",
    )
    proof_seconds: float = setting(
        60.0, "what the proof of an ONNX file's rows may cost", minimum=1
    )
    limit_s: int = setting(
        600, "an ONNX file that loads and runs longer than this is refused, seconds", minimum=1
    )
    seal: str | None = setting(
        None, "encrypt the model; the key from file:PATH, env:NAME or command:PROGRAM ..."
    )
