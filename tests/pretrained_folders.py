"""Small models of transformers with random weights, as folders with tokenizers trained here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

TRAINED_ON = (
    "The film was wonderful, and the music was even better than the story.",
    "Anna Schmidt moved from Berlin to a small company in Lisbon last year.",
    "I would not buy it again: it broke after two days, and nobody answered my letter!",
    "A man is asleep on the sofa. Nobody is awake. No.",
)
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,  # an export takes as long as its layers are many
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 130,
    "initializer_range": 0.5,  # so that what is read matters
}
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def word_pieces() -> transformers.PreTrainedTokenizerFast:
    """BERT's kind of tokenizer."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=[*BERT_TOKENS])
    tokenizer.train_from_iterator(TRAINED_ON, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), BERT_TOKENS, strict=True))
    return _fast(tokenizer, names, ["input_ids", "token_type_ids", "attention_mask"])


def byte_pairs() -> transformers.PreTrainedTokenizerFast:
    """RoBERTa's kind of tokenizer, whose padding is token 1."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[*ROBERTA_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TRAINED_ON, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = dict(zip(("cls", "pad", "sep", "unk", "mask"), ROBERTA_TOKENS, strict=True))
    return _fast(tokenizer, names | {"bos": "<s>", "eos": "</s>"}, ["input_ids", "attention_mask"])


def _fast(
    tokenizer: tokenizers.Tokenizer, names: dict[str, str], inputs: list[str]
) -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=inputs,
        model_max_length=512,
        **{f"{name}_token": token for name, token in names.items()},
    )


def write_texts(
    folder: Path,
    kind: str,
    head: str,
    tokenizer: Callable[[], transformers.PreTrainedTokenizerFast] = word_pieces,
    **settings: Any,
) -> Path:
    """A model for texts.

    Args:
        folder: Where it is saved.
        kind: The prefix of its classes, such as Bert.
        head: How the name of its class ends, such as ForSequenceClassification.
        tokenizer: Makes its tokenizer.
        settings: Of its configuration, beside `SIZES`.
    """
    torch.manual_seed(1)
    read = tokenizer()
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(read), pad_token_id=read.pad_token_id, **SIZES | settings
    )
    getattr(transformers, f"{kind}{head}")(config).eval().save_pretrained(folder)
    read.save_pretrained(folder)
    return folder


def write_pictures(folder: Path, processor: dict[str, Any] | None = None, **settings: Any) -> Path:
    """A vision transformer of 32 x 32 pixels with an image processor."""
    torch.manual_seed(2)
    sizes = {k: v for k, v in SIZES.items() if k != "max_position_embeddings"}
    config = transformers.ViTConfig(image_size=32, patch_size=8, **sizes | settings)
    transformers.ViTForImageClassification(config).eval().save_pretrained(folder)
    prepare = {"size": {"height": 32, "width": 32}} | (processor or {})
    transformers.ViTImageProcessorPil(**prepare).save_pretrained(folder)
    return folder


def scores(answer: Any) -> np.ndarray[Any, Any]:
    """The scores of rows."""
    return np.array([row["score"] for row in answer])
