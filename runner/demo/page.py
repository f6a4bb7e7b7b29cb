"""The grid of cells as HTML, for the live page and for the file; page.css and page.js go with both.

In each tile the exact flow's image lies over the drawn one. The style sheet hides it, shows a part of it, or what
differs.
"""

import base64
import html
import io
from pathlib import Path

import numpy as np

from pndm.dataset import to_picture
from pndm.runner.demo.cells import LEAST
from pndm.runner.demo.commands import commands

HERE = Path(__file__).parent
STYLE = (HERE / "page.css").read_text(encoding="utf-8")
SCRIPT = (HERE / "page.js").read_text(encoding="utf-8")
# The file asks no host for anything, whatever is in it.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
VIEW = """\
<fieldset class="view"><legend>Show</legend>
<label><input type="radio" name="view" value="image" checked> images</label>
<label><input type="radio" name="view" value="difference"> difference from the exact flow</label>
<label><input type="radio" name="view" value="wipe"> exact flow, wiped over</label>
<label>wipe <input type="range" name="wipe" min="0" max="100" value="50" aria-label="share of the exact flow"></label>
</fieldset>
"""
EXPLAINED = """\
<p class="note">Each cell starts from the same noise. A call is one evaluation of the network for one image; a cell
spends at most its column's. Distance: root mean square to the exact flow from that noise, images in [−1, 1]; every
method is compared from the time at which it starts. Difference: white is none, black a quarter of the grey levels or
more.</p>
"""


def source_of(image):
    """A uint8 image (C, H, W) as an address that holds it: the very bytes of the PNG file that a run writes."""
    file = io.BytesIO()
    to_picture(image).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def grid(request, cells, origin):
    """The HTML of a request's cells. cells: (row, calls) → `Cell`; those that are missing are still to be drawn."""
    head = "".join(f'<th scope="col">{calls} calls</th>' for calls in request.calls)
    body = ""
    for row in request.rows:
        entries = [_entry(cells.get((row, calls)), request.noise, origin) for calls in request.calls]
        body += f'<tr><th scope="row">{html.escape(row.label)}</th>{"".join(entries)}</tr>\n'
    caption = "The same noise by rows of methods, in columns of network calls"
    return (
        f'<div class="cells" tabindex="0" role="region" aria-label="{caption}"><table><thead><tr><td></td>{head}</tr>'
        f"</thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


def _entry(cell, noise, origin):
    """The HTML of a cell."""
    if cell is None:
        return '<td class="waiting">…</td>'
    if cell.images is None:
        return f'<td class="message">{html.escape(cell.message)}</td>'
    tiles = "".join(_tile(cell, i) for i in range(len(cell.images)))
    steps = f"{cell.steps} steps" if cell.steps else "adaptive"
    size = "large" if cell.images.shape[-1] > 48 else "small"
    return (
        f'<td><div class="tiles {size}">{tiles}</div><p><b>{cell.nfe:.4g} calls</b>, {steps}<br>{_compared(cell)}</p>'
        f"{_more(cell, noise, origin)}</td>"
    )


def _compared(cell):
    """The distance of a cell in words."""
    if cell.distance is not None:
        told = f"{cell.distance:.2g}" if cell.distance >= LEAST else f"below {LEAST:g}"
        return f'distance <span class="distance">{told}</span>'
    if cell.message:
        return html.escape(cell.message)
    return "draws noise: no exact flow" if cell.sampling.draws else "distance …"


def _tile(cell, i):
    """One image, and over it the exact flow's."""
    alt = f"image {i} by {cell.row.label} in {cell.nfe:.4g} calls"
    made = f'<img class="made" alt="{html.escape(alt)}" src="{source_of(cell.images[i])}">'
    if cell.exact is None:
        return f'<span class="tile unknown">{made}</span>'
    return f'<span class="tile">{made}<img class="exact" alt="" src="{source_of(cell.exact[i])}"></span>'


def _more(cell, noise, origin):
    """What a cell unfolds: predicted images, times, commands."""
    strip = "".join(
        f'<img alt="predicted image at t = {t:.4g}" title="t = {t:.4g}" src="{source_of(image)}">'
        for t, image in cell.strip
    )
    copies = "".join(
        f'<p><button type="button" data-copy>copy</button> {name}</p><pre tabindex="0">{html.escape(text)}</pre>'
        for name, text in commands(cell, noise, origin)
    )
    name = f"{cell.row.method}-{cell.row.spacing}-{cell.asked}"
    return (
        f'<details id="more-{html.escape(name)}"><summary>x̂₀, times, copy</summary>'
        f'<div class="strip" title="predicted images x̂₀ of image 0">{strip}</div>{axis(cell)}{copies}</details>'
    )


def axis(cell):
    """The times of a cell's calls as ticks on an axis of λ, half the log signal-to-noise ratio; noise is left."""
    schedule = cell.sampling.schedule
    low, high = (float(schedule.half_log_snr(t)) for t in (schedule.diffusion_step - 1, 0))
    places = 100 * (np.asarray(schedule.half_log_snr(np.array(cell.times))) - low) / (high - low)
    ticks = "".join(f'<line x1="{x:.2f}" x2="{x:.2f}" y1="0" y2="8"/>' for x in places)
    label = f"times of {len(cell.times)} calls, from t = {cell.times[0]:.4g} to {cell.times[-1]:.4g}, on a log-SNR axis"
    return (
        f'<svg class="times" role="img" aria-label="{label}" viewBox="-1 -1 102 10" preserveAspectRatio="none">'
        f'<line class="base" x1="0" x2="100" y1="8" y2="8"/>{ticks}</svg>'
        f'<p class="ends"><span>λ = {low:.1f}</span><span>{high:.1f}</span></p>'
    )


def document(title, facts, request, cells, origin):
    """The whole page as one file. facts: what made the images, in a few words."""
    noise = f"seed {request.noise.seed}"
    if request.noise.share:
        noise += f", turned by {request.noise.share:g} of a right angle towards seed {request.noise.other}"
    return (
        '<!doctype html>\n<html lang="en" data-view="image">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{html.escape(title)}</h1>\n<p>{html.escape(facts)}; {noise}</p>\n{VIEW}{EXPLAINED}"
        f"{grid(request, cells, origin)}</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
