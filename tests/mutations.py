#!/usr/bin/env python3
"""Removes one promise at a time from a copy of the sources and sees that a test goes red.

    python3 tests/mutations.py [--target FOLDER] [--only NUMBER]

Takes some minutes for each promise; docs/testing.md has the list. The sources are those of the last
commit. Exits 1 if a promise can be removed unseen, or if a place in the sources has changed so that
it cannot be removed any more.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

TOP = pathlib.Path(__file__).resolve().parent.parent

# What is promised, where, what stands there, what is put instead, and the test that has to fail.
MUTATIONS = [
    ("a file's bytes are durable before its name",
     "src/storage/local/folders.rs",
     "        fsync(&file)?;\n        Ok(temporary)", "        Ok(temporary)",
     ["--test", "cli", "durability"]),
    ("a name is durable before anything refers to it",
     "src/storage/local.rs",
     "            Err(errno) => return Err(failed(errno)),\n        }\n        folder.sync().map_err(failed)",
     "            Err(errno) => return Err(failed(errno)),\n        }\n        Ok(())",
     ["--test", "cli", "durability"]),
    ("no object is replaced",
     "src/storage/local/folders.rs",
     "let flags = RenameFlags::NOREPLACE;", "let flags = RenameFlags::empty();",
     ["--test", "storage_conformance", "local_storage_conforms"]),
    ("additional data binds an object to its repository and name",
     "repo-format/src/crypto.rs",
     "    data\n}\n\n/// A 256-bit secret", "    data.clear();\n    data\n}\n\n/// A 256-bit secret",
     ["-p", "diskvault-format", "--lib", "sealed"]),
    ("the second mark keeps what a backup took over",
     "src/prune/condemn.rs",
     "filter(|id| !kept.contains(id))", "filter(|_| true)",
     ["--test", "prune", "what_a_running_backup_took_over_stays"]),
    ("a writer looks for its lease after it has put the manifest",
     "src/repository/session.rs",
     "if !self.is_registered()? {", "if false && !self.is_registered()? {",
     ["--test", "prune", "a_backup_that_was_fenced_starts_over_and_is_whole"]),
    ("a chunk's id is computed again from its bytes",
     "src/restore/fetch.rs",
     "known || self.repository.keys().chunk_id(chunk) == item.id", "known || !chunk.is_empty()",
     ["--test", "evil", "other_bytes_under_the_id_of_a_chunk_are_refused"]),
    ("a pack that cannot be read in the second mark stays",
     "src/prune/condemn.rs",
     "    let kept = unreadable.collect();",
     "    let kept = unreadable.take(0).collect();",
     ["--test", "prune", "a_footer_that_rots_between_the_marks_keeps_its_pack"]),
    ("an owner that comes back puts its list anew",
     "src/repository/condemned.rs",
     "let new = match put_list(repository, &old.packs, host) {",
     "let new = match Ok::<List, Error>({ let _ = host; old.clone() }) {",
     ["--test", "prune", "two_owners_of_one_list"]),
    ("healed bytes are compared with the pack's name",
     "src/repository/parity.rs",
     "if blake3::hash(&pack) != id.0 {", "if false {",
     ["--lib", "parity"]),
    ("a damaged pack goes only when all that can be read of it is elsewhere",
     "src/repair/mod.rs",
     "if salvage::is_held_elsewhere(repository, &locator, *id, &listed)? {",
     "if true || salvage::is_held_elsewhere(repository, &locator, *id, &listed)? {",
     ["--test", "repair", "a_damaged_pack_stays_while"]),
    ("no pack goes on the word of a footer",
     "src/prune/proof.rs",
     "if self.is_copy(place.pack) {", "if true || self.is_copy(place.pack) {",
     ["--test", "prune", "a_footer_that_lies"]),
    ("points that came in a rush take no other's place unseen",
     "src/retention/trust.rs",
     "going > behind.saturating_mul(4)", "false && going > behind",
     ["--test", "cli", "a_flood_of_points_is_seen"]),
]


def mutated(text, old, new):
    """The text without the promise; nothing if it does not stand there exactly once."""
    return text.replace(old, new) if text.count(old) == 1 else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", help="folder for the build")
    parser.add_argument("--only", type=int, help="number of one promise, from 1")
    options = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=TOP, check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        environment = dict(os.environ, CARGO_INCREMENTAL="0")
        environment["CARGO_TARGET_DIR"] = options.target or os.path.join(folder, "target")
        for number, (promise, name, old, new, test) in enumerate(MUTATIONS, 1):
            if options.only not in (None, number):
                continue
            path = pathlib.Path(folder, name)
            before = path.read_text()
            changed = mutated(before, old, new)
            if changed is None:
                print(f"{number:2} {promise}: {name} has changed, mend this list", flush=True)
                failures += 1
                continue
            path.write_text(changed)
            run = subprocess.run(["cargo", "test", *test], cwd=folder, env=environment,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            path.write_text(before)
            is_red = run.returncode != 0 and "test result: FAILED" in run.stdout
            print(f"{number:2} {promise}: {'red' if is_red else 'NOT SEEN'} ({' '.join(test)})", flush=True)
            if not is_red:
                failures += 1
                print("\n".join(run.stdout.splitlines()[-15:]), flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
