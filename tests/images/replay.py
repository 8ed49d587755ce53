"""Replays a Dockerfile's steps without Docker, on top of this machine's own files.

Each stage is an overlay over ``/`` in a private mount namespace, in which COPY and RUN do what they
do in an image; nothing outside the work folder changes. Instead of an image from outside the file
there is an empty virtual environment of this Python. What has to come out of such an image cannot
be replayed: it is said, and left out. Needs root, Linux and a package index. Usage:
``python tests/images/replay.py --target cli WORK_FOLDER``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from images import dockerfile

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "/opt/replay-python"
INHERITED = ("PATH", "LANG", "SSL_CERT_FILE")


class Replay:
    """The stages replayed so far: each a mounted folder, with its environment, folder and user."""

    def __init__(self, parsed: dockerfile.Dockerfile, work: Path) -> None:
        self.parsed = parsed
        self.work = work
        self.roots: dict[str, Path] = {}
        self.environments: dict[str, dict[str, str]] = {}
        self.folders: dict[str, str] = {}
        self.users: dict[str, str] = {}

    def stage(self, name: str) -> None:
        """Replays one stage with those that it is built on, from the first."""
        if name in self.roots:
            return
        image, instructions = self.history(name)
        say(f"== {name}, in an empty environment instead of {image}")
        self.start(name)
        for instruction in instructions:
            begin = time.monotonic()
            say(f"   {instruction.name} {instruction.text}"[:160])
            getattr(self, f"do_{instruction.name.lower()}")(name, instruction)
            say(f"      {time.monotonic() - begin:.1f} s")

    def history(self, name: str) -> tuple[str, list[dockerfile.Instruction]]:
        """The image that a stage comes from in the end, and every instruction since."""
        instructions: list[dockerfile.Instruction] = []
        while name in self.parsed.stages:
            stage = self.parsed.stages[name]
            instructions = [*stage.instructions, *instructions]
            name = dockerfile.expand(stage.base, self.parsed.arguments)
        return name, instructions

    def start(self, name: str) -> None:
        """Mounts a stage's root and makes an environment in it."""
        upper, scratch, root = (self.work / name / part for part in ("upper", "scratch", "root"))
        for folder in (upper, scratch, root):
            folder.mkdir(parents=True)
        options = f"lowerdir=/,upperdir={upper},workdir={scratch}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, root], check=True)
        for special in ("dev", "proc"):
            subprocess.run(["mount", "--rbind", f"/{special}", root / special], check=True)
        self.roots[name], self.folders[name], self.users[name] = root, "/", "0"
        self.environments[name] = {
            key: value
            for key, value in os.environ.items()
            if key in INHERITED or key.startswith("PIP_")
        }
        self.run(name, f"{sys.executable} -m venv {PYTHON}")
        for folder in Path(sys.executable).resolve().parents:  # another user has to get there
            self.run(name, f"chmod a+rx {folder}")
        self.environments[name]["PATH"] = f"{PYTHON}/bin:{self.environments[name]['PATH']}"

    def run(self, name: str, command: str) -> None:
        user = self.users[name]
        subprocess.run(
            [
                "chroot", f"--userspec={user}:{user}", self.roots[name],
                "/bin/sh", "-ec", f"cd {self.folders[name]}; {command}",
            ],
            env=self.environments[name] | {"HOME": "/root" if user == "0" else self.folders[name]},
            check=True,
        )  # fmt: skip

    def do_run(self, name: str, instruction: dockerfile.Instruction) -> None:
        self.run(name, instruction.text)

    def do_arg(self, name: str, instruction: dockerfile.Instruction) -> None:
        key, value = dockerfile.assignment(instruction.text)
        self.environments[name][key] = self.parsed.arguments.get(key, value)

    def do_env(self, name: str, instruction: dockerfile.Instruction) -> None:
        self.environments[name].update(map(dockerfile.assignment, instruction.words()))

    def do_workdir(self, name: str, instruction: dockerfile.Instruction) -> None:
        self.folders[name] = instruction.text
        self.below(name, ".").mkdir(parents=True, exist_ok=True)

    def do_user(self, name: str, instruction: dockerfile.Instruction) -> None:
        self.users[name] = instruction.text

    def do_entrypoint(self, name: str, instruction: dockerfile.Instruction) -> None:
        self.environments[name]["REPLAY_ENTRYPOINT"] = instruction.text

    def do_cmd(self, name: str, instruction: dockerfile.Instruction) -> None:
        words = json.loads(self.environments[name]["REPLAY_ENTRYPOINT"])
        self.run(name, " ".join([*words, *json.loads(instruction.text)]))

    def do_copy(self, name: str, instruction: dockerfile.Instruction) -> None:
        *sources, target = instruction.words()
        origin = instruction.option("from")
        if origin is not None and not self.parsed.stages[origin].instructions:
            say(f"      not replayed: {sources} of {self.parsed.stages[origin].base}")
            return
        if origin is not None:
            self.stage(origin)
        top = self.roots[origin] if origin else ROOT
        into = self.below(name, target)
        for source in (top / item.lstrip("/") for item in sources):
            if source.is_dir():
                skip = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, into, dirs_exist_ok=True, ignore=skip)
            else:
                place = into / source.name if target.endswith("/") else into
                shutil.copy(source, place)

    def below(self, name: str, path: str) -> Path:
        """A path of the image, absolute or relative to its working folder, on this machine."""
        return self.roots[name] / os.path.join(self.folders[name], path).lstrip("/")


def say(line: str) -> None:
    """Progress, in order with what the steps print."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Replays one target of the project's Dockerfile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="an empty folder on a disk, not in memory")
    parser.add_argument("--target", default="worker", help="the stage to end with")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    if os.environ.get("REPLAY_NAMESPACE") != "1":
        os.environ["REPLAY_NAMESPACE"] = "1"
        os.execvp("unshare", ["unshare", "--mount", sys.executable, *sys.argv])  # noqa: S606
    parsed = dockerfile.parse(ROOT / "Dockerfile")
    parsed.arguments.update(VARIANT="cpu")
    parsed.arguments.update(map(dockerfile.assignment, options.build_arg))
    Replay(parsed, options.work).stage(options.target)


if __name__ == "__main__":
    main()
