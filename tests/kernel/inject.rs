//! System calls that fail: the n-th of a kind in each thread of a backup, a prune or a repair, for n
//! from 1 until a run meets none any more; further on in steps.
//!
//! `strace` counts for each thread. A call may belong to the loader, to an output or to the cache:
//! then the run may end as it likes, and what is promised of the repository holds all the same.

use crate::archive::{Archive, Promise, backup_arguments, disk, promise, say, say_skipped, wait};
use crate::image::Image;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// What fails, and how.
pub const CALLS: [(&str, &str); 16] = [
    ("write", "ENOSPC"),
    ("write", "EIO"),
    ("pwrite64", "ENOSPC"),
    ("pwrite64", "EIO"),
    ("fsync", "EIO"),
    ("fdatasync", "EIO"),
    ("/^rename", "EIO"),
    ("/^rename", "ENOSPC"),
    ("linkat", "EIO"),
    ("unlinkat,unlink", "EIO"),
    ("openat", "EIO"),
    ("openat", "ENOSPC"),
    ("mkdirat,mkdir", "ENOSPC"),
    ("/^pread", "EIO"),
    ("read", "EIO"),
    ("getdents64", "EIO"),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Backup,
    Prune,
    Repair,
}

struct Rig {
    /// Two points and what nobody needs.
    base: Archive,
    /// The same with a damaged pack, and which points came back then.
    damaged: Archive,
    readable: Vec<String>,
    path: PathBuf,
    bytes: Arc<Vec<u8>>,
    folder: PathBuf,
    runs: u64,
    injected: u64,
    failed: u64,
}

/// These calls in all three verbs, up to the `most`th.
pub fn run(
    program: &Path,
    folder: &Path,
    seed: u64,
    all: &[(&str, &str)],
    most: u64,
) -> Promise<String> {
    if !Command::new("strace").arg("-V").output().is_ok_and(|output| output.status.success()) {
        say_skipped("there is no strace");
        return Ok("inject: skipped".into());
    }
    let mut rig = Rig::new(program, folder, seed)?;
    for verb in [Verb::Backup, Verb::Prune, Verb::Repair] {
        for (calls, error) in all {
            let mut n = 1;
            while n <= most && rig.once(verb, calls, error, n)? {
                n += 1 + n / 4;
            }
        }
    }
    let Rig { runs, injected, failed, .. } = rig;
    Ok(format!(
        "inject: {runs} runs, {injected} met a failing call, {failed} of them failed by it; 0 broken"
    ))
}

impl Rig {
    fn new(program: &Path, folder: &Path, seed: u64) -> Promise<Rig> {
        let first = folder.join("base");
        say("make a folder", fs::create_dir_all(&first))?;
        let mut base = Archive::make(program, &first, 0)?;
        let path = folder.join("image");
        let mut image = Image::new(seed, 12 << 20);
        for _ in 0..4 {
            say("write the image", fs::write(&path, &image.bytes))?;
            base.backup("the beginning", &path, &Arc::new(image.bytes.clone()))?;
            image.change(3);
        }
        base.forget("the beginning", 2)?;
        say("write the image", fs::write(&path, &image.bytes))?;
        let damaged = base.copy_to(&folder.join("damaged"))?;
        let packs = damaged.repository.join("packs");
        let pack = packs.join(&crate::archive::files(&packs)[0]);
        let mut bytes = say("read a pack", fs::read(&pack))?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        say("damage a pack", fs::remove_file(&pack))?;
        say("damage a pack", fs::write(&pack, &bytes))?;
        let readable = damaged.readable()?;
        let (bytes, folder) = (Arc::new(image.bytes), folder.join("run"));
        let (runs, injected, failed) = (0, 0, 0);
        Ok(Rig { base, damaged, readable, path, bytes, folder, runs, injected, failed })
    }

    /// One run; tells whether a call failed in it.
    fn once(&mut self, verb: Verb, calls: &str, error: &str, n: u64) -> Promise<bool> {
        let disk = disk(&self.path);
        let (name, arguments) = match verb {
            Verb::Backup => ("backup", backup_arguments(&disk).to_vec()),
            Verb::Prune => ("prune", vec!["prune", "--max-unused", "0"]),
            Verb::Repair => ("repair", vec!["repair", "packs"]),
        };
        let what = format!("{name}, {calls} number {n} fails with {error}");
        let from = if verb == Verb::Repair { &self.damaged } else { &self.base };
        let mut archive = from.copy_to(&self.folder)?;
        let log = self.folder.join("log");
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o"]).arg(&log);
        command.args(["-e", &format!("trace={calls}")]);
        command.args(["-e", &format!("inject={calls}:error={error}:when={n}")]);
        command.arg(&archive.program);
        archive.dress(&mut command, &arguments);
        let outcome = wait(say("start strace", command.spawn())?);
        let log = say("read the log", fs::read(&log))?;
        let was_injected = log.windows(8).any(|window| window == b"INJECTED");
        self.runs += 1;
        self.injected += u64::from(was_injected);
        self.failed += u64::from(was_injected && outcome.code != 0);
        promise!(!outcome.panicked(), "{what}: panicked: {outcome:?}");
        promise!(was_injected || outcome.code == 0, "{what}: fails by itself: {outcome:?}");
        // The loader's own error is 127, an error that could not be written has no text.
        let is_clear = outcome.is_clear(&what);
        if calls != "openat" && calls != "write" && outcome.code != 127 {
            is_clear?;
        }
        self.look(verb, &what, &mut archive, &outcome)?;
        Ok(was_injected)
    }

    /// What is promised afterwards, seen by the same host and by one that saw nothing of it.
    fn look(
        &self,
        verb: Verb,
        what: &str,
        archive: &mut Archive,
        outcome: &crate::archive::Outcome,
    ) -> Promise {
        archive.learn(outcome, &self.bytes);
        archive.let_time_pass()?;
        let stranger = self.folder.join("stranger");
        if verb == Verb::Repair {
            let readable = archive.with_cache(&stranger).readable()?;
            let lost: Vec<_> = self.readable.iter().filter(|id| !readable.contains(id)).collect();
            promise!(lost.is_empty(), "{what}: these no longer come back: {lost:?}");
            let again = archive.run(&["repair", "packs"])?;
            promise!(again.is_done(), "{what}: it does not go on: {again:?}");
            let readable = archive.readable()?;
            let lost: Vec<_> = self.readable.iter().filter(|id| !readable.contains(id)).collect();
            promise!(lost.is_empty(), "{what}: after the repair these are gone: {lost:?}");
            let aside = crate::archive::files(&archive.repository.join("aside"));
            promise!(!aside.is_empty(), "{what}: the damaged pack is not aside");
            return Ok(());
        }
        archive.expect(&self.bytes);
        archive.adopt(what)?;
        archive.with_cache(&stranger).assert_whole(what)?;
        match verb {
            Verb::Backup => archive.backup(what, &self.path, &self.bytes)?,
            _ => archive.assert_garbage_goes(what)?,
        }
        archive.assert_whole(what)
    }
}
