"""The `exif` column: what img2dataset stores, made with the library it uses."""

import io
import json
import logging

from curate import jpeg

# It logs every oddity of every file.
logging.getLogger("exifread").setLevel(logging.CRITICAL)

_APP1 = 0xE1


def read_exif(data: bytes) -> str | None:
    """Return the EXIF tags as a JSON object of strings, "{}" where there are none, null where they cannot be read.

    They describe the file as downloaded: an orientation among them has been applied to the stored pixels.
    """
    if data.startswith(jpeg.SIGNATURE) and not any(segment.marker == _APP1 for segment in jpeg.read_segments(data)):
        return "{}"
    import exifread

    try:
        tags = exifread.process_file(io.BytesIO(data), details=False)
        return json.dumps({name: str(value).strip() for name, value in tags.items() if value is not None})
    except Exception:  # noqa: BLE001 - a parser of hostile bytes that raises whatever they lead to; the tags are a courtesy
        return None
