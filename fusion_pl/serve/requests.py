"""Read the body of a request within limits, and parse it into samples."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from fusion_pl.messages import did_you_mean, error_reason, join_names
from fusion_pl.processors import Processor
from fusion_pl.serve.limits import Limits
from fusion_pl.serve.values import kind_of
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
    too_large = RequestError(413, f"the body has more than {limits.megabytes:g} MB: send fewer samples", closing)
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
    if sum(body.count(character) for character in b",[{") > limits.values:
        raise RequestError(422, f"the body has more than {limits.values:,} values: send fewer samples")
    try:
        content = json.loads(body, parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeated_keys)
    except (ValueError, RecursionError) as error:  # ValueError: also no UTF-8, and numbers of 5,000 digits
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error_reason(error)
        raise RequestError(422, f"the body is not JSON ({reason})") from error
    if not isinstance(content, dict):
        raise RequestError(422, 'the body is not an object: expected {"samples": [{…}, …]} or one sample')
    samples = content["samples"] if content.keys() == {"samples"} else None
    if not isinstance(samples, list):
        return Samples([content], is_list=False)
    if not samples or not all(isinstance(sample, dict) for sample in samples):
        raise RequestError(422, '"samples" is not a list of objects from input name to value')
    if len(samples) > limits.samples:
        raise RequestError(422, f"the request has {len(samples)} samples, expected at most {limits.samples}")
    return Samples(samples, is_list=True)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key is given twice")
    return content


async def parse_multipart(request: Request, body: bytes, processors: dict[str, Processor], limits: Limits) -> Samples:
    """Return the one sample of a multipart body: a part per input, a file or a field.

    Raises:
        RequestError: if the body is damaged, or a part is no input or is repeated.
    """

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        request.headers, stream(), max_files=len(processors), max_fields=len(processors), max_part_size=limits.bytes
    )
    parser.spool_max_size = limits.bytes + 1  # the parts stay in memory
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError, LookupError) as error:
        reason = error_reason(error)
        raise RequestError(
            422, f"the body is not valid multipart/form-data with one part per input ({reason})"
        ) from error
    try:
        return Samples([await _read_parts(form, processors, limits)], is_list=False)
    finally:
        await form.close()


async def _read_parts(form: FormData, processors: dict[str, Processor], limits: Limits) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, part in form.multi_items():
        if name not in processors:
            known = join_names(processors)
            raise RequestError(
                422, f"this model has no input {name!r}{did_you_mean(name, processors)}; it takes: {known}"
            )
        if name in values:
            raise RequestError(422, f"the input {name!r} is given twice: multipart requests contain one sample")
        content = await part.read() if isinstance(part, UploadFile) else part
        try:
            values[name] = _part_value(processors[name], content, limits)
        except (ValueError, RecursionError) as error:
            raise RequestError(422, f"the part {name!r}: {error_reason(error)}") from error
    return values


def _part_value(processor: Processor, content: bytes | str, limits: Limits) -> Any:
    """Return the value of a part: text or JSON by the kind of its input, otherwise as it is."""
    kind = kind_of(processor)
    if kind == "text":
        return content.decode() if isinstance(content, bytes) else content
    if kind in ("vector", "json"):
        content = content.encode() if isinstance(content, str) else content
        if sum(content.count(character) for character in b",[{") > limits.values:
            raise UserError(f"it has more than {limits.values:,} values")
        return json.loads(content, parse_constant=_refuse_constant)
    return content
