"""The launching process of a soak's run, which the soak itself kills now and then.

    python -m benchmarks.soak.launcher ray|local STORAGE NAME EVENTS RECIPE [PATH=VALUE ...]

It resumes the run where there is a checkpoint, and appends the time of each event to the file EVENTS.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from kdcl_dist.config.recipe_file import load_recipe
from kdcl_dist.errors import KdclError
from kdcl_dist.run.checkpoint import has_committed
from kdcl_dist.run.events import CheckpointSaved, Event, Note, Started
from kdcl_dist.run.storage import Folder
from kdcl_dist.training import train


def main() -> int:
    """Train to the end; 1 where an error ends the run."""
    launcher, storage, name, events, recipe_file, *overrides = sys.argv[1:]
    with Path(events).open("a", buffering=1) as file:

        def write(kind: str, **more: object) -> None:
            file.write(json.dumps({"time": time.time(), "kind": kind} | more) + "\n")

        def on_event(event: Event) -> None:
            match event:
                case Started():
                    write("started", step=event.step, placement=event.placement)
                case CheckpointSaved():
                    write("checkpoint", step=event.step)
                case Note() if "failure.max_failures" in event.text:
                    write("failure", text=event.text)
                case _:
                    pass

        resume = has_committed(Folder(storage) / name)
        write("launched", resume=resume)
        try:
            result = train(
                load_recipe(recipe_file, overrides),
                launcher=launcher,  # type: ignore[arg-type]
                storage=storage,
                name=name,
                resume=resume,
                on_event=on_event,
            )
        except KdclError as error:
            write("ended", text=str(error))
            return 1
        write("finished", finished=result.finished)
    return 0


if __name__ == "__main__":
    sys.exit(main())
