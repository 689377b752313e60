"""The one file that a form brings: held in memory, within a limit, its name a text to show and never a path."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from claris_kaggle.errors import PatchError, UsageError
from claris_kaggle.images import largest_file, too_large

FIELD = "image"
NEEDED = f"a form (multipart/form-data) with one file, named {FIELD}, is needed"
# What a form adds to its file, generously.
FORM_BYTES = 64 * 1024
LONGEST_NAME = 100


class MemoryParser(MultiPartParser):
    """A parser whose files never go to the disk, whatever their size; the size is limited before."""

    spool_max_size = 0


async def read_upload(request: Request, max_pixels: int) -> tuple[str, bytes]:
    """The plain name and the bytes of the file that was sent.

    Args:
        max_pixels: of the largest image, from which the limit on bytes follows.
    Raises:
        UsageError: no form, or one with anything else in it.
        OversizeError: more bytes than the largest image needs; they are not kept.
        PatchError: there is no file, or nothing in it.
    """
    if parse_options_header(request.headers.get("content-type"))[0] != b"multipart/form-data":
        raise UsageError("no form was sent", NEEDED)
    try:
        async with aclosing(limited(request, max_pixels)) as stream:
            form = await MemoryParser(request.headers, stream, max_files=1, max_fields=0).parse()
    except (MultiPartException, FormParserError) as error:
        why = getattr(error, "message", str(error)).rstrip(".")
        raise UsageError(f"the form cannot be taken ({why})", NEEDED) from error
    upload = form.get(FIELD)
    name, content = (upload.filename, await upload.read()) if isinstance(upload, UploadFile) else ("", b"")
    await form.close()
    if not content:
        raise PatchError("no file was sent, or an empty one", NEEDED, "Choose an image")
    return plain_name(name or ""), content


async def limited(request: Request, max_pixels: int) -> AsyncGenerator[bytes, None]:
    """The body in parts, as long as it can be that of the largest image.

    Raises:
        OversizeError: it says that it is longer, or turns out to be.
    """
    limit = largest_file(max_pixels) + FORM_BYTES
    said = int(request.headers.get("content-length", 0))
    if said > limit:
        raise too_large("the upload", f"{said:,} bytes", max_pixels)
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise too_large("the upload", f"more than {limit:,} bytes", max_pixels)
        yield part


def plain_name(name: str) -> str:
    """The last part of a file's name, without what cannot be printed; `image` if nothing is left.

    >>> plain_name("../../etc/passwd"), plain_name("C:\\\\scans\\\\a\\x00b.png"), plain_name("../")
    ('passwd', 'ab.png', 'image')
    """
    last = re.split(r"[/\\]", name)[-1]
    return "".join(character for character in last if character.isprintable())[-LONGEST_NAME:].strip() or "image"
