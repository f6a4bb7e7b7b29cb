"""README and docs/: links that lead somewhere, a beginning that says what for, an end that says where to go next."""

import re

import pytest
from helpers import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"")
IDS = {"ids": lambda page: page.name}


def anchors(page):
    """The names by which GitHub links to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def beginning(page):
    """A page's title, and the first paragraph below it; comments are not shown, so they are no paragraph."""
    title, _, rest = page.read_text(encoding="utf-8").partition("\n")
    return title, re.sub(r"<!--.*?-->", "", rest, flags=re.S).strip("\n").partition("\n\n")[0]


def says_what_for(page):
    """Whether a page begins with a title and a sentence."""
    title, first = beginning(page)
    return title.startswith("# ") and len(first.split()) >= 8 and not first.startswith(("#", "|", "    ", "-", "!["))


def links(page):
    """The targets of a page's links and pictures, those in code left out."""
    text = re.sub(r"^(    |\|.*`.*\]\().*$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.M)
    return [first or second for first, second in LINK.findall(text)]


def broken(page):
    """The links of a page that lead to no file, or to no heading of it."""
    for link in links(page):
        target, _, anchor = link.partition("#")
        if re.match(r"https?://|mailto:", link):
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            yield link


@pytest.mark.parametrize("page", PAGES, **IDS)
def test_links_lead_to_files_and_headings(page):
    assert list(broken(page)) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        '# One\n[a](page.md#one) [b](page.md#two) [c](no.md) ![d](no.svg) <img src="no.png">', encoding="utf-8"
    )
    assert list(broken(page)) == ["page.md#two", "no.md", "no.svg", "no.png"]


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name == "docs"], **IDS)
def test_a_page_begins_with_what_it_is_for_and_ends_with_where_to_go_next(page):
    assert says_what_for(page)
    assert page.read_text(encoding="utf-8").rstrip().rpartition("\n\n")[2].startswith("Next: ")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("# One\n\nWhat this page is for, in one sentence.\n", True),
        ("# One\n\n<!-- not shown -->\n\nWhat this page is for, in one sentence.\n", True),
        ("# One\n\n<!-- a comment that has more than eight words in it -->\n\n    python main.py\n", False),
        ("# One\n\n    python main.py with more than eight words behind it\n", False),
    ],
)
def test_a_comment_or_a_command_does_not_say_what_a_page_is_for(tmp_path, text, right):
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    assert says_what_for(page) == right


def test_the_index_has_every_page():
    index = set(links(ROOT / "docs" / "README.md"))
    missing = [page.name for page in PAGES if page.parent.name == "docs" and page.name not in index | {"README.md"}]
    assert not missing, ", ".join(missing)


def test_readme_is_two_screens_and_nothing_in_it_is_cut_off():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    shown = [line for line in lines if line.startswith("    ")]
    assert len(lines) <= 100 and max(map(len, shown)) <= 100


def test_pictures_in_docs_are_used():
    used = {(page.parent / link).resolve() for page in PAGES for link in links(page)}
    unused = [path.name for path in sorted((ROOT / "docs" / "pictures").iterdir()) if path.resolve() not in used]
    assert not unused, ", ".join(unused)


def test_no_page_shows_a_path_of_a_machine():
    wrong = [page.name for page in PAGES if re.search(r"(/home/|/root/|/work/)\w", page.read_text(encoding="utf-8"))]
    assert not wrong, wrong
