"""Which configuration, tokenizer and processor files travel in a checkpoint, and what of them is obeyed."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fusion_pl.messages import reason, short
from fusion_pl.plain_data import walk
from fusion_pl.types import UserError

# Files whose keys are settings; the keys of the other JSON files are words.
SETTINGS = {"config.json", "tokenizer_config.json", "special_tokens_map.json"}
SETTINGS |= {"preprocessor_config.json", "processor_config.json"}
# What transformers' tokenizers name in ``vocab_files_names``.
WORDS = {"added_tokens.json", "bpe.codes", "byte_maps.json", "dict.txt", "emoji.json", "encoder.json", "merges.txt"}
WORDS |= {"entity_vocab.json", "normalizer.json", "target_vocab.json", "vocab-src.json", "vocab-tgt.json", "vocab.json"}
WORDS |= {"prophetnet.tokenizer", "vocab.bpe", "vocab.txt", "word_pronunciation.json", "word_shape.json"}
MODELS = re.compile(r"[\w.-]+\.(model|vocab|spm)")  # of sentencepiece
UNNEEDED = {"chat_template.jinja", "chat_template.json", "generation_config.json", "README.md"}
CODE = re.compile(r".*\.(py\w?|so|dll|dylib|sh|bat|exe|pkl|pickle|joblib|bin|pth?|ckpt)", re.IGNORECASE)
# Names of code, of other repositories and of attention kernels from the hub. None changes what the files describe.
IGNORED = {"auto_map", "custom_pipelines", "_name_or_path", "name_or_path", "_commit_hash", "chat_template"}
IGNORED |= {"attn_implementation", "_attn_implementation", "experts_implementation", "kernel_config"}
BYTES = 2**26  # of a file
LARGEST = 2**24  # of a configuration's numbers
UNBOUNDED = {"rope_theta", "theta", "max_length", "model_max_length"}  # size nothing that is built
GROWTH = 64  # factor by which a normalizer may lengthen a text: three replacements of one character by two make 8
SPECIAL = 64  # tokens that a template adds to a text
TOKEN = {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special", "__type"}  # others are printed
SIDE = 4096  # of a picture, in pixels
SAMPLES = 2**22  # of a clip: four minutes at 16 kHz
SPECTRUM = 2**24  # numbers of a spectrogram: Whisper's and CLAP's have about a million

_walk = partial(walk, max_depth=100, max_values=500_000)


def travels(name: str) -> bool:
    """Return whether a checkpoint carries a file of this name."""
    return name in SETTINGS | WORDS | {"tokenizer.json"} or MODELS.fullmatch(name) is not None


def without_code(name: str, content: bytes) -> bytes:
    """Leave out of a file of settings what names code or other repositories."""
    if name not in SETTINGS:
        return content
    given = json.loads(content)
    kept = _drop(given)
    return content if kept == given else json.dumps(kept, indent=2).encode()


def check_folder(folder: str) -> None:
    """Check the files that came in a checkpoint, and leave out what must not be obeyed.

    Other files are removed: earlier versions embedded whatever a tokenizer had saved.

    Raises:
        UserError: for a file of code or a pickle, and for one that asks for more than any model needs.
    """
    for path in sorted(Path(folder).iterdir()):
        if not travels(path.name) and not CODE.fullmatch(path.name):
            path.unlink()
            continue
        if not travels(path.name):
            raise UserError(
                f"the checkpoint holds a file {path.name}, which fusion-pl does not write: it was tampered with"
            )
        if path.stat().st_size > BYTES:
            raise UserError(f"the checkpoint's {path.name} is larger than any that is known")
        if path.suffix == ".json":
            try:
                content = path.read_bytes()
                _check(path.name, json.loads(content))
                path.write_bytes(without_code(path.name, content))
            except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
                raise UserError(f"the checkpoint's {path.name} cannot be used: {reason(error)}") from error


def _drop(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _drop(item) for key, item in value.items() if key not in IGNORED}
    return [_drop(item) for item in value] if isinstance(value, list) else value


def _check(name: str, content: Any) -> None:
    if name in WORDS:
        return
    if not isinstance(content, dict):
        raise UserError("it is not a JSON object")
    if name == "tokenizer.json":
        _check_tokenizer(content)
    tokens = content.get("added_tokens") if name == "tokenizer.json" else content
    if any("content" in one and not set(one) <= TOKEN for one in _dicts(tokens)):
        raise UserError("a token has properties that tokenizers do not have")
    if name not in {"config.json", "preprocessor_config.json", "processor_config.json"}:
        return
    for key, value in _walk(content):
        if isinstance(value, int) and abs(value) > LARGEST and key not in UNBOUNDED:
            raise UserError(f"{short(key)} is {short(str(value))}, beyond what any model has")
        if (key == "backbone" and isinstance(value, str)) or (key == "model_type" and str(value).startswith("timm")):
            raise UserError(f"{key} {short(str(value))!r} names a model of another repository, which is not read")
    if name != "config.json":
        _check_processor(content)


def _check_processor(settings: dict[str, Any]) -> None:
    """Bound what a picture or a clip becomes before the model sees it."""
    for key in ("size", "crop_size"):
        sides = settings.get(key)
        for side in sides.values() if isinstance(sides, dict) else [sides]:
            if side is not None and not 1 <= side <= SIDE:
                raise UserError(f"{key} is {side}, expected 1 to {SIDE} pixels")
    if "sampling_rate" not in settings:
        return

    def number(key: str, default: float) -> float:
        return float(settings.get(key) or default)

    rate, window = number("sampling_rate", 16e3), number("n_fft", number("fft_window_size", 512.0))
    hop, bands = number("hop_length", rate / 100), max(number("feature_size", 1.0), number("num_mel_bins", 1.0))
    longest = max(number("n_samples", 0.0), number("nb_max_samples", 0.0), number("chunk_length", 0.0) * rate)
    longest = max(longest, number("max_length_s", 0.0) * rate, number("max_length", 0.0) * hop)
    if not (1000 <= rate <= 384_000 and 1 <= hop <= longest + rate and 1 <= window <= 2**16 and bands <= 2**12):
        raise UserError("it describes no spectrogram: check sampling_rate, hop_length, n_fft and feature_size")
    if longest > SAMPLES or bands * window > SPECTRUM or longest / hop * window > SPECTRUM:
        raise UserError("a clip would become larger than with any model that is known")


def _check_tokenizer(content: dict[str, Any]) -> None:
    """Bound how much longer a text becomes, and refuse what makes the tokenizer's library end the process."""
    for part in ("normalizer", "pre_tokenizer"):
        steps = [value for _, value in _walk(content.get(part)) if isinstance(value, dict)]
        grown = math.prod(1 + len(step["content"]) for step in steps if step.get("type") == "Replace")
        added = sum(len(step.get("prepend") or "") for step in steps if step.get("type") == "Prepend")
        if grown > GROWTH or added > GROWTH:
            raise UserError(f"its {part} lengthens a text more than {GROWTH} times")
        for step in steps:
            if step.get("type") == "Precompiled":
                table = base64.b64decode(step["precompiled_charsmap"], validate=True)
                trie = int.from_bytes(table[:4], "little")
                if trie % 4 or not 4 <= trie <= len(table) - 4:
                    raise UserError("its normalizer's table is cut off")
    template = content.get("post_processor") or {}
    ids = [len(value) for key, value in _walk(template) if key == "ids" and isinstance(value, list)]
    if len(ids) > SPECIAL or sum(ids) > SPECIAL or sum("SpecialToken" in v for v in _dicts(template)) > SPECIAL:
        raise UserError(f"its post_processor adds more than {SPECIAL} tokens to a text")


def _dicts(content: Any) -> Iterator[dict[str, Any]]:
    return (value for _, value in _walk(content) if isinstance(value, dict))
