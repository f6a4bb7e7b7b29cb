"""One HTML page with a table's results: figures and numbers inside it, nothing fetched, no script."""

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
PHOTOGRAPHS = ("images",)  # shown as pixels, all else as lines


def page(title, markdown, figures, facts):
    """The page's text. markdown: as `reproduce.markdown` writes it. figures: as `figures.save` returns them.

    facts: what the numbers were made by, name → value.
    """
    body = "\n".join(
        [
            f"<h1>{html.escape(title)}</h1>",
            '<h2>Figures</h2>\n<div class="figures">',
            *(_figure(name, *figure) for name, figure in figures.items()),
            "</div>\n<h2>Numbers</h2>",
            _tables(markdown),
            "<h2>Made by</h2>\n<dl>",
            *(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items()),
            "</dl>",
        ]
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _figure(name, caption, png, svg, inches):
    path, kind = (png, "png") if name in PHOTOGRAPHS else (svg, "svg+xml")
    data = base64.b64encode(Path(path).read_bytes()).decode()
    text, width = html.escape(caption), round(PIXELS * inches)
    return (
        f'<figure id="{name}"><img style="max-width:{width}px" '
        f'src="data:image/{kind};base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'
    )


def _tables(markdown):
    """The lines and tables of a Markdown page without other marks than headings, code and bold."""
    parts, rows = [], []
    for line in [*markdown.splitlines(), ""]:
        if line.startswith("|"):
            rows.append([_text(cell.strip()) for cell in line.strip("|").split("|")])
            continue
        if rows:
            head, _, *lines = rows
            parts.append('<div class="scroll"><table><thead>' + _row(head, "th") + "</thead><tbody>")
            parts += [_row(cells, "td") for cells in lines] + ["</tbody></table></div>"]
            rows = []
        if line and not line.startswith("#"):
            parts.append(f"<p>{_text(line)}</p>")
    return "\n".join(parts)


def _row(cells, tag):
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"


def _text(markdown):
    """Escaped, with `code` and **bold**."""
    text = html.escape(markdown)
    for mark, tag in (("`", "code"), ("**", "b")):
        text = "".join(f"<{tag}>{part}</{tag}>" if i % 2 else part for i, part in enumerate(text.split(mark)))
    return text
