"""Pretrained text encoders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from fusion_pl.encoders.hub import read, saved
from fusion_pl.encoders.layer_mixing import Combine
from fusion_pl.encoders.pretrained import Freeze, Pooling, PretrainedEncoder
from fusion_pl.messages import is_failure, reason
from fusion_pl.types import Encoded, Kind, UserError


class TextProcessor:
    """Turns strings into token numbers, padded to the longest of the batch.

    Args:
        tokenizer: of transformers.
        max_tokens: the rest of a longer text is cut off.
        vocabulary: how many token numbers the model knows.
    """

    kind: Kind = "text"

    def __init__(self, tokenizer: Any, max_tokens: int, vocabulary: int) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.vocabulary = vocabulary

    def __call__(self, values: Sequence[str], training: bool = False) -> dict[str, Tensor]:
        """Tokenize P strings; an empty one has at least one token.

        Raises:
            UserError: where the tokenizer fails, or does not belong to the model.
        """
        del training
        try:
            made = self.tokenizer(
                list(values),
                padding=True,
                truncation=True,
                max_length=self.max_tokens,
                return_attention_mask=True,
                return_token_type_ids=False,
                return_tensors="pt",
            )
        except BaseException as error:  # the library raises bare Exceptions and panics
            if not is_failure(error):
                raise
            raise UserError(f"the tokenizer cannot process a text: {reason(error)}") from error
        ids, mask = made["input_ids"].long(), made["attention_mask"].bool()
        if ids.shape[1] == 0:  # nothing but empty strings, and a tokenizer that adds no special tokens
            ids = ids.new_full((len(values), 1), self.tokenizer.pad_token_id)
            mask = torch.zeros_like(ids, dtype=torch.bool)
        if not 0 <= int(ids.min()) <= int(ids.max()) < self.vocabulary:
            raise UserError(
                f"the tokenizer gives token {int(ids.max())}, and the model knows 0 to {self.vocabulary - 1}: they do "
                "not belong together"
            )
        mask[:, 0] = True
        return {"input_ids": ids, "attention_mask": mask}


class TextEncoder(PretrainedEncoder):
    """Encode text with a pretrained language model, one token a word piece.

    Args:
        pretrained: a folder, or a name on the hub.
        weights: whether to use its weights, or only its architecture.
        freeze: "all", "none", or how many blocks from the bottom (then the embeddings are frozen too).
        pooling: how tokens become one vector: their mean, their maximum, or the class token.
        max_tokens: longest text, in tokens with the special ones; no more than the model has positions for.
        hidden_layers: which of them become the tokens: 0 = embeddings, -1 = last block; None = the last block alone.
        combine: how several become one sequence: concat, sum or attention.

    Raises:
        UserError: where the model cannot be read, or an argument does not fit it.
    """

    tower = ("text_model",)
    part = "text_config"
    example = "a"
    needs = ("config.json", "tokenizer_config.json")

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
        tokenizer = self._tokenizer()
        if max_tokens < 1:
            raise UserError(f"max_tokens: {max_tokens} is not a number of tokens: give at least 1, such as 128")
        self.processor = TextProcessor(tokenizer, min(max_tokens, self._positions() or max_tokens), self._words())
        self._finish(tokenizer.cls_token is not None, [self.dim] * (len(self._blocks()[1]) + 1))

    def _auto_class(self, config: Any) -> Any:
        from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoModelForTextEncoding

        known = type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING  # T5 without its decoder
        return AutoModelForTextEncoding if known else super()._auto_class(config)

    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        # The loader's workers are the parallelism; a tokenizer's own threads would not survive their fork.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        tokenizer = read(AutoTokenizer.from_pretrained, self.source, "tokenizer")
        tokenizer.padding_side = "right"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.pad_token is None:
            raise UserError(f"pretrained: the tokenizer of {self.source} has no padding token: set its pad_token")
        self._files |= saved(tokenizer)
        return tokenizer

    def _words(self) -> int:
        """Return how many token numbers the embedding table holds."""
        model: Any = self.model
        return int(model.get_input_embeddings().num_embeddings)

    def _positions(self) -> int | None:
        """Return how many tokens the position table holds; None where positions are relative."""
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Embedding) and name.endswith(("position_embeddings", "position_embedding")):
                return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        return None

    def forward(  # type: ignore[override]  # names what the processor makes
        self, input_ids: Int[Tensor, "B T"], attention_mask: Tensor
    ) -> Encoded:
        """Encode P texts.

        Args:
            input_ids: token numbers.
            attention_mask: True = real token.
        """
        out = self._call(input_ids=input_ids, attention_mask=attention_mask.long())
        return self._encoded(out.last_hidden_state, attention_mask, out.hidden_states)
