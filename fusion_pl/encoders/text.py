"""Pretrained text encoders."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor, nn

from fusion_pl.encoders.hub import read_pretrained, serialize_files
from fusion_pl.encoders.layer_mixing import Combine
from fusion_pl.encoders.pretrained import Freeze, Pooling, PretrainedEncoder
from fusion_pl.messages import error_reason, is_failure
from fusion_pl.processors import Length, TextProcessor
from fusion_pl.types import Encoded, UserError


@dataclass
class SubwordTokenizer(TextProcessor):
    """Tokenize texts and pad them to the longest text of the batch.

    Attributes:
        tokenizer: a tokenizer from transformers.
        max_tokens: maximum number of tokens; longer texts are truncated.
        vocab_size: size of the model's vocabulary.
    """

    tokenizer: Any
    max_tokens: int
    vocab_size: int

    def length(self, value: str) -> Length:
        """Return the number of tokens of a text, special tokens included."""
        with _explained_errors():
            ids = self.tokenizer(value, truncation=False, verbose=False)["input_ids"]
        return Length(len(ids), self.max_tokens, "tokens")

    def positions(self, value: str) -> list[NDArray[np.float64]]:
        """Return the characters of each token, none of special tokens; empty if the tokenizer does not tell."""
        if not self.tokenizer.is_fast:
            return []
        with _explained_errors():
            offsets = self.tokenizer(value, truncation=True, max_length=self.max_tokens, return_offsets_mapping=True)[
                "offset_mapping"
            ]
        return [np.array(offsets or [(0, 0)], np.float64)]

    def runner_settings(self) -> dict[str, Any]:
        """Return the settings of the runner.

        Raises:
            UserError: if the tokenizer is not one of the tokenizers library.
        """
        if not self.tokenizer.is_fast:
            raise UserError(
                f"{type(self.tokenizer).__name__} has no tokenizer.json, which the runner needs: use --format "
                "torch, or a model with such a file"
            )
        content = json.loads(self.tokenizer.backend_tokenizer.to_str())
        settings = {"pad": self.tokenizer.pad_token_id, "truncation_side": self.tokenizer.truncation_side}
        return {"kind": "SubwordText", "tokenizer": content, "max_tokens": self.max_tokens} | settings

    def __call__(self, values: Sequence[str], training: bool = False) -> dict[str, Tensor]:
        """Tokenize P strings; an empty string has at least one token.

        Raises:
            UserError: if the tokenizer fails, or does not belong to the model.
        """
        del training
        with _explained_errors():
            encoding = self.tokenizer(
                list(values),
                padding=True,
                truncation=True,
                max_length=self.max_tokens,
                return_attention_mask=True,
                return_token_type_ids=False,
                return_tensors="pt",
            )
        ids, mask = encoding["input_ids"].long(), encoding["attention_mask"].bool()
        if ids.shape[1] == 0:  # all texts are empty and the tokenizer adds no special tokens
            ids = ids.new_full((len(values), 1), self.tokenizer.pad_token_id)
            mask = torch.zeros_like(ids, dtype=torch.bool)
        if not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise UserError(
                f"the tokenizer returns token {int(ids.max())}, but the model has tokens 0 to {self.vocab_size - 1}: "
                "the tokenizer belongs to another model"
            )
        mask[:, 0] = True
        return {"input_ids": ids, "attention_mask": mask}


@contextmanager
def _explained_errors() -> Iterator[None]:
    """Convert the errors of a tokenizer to a ``UserError``."""
    try:
        yield
    except BaseException as error:  # tokenizers raises bare Exceptions and panics
        if not is_failure(error):
            raise
        raise UserError(f"the tokenizer cannot process a text: {error_reason(error)}") from error


class TextEncoder(PretrainedEncoder):
    """Encode text with a pretrained language model, with one token per subword.

    Args:
        max_tokens: maximum length in tokens, special tokens included; limited by the model's position embedding.
    """

    tower_path = ("text_model",)
    config_attribute = "text_config"
    example_value = "a"
    required_files = ("config.json", "tokenizer_config.json")

    def __init__(
        self,
        pretrained: str,
        weights: bool = True,
        freeze: Freeze = "none",
        pooling: Pooling = "mean",
        max_tokens: int = 128,
        hidden_layers: list[int] | None = None,
        combine: Combine | None = None,
    ) -> None:
        super().__init__(pretrained, weights, freeze, pooling, hidden_layers, combine)
        tokenizer = self._load_tokenizer()
        if max_tokens < 1:
            raise UserError(f"max_tokens is {max_tokens}, expected at least 1, such as 128")
        model: Any = self.model
        vocab_size = int(model.get_input_embeddings().num_embeddings)
        self.processor = SubwordTokenizer(tokenizer, min(max_tokens, self._max_positions() or max_tokens), vocab_size)
        self._finish_setup(tokenizer.cls_token is not None, [self.dim] * (len(self._find_blocks()[1]) + 1))

    def _select_auto_class(self, config: Any) -> Any:
        from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoModelForTextEncoding

        is_text_encoder = type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING  # such as T5 without its decoder
        return AutoModelForTextEncoding if is_text_encoder else super()._select_auto_class(config)

    def _load_tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        # Loader workers already run in parallel, and threads of a tokenizer would not exist in a forked worker.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        tokenizer = read_pretrained(AutoTokenizer.from_pretrained, self.source, "tokenizer")
        tokenizer.padding_side = "right"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.pad_token is None:
            raise UserError(f"pretrained: the tokenizer of {self.source} has no padding token: set its pad_token")
        self._file_contents |= serialize_files(tokenizer)
        return tokenizer

    def _max_positions(self) -> int | None:
        """Return the length of the position embedding; None if there is none."""
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Embedding) and name.endswith(("position_embeddings", "position_embedding")):
                return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        return None

    def differentiable_input(self) -> nn.Module:
        """Return the module that embeds tokens."""
        model: Any = self.model
        embedding: nn.Module = model.get_input_embeddings()
        return embedding

    def forward(self, input_ids: Int[Tensor, "B T"], attention_mask: Tensor) -> Encoded:  # type: ignore[override]
        """Encode P texts.

        Args:
            input_ids: token ids.
            attention_mask: True = real token.
        """
        out = self._run_model(input_ids=input_ids, attention_mask=attention_mask.long())
        return self._to_encoded(out.last_hidden_state, attention_mask, out.hidden_states)
