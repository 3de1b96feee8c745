"""The bundle's commands: daemon, bridge, end, certs; ranks is for the agent itself. Each loads only what it needs."""

from __future__ import annotations

import importlib
import sys
from typing import Dict, List

__all__ = ["main"]

_USAGE = (
    "usage: daemon --config FILE [--asleep] | bridge --socket PATH | "
    "end --config FILE [--cluster-id ID] [--grace-s SECONDS] | certs --config FILE --stamp STAMP [--token | --take]\n"
)
_MODULES = {"daemon": "serve", "bridge": "bridge", "end": "ending", "certs": "certs", "ranks": "ranks"}


def _options(words: List[str]) -> Dict[str, str]:
    """--name value pairs; a --name without a value is "1"."""
    options: Dict[str, str] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word[2:]
            options[name] = "1"
        else:
            options[name] = word
    return options


def main(argv: List[str]) -> int:
    """2 for a command line that means nothing."""
    command = argv[0] if argv else ""
    options = _options(argv[1:])
    needs = "socket" if command == "bridge" else "config"
    if command not in _MODULES or needs not in options:
        sys.stderr.write(_USAGE)
        return 2
    module = importlib.import_module(f".{_MODULES[command]}", __package__)
    if command == "end":
        grace, after = float(options.get("grace-s", "5")), float(options.get("after-s", "0"))
        only = options.get("cluster-id", "")
        return int(module.main(options["config"], grace_s=grace, after_s=after, detach="detach" in options, cluster_id=only))
    if command == "daemon":
        return int(module.main(options["config"], asleep="asleep" in options))
    if command == "certs":
        return int(module.main(options["config"], stamp=options["stamp"], token="token" in options, take="take" in options))
    return int(module.main(options[needs]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
