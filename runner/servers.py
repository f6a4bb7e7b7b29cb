"""How the bytes of a published file come: from a plain address, or from Google Drive; cut parts are resumed."""

import errno
import os
import re
import shutil
import sys
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path

TIMEOUT = 60  # seconds without a byte after which a server counts as stalled
BLOCK = 1 << 16  # bytes at a time: what a cut loses at most


class Failed(Exception):
    """One address did not give the file; the next may."""


def size_of(path):
    """Bytes of a file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def http(address, part, entry):
    """Download a plain address to `part`, from where it was cut on, as long as more comes. Raises Failed."""
    import pooch
    import requests

    anew = False
    while True:
        start = size_of(part)
        answer = Answer(part, start, entry)
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers |= {
                "Range": f"bytes={start}-",
                "If-Unmodified-Since": formatdate(part.stat().st_mtime, usegmt=True),
            }
        downloader = pooch.HTTPDownloader(
            sys.stderr.isatty(), BLOCK, headers=headers, timeout=TIMEOUT, hooks={"response": answer}
        )
        try:
            with part.open("ab") as file:
                downloader(address, file, None)
            reason = "it ended early" if size_of(part) < answer.total else ""
        except (requests.RequestException, ValueError) as error:  # a header, or an address, that makes no sense
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status == 416 and start and (entry.hash or entry.size):  # nothing is left; they tell whether it is whole
                return
            if status in (412, 416) and start:  # it has changed since it was cut
                os.truncate(part, 0)
                if anew:
                    raise Failed(f"status {status}") from None
                anew = True
                continue
            reason = f"status {status}" if status else said(error)
        if not reason:
            return
        if size_of(part) <= max(start, answer.kept):
            raise Failed(reason)


class Answer:
    """Looks at a server's answer before its content is read: a hook of requests.

    total: the bytes that the file will have, 0 where the server does not say. kept: those of the part that stay.
    """

    def __init__(self, part, start, entry):
        self.part, self.kept, self.entry, self.total = part, start, entry, 0

    def __call__(self, response, **_):
        status, headers = response.status_code, response.headers
        if status not in (200, 206):
            if status < 300:
                raise Failed(f"status {status}, without the file")
            return
        if re.search("html", headers.get("Content-Type", ""), re.IGNORECASE):
            raise Failed("it answers with a page, not with the file")
        part = re.match(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
        if status == 206 and (part is None or int(part[1]) != self.kept or self._changed(headers)):
            os.truncate(self.part, 0)
            raise Failed("it does not go on where it was asked to")
        if status == 200:  # it does not resume
            os.truncate(self.part, 0)
            self.kept = 0
        length = int(headers.get("Content-Length") or 0)
        self.total = length and self.kept + length
        if status == 206 and part[2] != "*":
            self.total = int(part[2])
        size, known = self.entry.size, self.entry.size or self.entry.hash
        if size and self.total and self.total != size:
            raise Failed(f"it has {self.total:,} bytes, not {size:,}")
        if not (known or length or "chunked" in headers.get("Transfer-Encoding", "")):
            raise Failed("it does not say how long the file is")
        if length > (free := shutil.disk_usage(self.part.parent).free):
            text = f"{length / 1e6:,.0f} MB do not fit on the disk, which has {free / 1e6:,.0f} MB free"
            raise OSError(errno.ENOSPC, text)

    def _changed(self, headers):
        """Whether the file is newer than the part that is kept of it, as far as the server says."""
        try:
            return self.kept and parsedate_to_datetime(headers["Last-Modified"]).timestamp() > self.part.stat().st_mtime
        except (KeyError, TypeError, ValueError):
            return False


def drive(address, part, entry):
    """Download from Google Drive to `part` by gdown, which knows Drive's pages and resumes. Raises Failed."""
    import gdown

    quiet, (folder, _, name) = not sys.stderr.isatty(), address.partition(":")[2].partition("/")
    how = {"quiet": quiet, "use_cookies": False, "timeout": TIMEOUT}
    try:
        if name:
            there = gdown.download_folder(id=folder, skip_download=True, **how)
            found = [file.id for file in there if Path(file.path).name == name]
            if not found:
                raise Failed(f"the folder has no {name}, but {', '.join(file.path for file in there) or 'nothing'}")
            folder = found[0]
        if not part.exists():  # it is there whole if the last run was killed before it could verify it
            gdown.download(id=folder, output=str(part), resume=True, retries=3, **how)
    except Failed:
        raise
    except Exception as error:  # gdown's own, of requests, of what it reads pages with
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Failed(said(error)) from None


SAID = {
    "timed out": "it stalled",
    "IncompleteRead": "it was cut",
    "resol": "its name cannot be resolved",
    "refused": "it refuses connections",
}


def said(error):
    """An error of a library in a few words."""
    text = " ".join(str(error).split())
    return next((meaning for word, meaning in SAID.items() if word in text), (text or type(error).__name__)[:120])
