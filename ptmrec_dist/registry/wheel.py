"""The wheel of this package, as it is installed here: a registered model contains it, since no package index has it.

MLflow makes environments (`mlflow models serve`, `mlflow models build-docker`) from the model's `requirements.txt`, in various
working folders. `--find-links` is the only option that pip resolves relative to that file; the wheel's own path is not.
The version gets a local label with a digest of the content: no index accepts such a version, so that none can offer another
package under this name, and MLflow, which caches environments by their requirements, does not reuse one with other code.

Source: https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

import base64
import hashlib
import re
from importlib.metadata import Distribution, distribution
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import ptmrec_dist
from ptmrec_dist.errors import UserError
from ptmrec_dist.serving.packages import installed_packages

FOLDER = "wheels"
"""Name of the artifact that holds the wheel in a registered model."""

_WHEEL = "Wheel-Version: 1.0\nGenerator: ptmrec-dist\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def write_wheel(folder: Path) -> str:
    """Write the wheel of the installed package, whether it was installed from a wheel or is a checkout.

    Equal content gives equal bytes.

    Args:
        folder: Folder to write into; made if absent.

    Returns:
        Its version: the installed one with a digest of the content as local label.

    Raises:
        UserError: The package was installed by something that left its metadata out.
    """
    installed = distribution("ptmrec-dist")
    public, files = installed.version.partition("+")[0], _package_files() | _metadata_files(installed)
    listed = "\n".join(f"{name} {hashlib.sha256(files[name]).hexdigest()}" for name in sorted(files))
    version = f"{public}+sha{hashlib.sha256(listed.encode()).hexdigest()[:12]}"
    info = f"ptmrec_dist-{version}.dist-info"
    files = {name.replace("DIST-INFO", info): content for name, content in files.items()}
    # The label is not part of the content that it is computed from.
    files[f"{info}/METADATA"] = files[f"{info}/METADATA"].replace(
        b"\nVersion: \n", f"\nVersion: {version}\n".encode(), 1
    )
    files[f"{info}/RECORD"] = _record(files, info)
    folder.mkdir(exist_ok=True)
    with ZipFile(folder / f"ptmrec_dist-{version}-py3-none-any.whl", "w", ZIP_DEFLATED) as wheel:
        for name, content in files.items():
            entry = ZipInfo(name)  # dated 1980
            entry.external_attr = 0o100644 << 16
            wheel.writestr(entry, content, ZIP_DEFLATED)
    return version


def requirements(version: str) -> list[str]:
    """List what an environment of a registered model installs.

    Args:
        version: Version of the wheel in its folder.

    Returns:
        Lines of a `requirements.txt`: the wheel, and the versions of packages that answers depend on.
    """
    # Indexes have no builds such as 2.11.0+cu128.
    pins = [f"{name}=={number.partition('+')[0]}" for name, number in installed_packages().items()]
    return [
        f"--find-links artifacts/{FOLDER}",
        f"ptmrec-dist=={version}",
        *(pin for pin in pins if "ptmrec-dist" not in pin),
    ]


def _package_files() -> dict[str, bytes]:
    package = Path(ptmrec_dist.__file__).parent
    names = (path.relative_to(package.parent) for path in sorted(package.rglob("*")) if path.is_file())
    kept = [name for name in names if not any(part == "__pycache__" or part.startswith(".") for part in name.parts)]
    return {name.as_posix(): (package.parent / name).read_bytes() for name in kept}


def _metadata_files(installed: Distribution) -> dict[str, bytes]:
    """Metadata without version, so that it is the same for each label, and without what an installer adds."""
    metadata = re.sub(r"^Version: .*$", "Version: ", _read(installed, "METADATA"), count=1, flags=re.MULTILINE)
    files = {"METADATA": metadata, "WHEEL": _WHEEL, "entry_points.txt": _read(installed, "entry_points.txt")}
    licenses = [file for file in installed.files or () if ".dist-info/licenses/" in file.as_posix()]
    files |= {f"licenses/{file.name}": file.read_text() for file in licenses}
    return {f"DIST-INFO/{name}": content.encode() for name, content in files.items()}


def _read(installed: Distribution, name: str) -> str:
    text = installed.read_text(name)
    if text is None:
        raise UserError(f"ptmrec-dist is installed without {name}, expected what its wheel has; install it again")
    return text


def _record(files: dict[str, bytes], info: str) -> bytes:
    lines = [f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in files.items()]
    return "".join([*lines, f"{info}/RECORD,,\n"]).encode()


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
