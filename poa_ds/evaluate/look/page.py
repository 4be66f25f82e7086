"""The page of `poa-ds look`: tables of pictures that lie in it, no program, no network."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from poa_ds.evaluate.bank import THUMB, Bank

SIDE, HEAD = 128, 42  # pixels of a map, and of that of a head: three in a row
STYLE = """
body{font:15px system-ui,sans-serif;margin:24px;background:#f6f6f3;color:#1c1e21;max-width:1400px}
td,th{padding:4px 6px;text-align:center;font-size:13px} img{border-radius:5px;display:block}
.heads{display:flex;flex-wrap:wrap;gap:1px;width:128px}
.wide{overflow-x:auto} .pixels{image-rendering:pixelated}
.t{display:inline-block;width:56px;height:56px;background-size:cover;border-radius:4px}
.map{position:relative;width:min(600px,90vw);aspect-ratio:1;border:1px solid #8886;margin:8px 0}
.map .t{position:absolute;width:8%;height:8%}
@media(prefers-color-scheme:dark){body{background:#14161a;color:#e8e9eb}}
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class View:
    """What one size sees of B images; arrays lie in 0 .. 1.

    near: of every image (cosine, number in the bank), best first. places (B, 2): in the map.
    """

    name: str
    colours: np.ndarray  # (B, rows, columns, 3)
    attention: np.ndarray | None  # (B, rows, columns), of a network with a class token
    heads: np.ndarray | None  # (B, heads, rows, columns), shown where they are given
    near: Sequence[Sequence[tuple[float, int]]]
    places: np.ndarray


def page(
    title: str,
    about: str,
    keys: Sequence[str],
    images: np.ndarray,
    views: Sequence[View],
    shown: int,
    bank: Bank | None = None,
) -> str:
    """The document; images (B, S, S, 3) uint8, `shown` of them in the tables.

    bank: where neighbours are other images than these.
    """
    thumbs = [_thumb("i", n, x) for n, x in enumerate(images)]
    small = [_small("i", n, key) for n, key in enumerate(keys)]
    others = small
    if bank:
        used = sorted({m for v in views for row in v.near[:shown] for _, m in row})
        thumbs += [_thumb("r", n, bank.thumbs[n]) for n in used]
        others = [_small("r", n, key) for n, key in enumerate(bank.keys)]
    what = "tokens" if _attend(views) else "features"
    of = f" of {len(others):,} others" if bank else ""
    parts = [
        f"<h2>Patch features{' and attention of the class token' * _attend(views)}</h2>",
        "<p>Colours: three principal components of the patch features of all images together, "
        f"those of each size turned onto those of the last. {_of_attention(views)}</p>",
        _maps(keys, images, views, shown),
        f"<h2>Nearest images{of}, by the cosine of the class {what}</h2>",
        "<p>The same picture under another name is left out.</p>",
        _neighbours(small, others, views, shown),
        f"<h2>Maps: two principal components of the class {what}</h2>",
        "<p>Of each size turned onto those of the last.</p>",
    ]
    parts += [f"<h3>{html.escape(v.name)}</h3>{_map(small, v.places)}" for v in views]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{STYLE}{''.join(thumbs)}</style>"
        f"<h1>{html.escape(title)}</h1><p>{html.escape(about)}</p>{''.join(parts)}</html>\n"
    )


def _attend(views: Sequence[View]) -> bool:
    return all(view.attention is not None for view in views)


def _of_attention(views: Sequence[View]) -> str:
    if not _attend(views):
        return "Without a class token there is no attention of it: its place takes the mean patch."
    return (
        "Attention: last block, mean of the heads (below it, where asked for, each by itself), "
        "white is the 99th percentile of an image."
    )


def _maps(keys: Sequence[str], images: np.ndarray, views: Sequence[View], shown: int) -> str:
    heads = "".join(
        f"<th>{html.escape(v.name)}</th>{'' if v.attention is None else '<th>attention</th>'}"
        for v in views
    )
    rows = []
    for n in range(shown):
        cells = [_picture(images[n], keys[n])]
        for view in views:
            each = [] if view.heads is None else view.heads[n]
            own = "".join(_picture(_grey(x), f"head {i}", HEAD) for i, x in enumerate(each))
            cells.append(_picture(np.uint8(255 * view.colours[n] + 0.5), ""))
            if view.attention is not None:
                attention = _picture(_grey(view.attention[n]), "")
                cells.append(f'{attention}<div class="heads">{own}</div>')
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    table = f"<table><tr><th>image</th>{heads}</tr>{''.join(rows)}</table>"
    return f'<div class="wide">{table}</div>'


def _neighbours(
    small: Sequence[str], others: Sequence[str], views: Sequence[View], shown: int
) -> str:
    rows = []
    for n in range(shown):
        for place, view in enumerate(views):
            first = f'<td rowspan="{len(views)}">{small[n]}</td>' if place == 0 else ""
            found = "".join(f"<td>{others[m]}<br>{cosine:.2f}</td>" for cosine, m in view.near[n])
            rows.append(f"<tr>{first}<td>{html.escape(view.name)}</td>{found}</tr>")
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _thumb(kind: str, number: int, pixels: np.ndarray) -> str:
    return f".{kind}{number}{{background-image:url({_uri(pixels, THUMB, exact=False)})}}"


def _small(kind: str, number: int, key: str) -> str:
    return f'<span class="t {kind}{number}" title="{html.escape(key)}"></span>'


def _map(small: Sequence[str], places: np.ndarray) -> str:
    """A square with each small picture at its place."""
    spots = []
    for text, (x, y) in zip(small, 92 * places, strict=True):  # a picture takes 8 %
        spots.append(text.replace("<span ", f'<span style="left:{x:.2f}%;top:{y:.2f}%" ', 1))
    return f'<div class="map">{"".join(spots)}</div>'


def _grey(values: np.ndarray) -> np.ndarray:
    return np.uint8(255 * np.repeat(values[..., None], 3, axis=-1) + 0.5)


def _picture(pixels: np.ndarray, name: str, shown: int = SIDE) -> str:
    side = min(SIDE, len(pixels))
    # what is not shrunk is a map: a lossy file would mix the colours of its patches
    uri = _uri(pixels, side, exact=len(pixels) == side)
    return (
        f'<img class="pixels" width="{shown}" height="{shown}" title="{html.escape(name)}" '
        f'alt="{html.escape(name)}" src="{uri}">'
    )


def _uri(pixels: np.ndarray, side: int, *, exact: bool) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).resize((side, side)).save(file, "WEBP", quality=82, lossless=exact)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
