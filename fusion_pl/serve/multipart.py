"""Split a multipart body into its parts, in memory."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from fusion_pl.messages import error_reason
from fusion_pl.types import UserError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every damaged body, which gets an answer


@dataclass
class Part:
    """One part of a body.

    Attributes:
        name: name of the field.
        is_file: whether the part has the name of a file, which is not used.
        content: bytes of the part.
    """

    name: str = ""
    is_file: bool = False
    content: bytes = b""


def split_parts(content_type: str, body: bytes, max_parts: int) -> list[Part]:
    """Return the parts of a body.

    Args:
        content_type: header with the boundary.
        body: the complete body.
        max_parts: largest number of parts.

    Raises:
        UserError: if the body is damaged or cut, or has too many parts.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise UserError("the Content-Type has no boundary")
    collector = _Collector(max_parts)
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise UserError(error_reason(error)) from error
    if not collector.is_complete:  # the parser does not raise an error for a body that is cut
        raise UserError("the final boundary is missing")
    return collector.parts


class _Collector:
    """Collect the parts while the parser calls back."""

    def __init__(self, max_parts: int) -> None:
        self.parts: list[Part] = []
        self.is_complete = False
        self._max_parts = max_parts
        self._header = self._value = b""
        self._content = bytearray()

    def callbacks(self) -> MultipartCallbacks:
        """Return the functions that the parser calls."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_to_header,
            "on_header_value": self._add_to_value,
            "on_header_end": self._end_header,
            "on_part_data": self._add_to_content,
            "on_part_end": self._end,
            "on_end": self._complete,
        }

    def _begin(self) -> None:
        if len(self.parts) == self._max_parts:
            raise UserError(f"it has more than {self._max_parts} parts")
        self.parts.append(Part())
        self._content = bytearray()

    def _add_to_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            options = parse_options_header(self._value)[1]
            self.parts[-1].name = options.get(b"name", b"").decode("utf-8", "replace")
            self.parts[-1].is_file = b"filename" in options
        self._header = self._value = b""

    def _add_to_content(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def _end(self) -> None:
        self.parts[-1].content = bytes(self._content)

    def _complete(self) -> None:
        self.is_complete = True
