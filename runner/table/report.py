"""A table's results as Markdown (table.md) and as one HTML page (report.html): nothing to fetch, no script."""

import base64
import html
from pathlib import Path

STYLE = """
body { margin: 0 auto; padding: 1rem; max-width: 84rem; font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.2rem; margin-top: 2rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 2rem 1.5rem; }
figure { margin: 0; }
#images { grid-column: 1 / -1; }
figure img { display: block; width: 100%; height: auto; }
figcaption { color: #555; font-size: .875rem; margin-top: .5rem; max-width: 40rem; }
.scroll { overflow-x: auto; }
table { border-spacing: 0; font-variant-numeric: tabular-nums; font-size: .875rem; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
thead th { border-bottom: 2px solid #999; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .875rem; }
dt { font-weight: 600; }
dd { margin: 0; overflow-wrap: anywhere; }
"""
PIXELS = 105  # of the page for an inch of a figure
PHOTOGRAPHS = ("images",)  # figures shown as pixels; the others are lines


def markdown(title, paragraphs, tables):
    """The Markdown of a page: a title, paragraphs, `ResultTable`s."""
    lines = [f"# {title}"]
    for text in paragraphs:
        lines += ["", text]
    for table in tables:
        lines += ["", table.title, "", _line(table.head), _line(["---"] * len(table.head))]
        for i, entries in enumerate(table.body):
            marked = [f"**{text}**" if (i, j) in table.bold else text for j, text in enumerate(entries)]
            lines.append(_line(marked))
        for note in table.notes:
            lines += ["", note]
    return "\n".join(lines) + "\n"


def pictures(figures):
    """The Markdown of the figures, each above its caption. figures: as `figures.save` returns them."""
    lines = []
    for name, (caption, png, svg, _) in figures.items():
        path = png if name in PHOTOGRAPHS else svg
        lines += ["", f"![{name.replace('_', ' against ')}](figures/{path.name})", "", caption]
    return "".join(f"{line}\n" for line in lines)


def _line(entries):
    return f"| {' | '.join(entries)} |"


def page(title, paragraphs, tables, figures, facts):
    """The HTML page of all. figures: as `figures.save` returns them. facts: what made the numbers, name → text."""
    body = [
        f"<h1>{html.escape(title)}</h1>",
        *(f"<p>{html.escape(text)}</p>" for text in paragraphs),
        '<h2>Figures</h2>\n<div class="figures">',
        *(_figure(name, *figure) for name, figure in figures.items()),
        "</div>\n<h2>Numbers</h2>",
        *(_table(table) for table in tables),
        "<h2>Made by</h2>\n<dl>",
        *(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in facts.items()),
        "</dl>",
    ]
    head = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n"
    )
    return head + "\n".join(body) + "\n</body>\n</html>\n"


def _figure(name, caption, png, svg, inches):
    path, kind = (png, "png") if name in PHOTOGRAPHS else (svg, "svg+xml")
    data = base64.b64encode(Path(path).read_bytes()).decode()
    text, width = html.escape(caption), round(PIXELS * inches)
    return (
        f'<figure id="{name}"><img style="max-width:{width}px" '
        f'src="data:image/{kind};base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'
    )


def _table(table):
    """A `ResultTable` below its title, and its notes."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in table.head)
    rows = ""
    for i, entries in enumerate(table.body):
        texts = [html.escape(text) for text in entries]
        marked = [f"<b>{text}</b>" if (i, j) in table.bold else text for j, text in enumerate(texts)]
        rows += f"<tr><td>{'</td><td>'.join(marked)}</td></tr>"
    grid = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    title, *notes = (f"<p>{html.escape(text)}</p>" for text in (table.title, *table.notes))
    return "\n".join([title, grid, *notes])
