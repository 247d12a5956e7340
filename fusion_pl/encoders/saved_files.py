"""Check the configuration, tokenizer and processor files of a checkpoint, which may be damaged or malicious."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fusion_pl.messages import error_reason, truncate
from fusion_pl.plain_data import walk
from fusion_pl.types import UserError

PROCESSOR_FILES = {"preprocessor_config.json", "processor_config.json"}
# JSON files whose keys are names of settings; in other JSON files, keys may be tokens.
SETTINGS_FILES = {"config.json", "tokenizer_config.json", "special_tokens_map.json"} | PROCESSOR_FILES
# Values of ``vocab_files_names`` in the tokenizer classes of transformers.
VOCABULARY_FILES = {"added_tokens.json", "bpe.codes", "byte_maps.json", "dict.txt", "emoji.json", "encoder.json"}
VOCABULARY_FILES |= {"entity_vocab.json", "merges.txt", "normalizer.json", "prophetnet.tokenizer", "target_vocab.json"}
VOCABULARY_FILES |= {"vocab-src.json", "vocab-tgt.json", "vocab.bpe", "vocab.json", "vocab.txt"}
VOCABULARY_FILES |= {"word_pronunciation.json", "word_shape.json"}
SENTENCEPIECE = re.compile(r"[\w.-]+\.(model|vocab|spm)")
IGNORED_FILES = {"chat_template.jinja", "chat_template.json", "generation_config.json", "README.md"}
CODE_FILES = re.compile(r".*\.(py\w?|so|dll|dylib|sh|bat|exe|pkl|pickle|joblib|bin|pth?|ckpt)", re.IGNORECASE)
# Settings that refer to code, repositories or attention kernels on the hub; none changes the architecture.
CODE_REFERENCES = {"auto_map", "custom_pipelines", "_name_or_path", "name_or_path", "_commit_hash", "chat_template"}
CODE_REFERENCES |= {"attn_implementation", "_attn_implementation", "experts_implementation", "kernel_config"}
MAX_FILE_SIZE = 2**26  # bytes
MAX_SETTING = 2**24  # largest number in a configuration
UNBOUNDED_SETTINGS = {"rope_theta", "theta", "max_length", "model_max_length"}  # may be larger: they size no tensor
MAX_TEXT_GROWTH = 64  # factor by which a normalizer may lengthen a text
MAX_SPECIAL_TOKENS = 64  # number of tokens that a template may add to a text
# Allowed properties of a token; the tokenizers library would print a message for any other property.
TOKEN_KEYS = {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special", "__type"}
MAX_IMAGE_SIZE = 4096  # pixels per side
MAX_SAMPLES = 2**22  # audio samples per clip: four minutes at 16 kHz
MAX_SPECTROGRAM_SIZE = 2**24  # entries; spectrograms of Whisper and CLAP have about a million

_walk = partial(walk, max_depth=100, max_values=500_000)


def is_allowed_file(name: str) -> bool:
    """Return whether a checkpoint may contain a file of this name."""
    return name in SETTINGS_FILES | VOCABULARY_FILES | {"tokenizer.json"} or SENTENCEPIECE.fullmatch(name) is not None


def remove_code_references(name: str, content: bytes) -> bytes:
    """Remove settings that refer to code or to other repositories from the content of a file."""
    if name not in SETTINGS_FILES:
        return content
    settings = json.loads(content)
    cleaned = _remove_code_references(settings)
    return content if cleaned == settings else json.dumps(cleaned, indent=2).encode()


def check_saved_files(folder: str) -> None:
    """Check the files of a checkpoint, and remove references to code from them.

    Files with unknown names are deleted, because earlier versions of fusion-pl stored all files of a tokenizer.

    Raises:
        UserError: if a file contains code or a pickle, or a setting exceeds the limits of known models.
    """
    for path in sorted(Path(folder).iterdir()):
        if CODE_FILES.fullmatch(path.name):
            raise UserError(
                f"the checkpoint contains a file {path.name}, which fusion-pl does not write: it was tampered with"
            )
        if not is_allowed_file(path.name):
            path.unlink()
            continue
        if path.stat().st_size > MAX_FILE_SIZE:
            raise UserError(f"the checkpoint's {path.name} is larger than {MAX_FILE_SIZE} bytes, the limit of a file")
        if path.suffix == ".json":
            try:
                content = path.read_bytes()
                _check_content(path.name, json.loads(content))
                path.write_bytes(remove_code_references(path.name, content))
            except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
                raise UserError(f"the checkpoint's {path.name} cannot be used: {error_reason(error)}") from error


def _remove_code_references(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _remove_code_references(item) for key, item in value.items() if key not in CODE_REFERENCES}
    return [_remove_code_references(item) for item in value] if isinstance(value, list) else value


def _check_content(name: str, content: Any) -> None:
    if name in VOCABULARY_FILES:
        return
    if not isinstance(content, dict):
        raise UserError("the file is not a JSON object")
    if name == "tokenizer.json":
        _check_tokenizer(content)
    tokens = content.get("added_tokens") if name == "tokenizer.json" else content
    if any("content" in token and not set(token) <= TOKEN_KEYS for token in _iterate_dicts(tokens)):
        raise UserError(f"a token has a property other than {', '.join(sorted(TOKEN_KEYS))}")
    if name != "config.json" and name not in PROCESSOR_FILES:
        return
    for key, value in _walk(content):
        if isinstance(value, int) and abs(value) > MAX_SETTING and key not in UNBOUNDED_SETTINGS:
            raise UserError(f"{truncate(key)} is {truncate(str(value))}, expected at most {MAX_SETTING}")
        if (key == "backbone" and isinstance(value, str)) or (key == "model_type" and str(value).startswith("timm")):
            raise UserError(f"{key} {truncate(str(value))!r} is a model of another repository, which is not read")
    if name in PROCESSOR_FILES:
        _check_processor(content)


def _check_processor(settings: dict[str, Any]) -> None:
    """Check the settings that determine the size of processed images and clips."""
    for key in ("size", "crop_size"):
        sides = settings.get(key)
        for side in sides.values() if isinstance(sides, dict) else [sides]:
            if side is not None and not 1 <= side <= MAX_IMAGE_SIZE:
                raise UserError(f"{key} is {side}, expected 1 to {MAX_IMAGE_SIZE} pixels")
    if "sampling_rate" not in settings:
        return

    def number(key: str, default: float) -> float:
        return float(settings.get(key) or default)

    rate, window = number("sampling_rate", 16e3), number("n_fft", number("fft_window_size", 512.0))
    hop, bands = number("hop_length", rate / 100), max(number("feature_size", 1.0), number("num_mel_bins", 1.0))
    longest = max(number("n_samples", 0.0), number("nb_max_samples", 0.0), number("chunk_length", 0.0) * rate)
    longest = max(longest, number("max_length_s", 0.0) * rate, number("max_length", 0.0) * hop)
    if not (1000 <= rate <= 384_000 and 1 <= hop <= longest + rate and 1 <= window <= 2**16 and bands <= 2**12):
        raise UserError("sampling_rate, hop_length, n_fft and feature_size are not those of a spectrogram")
    if longest > MAX_SAMPLES or bands * window > MAX_SPECTROGRAM_SIZE or longest / hop * window > MAX_SPECTROGRAM_SIZE:
        raise UserError("the longest clip or its spectrogram is larger than those of any known model")


def _check_tokenizer(content: dict[str, Any]) -> None:
    """Check how much the tokenizer may lengthen a text, and refuse data on which the tokenizers library aborts."""
    for part in ("normalizer", "pre_tokenizer"):
        steps = list(_iterate_dicts(content.get(part)))
        grown = math.prod(1 + len(step["content"]) for step in steps if step.get("type") == "Replace")
        added = sum(len(step.get("prepend") or "") for step in steps if step.get("type") == "Prepend")
        if grown > MAX_TEXT_GROWTH or added > MAX_TEXT_GROWTH:
            raise UserError(f"the {part} lengthens a text more than {MAX_TEXT_GROWTH} times")
        for step in steps:
            if step.get("type") == "Precompiled":
                table = base64.b64decode(step["precompiled_charsmap"], validate=True)
                trie = int.from_bytes(table[:4], "little")
                if trie % 4 or not 4 <= trie <= len(table) - 4:
                    raise UserError("the normalizer's table is truncated")
    template = content.get("post_processor") or {}
    ids = [len(value) for key, value in _walk(template) if key == "ids" and isinstance(value, list)]
    special_tokens = sum("SpecialToken" in step for step in _iterate_dicts(template))
    if max(len(ids), sum(ids), special_tokens) > MAX_SPECIAL_TOKENS:
        raise UserError(f"the post_processor adds more than {MAX_SPECIAL_TOKENS} tokens to a text")


def _iterate_dicts(content: Any) -> Iterator[dict[str, Any]]:
    return (value for _, value in _walk(content) if isinstance(value, dict))
