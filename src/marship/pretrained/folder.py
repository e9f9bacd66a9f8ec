"""What lies in a folder of transformers: its configuration, and the task that follows from it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from marship import storage, texts
from marship.contract import digest_files
from marship.errors import DataError, UsageError
from marship.serving.texts.answers import CLASSIFY, EXTRACT, TAG

CONFIG_FILE = "config.json"
CLASSIFY_PICTURES = "image-classification"
HEADS = {
    CLASSIFY: "ForSequenceClassification",
    TAG: "ForTokenClassification",
    CLASSIFY_PICTURES: "ForImageClassification",
    EXTRACT: "Model",
}
"""By task, how the names of the classes end that do it."""
TASK_ADVICE = f"Name the task if it has weights for one, such as --task {EXTRACT}."
GENERATE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForVision2Seq")
_LONGEST_REASON = 400
_CRITICAL = 50  # of the standard library's logging
_EVIDENCE = ("*.json", "*.safetensors", "*.bin", "*.txt", "*.model")


@dataclass(frozen=True)
class ModelFolder:
    """A folder with a model, `config.json` and a tokenizer or an image processor.

    Attributes:
        path: The folder.
        task: What the model is served for, one of `HEADS`.
    """

    path: Path
    task: str

    @classmethod
    def at(cls, path: Path, task: str | None = None, advice: str = TASK_ADVICE) -> "ModelFolder":
        """The folder at a path.

        Args:
            path: The folder.
            task: None takes the task of the architecture in config.json.
            advice: What to do where the architecture is of no task.

        Raises:
            UsageError: There is no such folder, or the task is not supported or unknown.
            DataError: config.json cannot be read.
        """
        if not path.is_dir():
            raise UsageError(
                f"{path} must be a folder with a model of transformers, got none there. Nothing is "
                "downloaded: save the model with save_pretrained(), or clone its repository."
            )
        architectures = _architectures(path)
        return cls(path, checked(task, path) if task else task_of(architectures, path, advice))

    @property
    def is_text(self) -> bool:
        """Whether the model reads texts; else pictures."""
        return self.task != CLASSIFY_PICTURES

    @cached_property
    def config(self) -> Any:  # noqa: ANN401  a class for each kind of model
        """The configuration as transformers reads it.

        Raises:
            UsageError: transformers is missing, or does not know the model.
        """
        return opened("AutoConfig", self.path)

    def evidence(self) -> dict[str, object]:
        """What the archive says of its origin: the SHA-256 of each file."""
        files = sorted({file for form in _EVIDENCE for file in self.path.rglob(form)})
        digests = {str(f.relative_to(self.path)): digest_files(f) for f in files if f.is_file()}
        return {"folder": self.path.name, "task": self.task, "files": digests}


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object in a file of the folder.

    Raises:
        DataError: It cannot be read, or holds no object.
    """
    value = storage.read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold an object, got {type(value).__name__}.")
    return value


def opened(kind: str, path: Path, **options: object) -> Any:  # noqa: ANN401  a class of many
    """What `transformers.<kind>.from_pretrained` reads of a folder.

    Raises:
        UsageError: transformers is missing, or cannot read it, or would have to run its code.
    """
    try:
        import transformers
    except ImportError as error:
        raise UsageError(
            "transformers must be installed to read its models, got no such package. "
            "Run: pip install 'marship[recipes]'"
        ) from error
    with quiet():
        try:
            return getattr(transformers, kind).from_pretrained(
                str(path), local_files_only=True, trust_remote_code=False, **options
            )
        except Exception as error:  # transformers raises errors of many unrelated types
            raise UsageError(_unreadable(path, error)) from error


def reason_of(error: Exception) -> str:
    """What transformers or PyTorch says is wrong, in one line, without a full stop."""
    words = " ".join(str(error).split()).partition(" If you were trying to load it from")[0]
    return f"{type(error).__name__}: {words[:_LONGEST_REASON].rstrip('.! ') or 'no reason'}"


def _unreadable(path: Path, error: Exception) -> str:
    files = sorted(file for form in _EVIDENCE for file in path.glob(form))
    if pointers := [file.name for file in files if texts.is_lfs_pointer(file)]:
        return (
            f"{path} must hold its files, got pointers of Git LFS: {', '.join(pointers)}. Fetch "
            f"them: git -C {path} lfs pull"
        )
    if "trust_remote_code" in str(error):
        return (
            f"{path} must be a model that transformers itself defines, got one with code of its "
            "own, which is not run. Write a function that builds it, and export that: marship "
            "export model.py:build --example example.npz"
        )
    return f"{path} must be read by transformers, got {reason_of(error)}."


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing bars and warnings."""
    from transformers import logging

    level = logging.get_verbosity()
    logging.set_verbosity(_CRITICAL)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)


def checked(task: str, path: Path) -> str:
    """The task.

    Raises:
        UsageError: It is not supported.
    """
    if task not in HEADS:
        raise UsageError(f"task must be one of {', '.join(HEADS)}, got {task!r} for {path}.")
    return task


def task_of(architectures: Sequence[str], path: Path, advice: str) -> str:
    """The task of a model by the name of its class.

    Raises:
        UsageError: It is none that is supported, or there is no name.
    """
    for name in architectures:
        task = next((task for task, end in HEADS.items() if name.endswith(end)), None)
        if task is not None and not name.endswith(GENERATE):
            return task
    names = ", ".join(architectures) or "none"
    what = (
        "a model that generates, which is not exported"
        if any(name.endswith(GENERATE) for name in architectures)
        else "one whose task is not known"
    )
    raise UsageError(
        f"{path} must be a model for {', '.join(HEADS)}, got {names}: {what}. {advice}"
    )


def _architectures(path: Path) -> list[str]:
    if not (path / CONFIG_FILE).is_file():
        raise UsageError(
            f"{path} must hold {CONFIG_FILE} of a model of transformers, got none. Name the folder "
            "that save_pretrained() wrote."
        )
    about = read_object(path / CONFIG_FILE)
    if isinstance(name := about.get("architecture"), str) and "architectures" not in about:
        raise UsageError(
            f"{path} must be a folder of transformers, got one of timm. Export it by the model's "
            f"name: marship export timm:{name} --weights {path / 'model.safetensors'}"
        )
    names = about.get("architectures") or []
    return [str(name) for name in names] if isinstance(names, list) else []
