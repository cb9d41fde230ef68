"""`kdcl report`: the page is written into the run's folder, or where the user wants it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdcl_dist.errors import RunFolderError, StorageError, one_line
from kdcl_dist.report.page import page
from kdcl_dist.report.run_data import load
from kdcl_dist.run.storage import Folder

__all__ = ["write_report"]


def write_report(uris: Sequence[str], out: str | Path | None = None) -> str:
    """Write the report on one run, or the comparison of several.

    Args:
        uris: paths or URIs of run folders; repeated ones count once.
        out: the file to write. The default is report.html: in the folder of a single run, or in the working
            directory for several runs.

    Returns:
        The path or URI of the written file.

    Raises:
        RunFolderError: a path is no run folder or has nothing to report, or the page cannot be written.
    """
    runs = list({run.uri: run for run in map(load, uris)}.values())
    content = page(runs).encode()
    try:
        if out is None and len(runs) == 1:
            folder = Folder(runs[0].uri)
            folder.write("report.html", content)
            return f"{folder}/report.html"
        path = Path(out or "report.html")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(path)
    except (OSError, StorageError) as error:
        raise RunFolderError(
            f"the report cannot be written: {one_line(error)}; choose another --out"
        ) from error
