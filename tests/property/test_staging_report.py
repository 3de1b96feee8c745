"""Why paths stay here, compared with what git itself says."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from skylib.models.sync_report import Decider, Reason, TreeReport
from skylib.staging.plan import plan_sync
from skylib.staging.report import report, why_ignored
from tests.property.test_staging_ignore import CONTENTS, FOLDERS, PATHS, RULES, listed, make, make_repository, run_git, write


def told(root: Path, git: str | None) -> tuple[TreeReport, dict[str, str]]:
    """The report, and of each file that stays here: the pattern's file, line and text, else its reason."""
    (tree,) = report(plan_sync(str(root), git=git), git=git)
    found = {}
    for path in there(root):
        why = why_ignored((tree,), f"{root}/{path}", base=str(root), git=git)
        if why is not None:
            found[path] = f"{why.file}:{why.line}:{why.pattern}" if why.file else why.reason.value
    return tree, found


def there(root: Path) -> set[str]:
    """All files but git's own."""
    found = set()
    for folder, _, names in os.walk(root):
        found |= {os.path.relpath(f"{folder}/{name}", root) for name in names}
    return {path for path in found if ".git" not in path.split("/")}


@given(
    files=st.lists(PATHS, min_size=1, max_size=10),
    rules=RULES,
    exclude=CONTENTS,
    nested=st.lists(FOLDERS, max_size=1),
    tracked=st.integers(0, 3),
)
def test_what_stays_here_has_the_reason_that_git_gives(
    files: list[str], rules: dict[str, str], exclude: str, nested: list[str], tracked: int
) -> None:
    """What git lists has no reason to stay, all else has one; by patterns it is the same with git and without."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory).resolve()
        make_repository(root)
        make(root, files, rules)
        write(root / ".git/info/exclude", exclude)
        for folder in nested:
            if (root / folder).is_dir():
                make_repository(root / folder)
        alike = told(root, "git")[1] if not tracked else None
        for path in sorted(there(root))[:tracked]:
            run_git(root, "add", "-f", "--", f":(literal){path}", check=False)
        expected = listed(root)
        tree, reasons = told(root, "git")
        if tree.decided_by is Decider.NOTHING:
            assert not expected
            assert reasons == {}
            return
        assert reasons.keys() == there(root) - expected
        assert Reason.UNLISTED.value not in reasons.values()
        if alike is not None:
            assert told(root, None)[1] == alike


@given(files=st.lists(PATHS, min_size=1, max_size=10), rules=RULES)
def test_every_path_is_in_the_report(files: list[str], rules: dict[str, str]) -> None:
    """Each file goes, or is left out by its own name or a directory's above it, and never both."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory).resolve()
        make_repository(root)
        make(root, files, rules)
        for git in ("git", None):
            (tree,) = report(plan_sync(str(root), git=git), git=git)
            out = {each.path for each in tree.left_out}
            for path in there(root):
                parts = path.split("/")
                above = {"/".join(parts[:depth]) for depth in range(1, len(parts) + 1)}
                assert (path in tree.paths) != bool(above & out), path
