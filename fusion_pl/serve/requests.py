"""Read the body of a request within limits, and parse it into samples."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from fusion_pl.messages import error_reason
from fusion_pl.processors import Processor
from fusion_pl.serve.limits import Limits
from fusion_pl.serve.multipart import Part, split_parts
from fusion_pl.serve.values import json_type, kind_of
from fusion_pl.types import UserError

JSON, MULTIPART = "application/json", "multipart/form-data"


class RequestError(HTTPException):
    """A request that is refused: the status code and one sentence."""


class Samples(NamedTuple):
    """Samples of a request.

    Attributes:
        values: input name -> value, for each sample.
        is_list: whether the client sent a list, and gets a list.
    """

    values: list[dict[str, Any]]
    is_list: bool


def media_type(request: Request) -> str:
    """Return the type of the body.

    Raises:
        RequestError: if it is neither JSON nor multipart.
    """
    name = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if name not in (JSON, MULTIPART):
        raise RequestError(415, f"the Content-Type of a request is {JSON} or {MULTIPART}")
    return name


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return the body; a larger one is refused before it is in memory.

    Raises:
        RequestError: if the body is too large or arrives too slowly, or the client closes the connection.
    """
    closing = {"Connection": "close"}  # the rest of the body is not read
    advice = "send smaller files or fewer samples, or start the server with larger --limits.megabytes"
    too_large = RequestError(413, f"the body has more than {limits.megabytes:g} MB: {advice}", closing)
    length = request.headers.get("content-length", "")
    if length and not (length.isascii() and length.isdecimal()):
        raise RequestError(422, "the Content-Length is not a number", closing)
    if length and int(length[:20]) > limits.bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.upload_seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > limits.bytes:
                    raise too_large
                body += chunk
    except TimeoutError as error:
        raise RequestError(408, f"the body did not arrive within {limits.upload_seconds:g} s", closing) from error
    except ClientDisconnect as error:
        raise RequestError(400, "the client closed the connection before the body arrived", closing) from error
    return bytes(body)


def parse_json(body: bytes, limits: Limits) -> Samples:
    """Return the samples of a JSON body: ``{"samples": [{…}, …]}``, or one sample ``{…}``.

    Raises:
        RequestError: if the body is not JSON, has too many values, or is no object.
    """
    try:
        content = _load_json(body, limits)
    except ValueError as error:  # also no UTF-8, and numbers of 5,000 digits
        raise RequestError(422, f"the body is not JSON ({error_reason(error)})") from error
    if not isinstance(content, dict):
        raise RequestError(422, 'the body is not an object: expected {"samples": [{…}, …]} or one sample')
    samples = content["samples"] if content.keys() == {"samples"} else None
    if not isinstance(samples, list):
        return Samples([content], is_list=False)
    if not samples:
        raise RequestError(422, '"samples" is empty: send at least one sample')
    for index, sample in enumerate(samples):
        if not isinstance(sample, dict):
            expected = "expected an object from input name to value"
            raise RequestError(422, f"samples[{index}] is {json_type(sample)}, {expected}")
    if len(samples) > limits.samples:
        raise RequestError(422, f"the request has {len(samples)} samples, expected at most {limits.samples}")
    return Samples(samples, is_list=True)


def _load_json(content: bytes, limits: Limits) -> Any:
    if sum(content.count(character) for character in b",[{") > limits.values:
        raise ValueError(f"it has more than {limits.values:,} values")
    try:
        return json.loads(content, parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeated_keys)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key is given twice")
    return content


def parse_multipart(content_type: str, body: bytes, processors: Mapping[str, Processor], limits: Limits) -> Samples:
    """Return the one sample of a multipart body: a part per input, a file or a field.

    Raises:
        RequestError: if the body is damaged or cut, has too many parts, or a part is repeated or cannot be decoded.
    """
    values: dict[str, Any] = {}
    try:
        for part in split_parts(content_type, body, len(processors) + 1):  # one with a wrong name may be there
            if part.name in values:
                raise UserError(f"the input {part.name!r} is given twice, but multipart requests contain one sample")
            processor = processors.get(part.name)  # a part without an input is an error of the sample, as in JSON
            values[part.name] = part.content if processor is None else _part_value(processor, part, limits)
    except UserError as error:
        raise RequestError(422, f"the body is not multipart/form-data with one part per input: {error}") from error
    return Samples([values], is_list=False)


def _part_value(processor: Processor, part: Part, limits: Limits) -> Any:
    """Return the value of a part: text or JSON by the kind of its input; a file as bytes, or base64 in a field."""
    kind = kind_of(processor)
    if part.is_file and kind not in ("text", "vector", "json"):
        return part.content
    is_json = kind in ("vector", "json")
    try:
        return _load_json(part.content, limits) if is_json else part.content.decode()
    except ValueError as error:
        expected = "JSON" if is_json else "a text in UTF-8"
        raise RequestError(422, f"the part {part.name!r} is not {expected} ({error_reason(error)})") from error
