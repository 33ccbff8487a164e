"""Web pages as one file: plots, images and videos inside, no script, nothing from the network.

Every text passes the template's autoescaping, and the page's content security policy lets it load nothing and run
nothing. Templates extend `base.html`, which has the style sheet.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.quality import charts
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.files import complete_file
from flowleap.policy.core.versions import flowleap_version


def check_name(option: str, path: str | os.PathLike[str]) -> Path:
    """Return where a page can be written; raise before anything is read for it if it cannot."""
    page = Path(path).expanduser()
    if page.suffix.lower() not in (".html", ".htm"):
        raise FlowleapError(
            f"{option}={page}: the name of a page ends in .html, for instance {option}=report.html"
        )
    if page.is_dir():
        raise FlowleapError(f"{option}={page} is a folder: give the page another name")
    return page


def write_page(option: str, path: Path, text: str) -> None:
    """Write a page that was given as `option`; it replaces an older one only when it is complete."""
    with complete_file(path, option) as temporary:
        temporary.write_text(text, encoding="utf-8")


def fill(template: Path, context: Mapping[str, Any]) -> str:
    """Fill a template, which may extend `base.html`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    options: dict[str, Any] = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    loader = FileSystemLoader([template.parent, Path(__file__).parent])
    environment = Environment(loader=loader, autoescape=True, **options)
    return environment.get_template(template.name).render(
        {"version": flowleap_version(), "colours": charts.COLOURS, **context}
    )


def safe(svg: str) -> Any:
    """Mark a chart as HTML: `charts` has escaped the texts in it."""
    from markupsafe import Markup

    return Markup(svg)


def data_uri(kind: str, data: bytes) -> str:
    """Bytes of a media type (`image/jpeg`) as an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def jpeg(image: NDArray[np.uint8], width: int, height: int) -> str:
    """Pixels [H, W, 3] or [H, W] as a data URI, no larger than that; its shape stays."""
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((width, height))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return data_uri("image/jpeg", buffer.getvalue())
