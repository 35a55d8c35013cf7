//! SIGKILL at random instants of backups, prunes and repairs.
//!
//! A killed backup leaves its lease. Nobody can wait out the three minutes that the shortest lease
//! timeout has in each run, so before most prunes the leases are deleted as a prune would then; the
//! other prunes run with the dead leases in place and have to free nothing that they protect.

use crate::archive::{Archive, Outcome, Promise, backup_arguments, disk, promise, say, wait};
use crate::image::{Image, Numbers};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What happened.
#[derive(Default)]
pub struct Figures {
    pub runs: u64,
    /// Killed in a backup, a prune, a repair.
    pub killed: [u64; 3],
    /// Backups that were killed after their point counted.
    pub published: u64,
    /// Restores that were compared byte for byte.
    pub restores: u64,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Figures { runs, killed: [backups, prunes, repairs], published, restores } = self;
        write!(
            f,
            "kills: {runs} runs, killed {backups} backups ({published} of them after the point \
             counted), {prunes} prunes, {repairs} repairs; {restores} restores compared, 0 broken"
        )
    }
}

/// How long each operation takes undisturbed; the instants are spread over it.
struct Durations([Duration; 3]);

impl Durations {
    fn learn(&mut self, operation: usize, took: Duration) {
        self.0[operation] = (self.0[operation] * 3 + took) / 4;
    }
}

struct Rig {
    archive: Archive,
    image: Image,
    path: PathBuf,
    spare: PathBuf,
    numbers: Numbers,
    durations: Durations,
    figures: Figures,
}

/// Kills until `runs` runs were killed, in turns.
pub fn run(program: &Path, folder: &Path, seed: u64, runs: u64, mib: usize) -> Promise<Figures> {
    let mut rig = Rig {
        archive: Archive::make(program, folder, 0)?,
        image: Image::new(seed, mib << 20),
        path: folder.join("image"),
        spare: folder.join("spare"),
        numbers: Numbers::new(seed ^ 0x6b69_6c6c),
        durations: Durations([Duration::from_millis(300); 3]),
        figures: Figures::default(),
    };
    for _ in 0..2 {
        rig.quiet_backup("the beginning")?;
    }
    while rig.figures.killed.iter().sum::<u64>() < runs {
        let number = rig.figures.runs;
        rig.figures.runs += 1;
        // One that is always too late would go on for ever.
        promise!(number < runs * 8 + 40, "the rig kills too late: {}", rig.figures);
        match number % 3 {
            0 => rig.backup(&format!("run {number}, backup"))?,
            1 => rig.prune(&format!("run {number}, prune"))?,
            _ => rig.repair(&format!("run {number}, repair"))?,
        }
    }
    rig.archive.assert_garbage_goes("the end")?;
    rig.archive.adopt("the end")?;
    rig.whole("the end")?;
    Ok(rig.figures)
}

impl Rig {
    fn change(&mut self) -> Promise<Arc<Vec<u8>>> {
        self.image.change(4);
        say("write the image", fs::write(&self.path, &self.image.bytes))?;
        Ok(Arc::new(self.image.bytes.clone()))
    }

    fn quiet_backup(&mut self, what: &str) -> Promise {
        let bytes = self.change()?;
        let began = Instant::now();
        self.archive.backup(what, &self.path, &bytes)?;
        self.durations.learn(0, began.elapsed());
        Ok(())
    }

    fn whole(&mut self, what: &str) -> Promise {
        self.figures.restores += self.archive.known.len() as u64;
        self.archive.assert_whole(what)
    }

    /// Kills the run at an instant within its usual duration, and a little later.
    fn kill(&mut self, operation: usize, child: Child) -> Promise<Outcome> {
        let began = Instant::now();
        let usual = self.durations.0[operation].as_micros() as u64;
        std::thread::sleep(Duration::from_micros(self.numbers.within(0..usual * 21 / 20 + 1)));
        // Not waited for yet, so the number is still this child's.
        if let Some(pid) = Pid::from_raw(child.id() as i32) {
            let _ = kill_process(pid, Signal::KILL);
        }
        let outcome = wait(child);
        if outcome.was_killed() {
            self.figures.killed[operation] += 1;
        } else {
            self.durations.learn(operation, began.elapsed());
        }
        Ok(outcome)
    }

    fn backup(&mut self, what: &str) -> Promise {
        let bytes = self.change()?;
        let disk = disk(&self.path);
        let child = self.archive.start(&backup_arguments(&disk))?;
        let outcome = self.kill(0, child)?;
        outcome.is_clear(what)?;
        let before = self.archive.known.len();
        self.archive.learn(&outcome, &bytes);
        promise!(outcome.was_killed() || outcome.succeeded(), "{what}: {outcome:?}");
        self.archive.expect(&bytes);
        self.archive.adopt(what)?;
        if outcome.was_killed() && self.archive.known.len() > before {
            self.figures.published += 1;
        }
        self.whole(what)?;
        self.quiet_backup(what)?;
        Ok(())
    }

    fn prune(&mut self, what: &str) -> Promise {
        if self.numbers.within(0..4) > 0 {
            self.archive.let_time_pass()?;
        }
        self.archive.forget(what, 2)?;
        let arguments = ["prune", "--max-unused", "0", "--no-wait"];
        let child = self.archive.start(&arguments)?;
        let outcome = self.kill(1, child)?;
        outcome.is_clear(what)?;
        promise!(outcome.was_killed() || outcome.succeeded(), "{what}: {outcome:?}");
        // It may have completed what a backup left that was killed just before it was done.
        self.archive.adopt(what)?;
        self.whole(what)?;
        if self.numbers.within(0..2) == 0 {
            self.quiet_backup(what)?;
        }
        let began = Instant::now();
        self.archive.must(what, &arguments)?;
        if outcome.was_killed() && self.numbers.within(0..3) == 0 {
            self.durations.learn(1, began.elapsed());
        }
        self.archive.adopt(what)?;
        self.whole(what)
    }

    /// On a copy, which is damaged; what the archive has stays as it is.
    fn repair(&mut self, what: &str) -> Promise {
        let copy = self.archive.copy_to(&self.spare)?;
        copy.let_time_pass()?;
        let evidence = damage(&copy, &mut self.numbers)?;
        let before = copy.readable()?;
        let child = copy.start(&["repair", "packs"])?;
        let outcome = self.kill(2, child)?;
        outcome.is_clear(what)?;
        let still = |when: &str| -> Promise {
            let after = copy.readable()?;
            let lost: Vec<_> = before.iter().filter(|id| !after.contains(id)).collect();
            promise!(lost.is_empty(), "{what}: {when} these no longer come back: {lost:?}");
            promise!(evidence.is_there(&copy), "{what}: {when} the damaged pack is gone");
            Ok(())
        };
        still("after the kill")?;
        let began = Instant::now();
        let again = copy.run(&["repair", "packs"])?;
        self.durations.learn(2, began.elapsed());
        promise!(again.is_done(), "{what}: it does not go on: {again:?}");
        still("after the repair")?;
        // It may warn that a map of before is lost.
        let next = copy.run(&backup_arguments(&disk(&self.path)))?;
        promise!(next.is_done(), "{what}: no backup after the repair: {next:?}");
        let mut copy = copy;
        let newest = next.json()["point_id"].as_str().unwrap_or_default().to_string();
        copy.known.insert(newest.clone(), Arc::new(self.image.bytes.clone()));
        promise!(copy.comes_back(&newest)?, "{what}: a backup after the repair does not come back");
        self.figures.restores += 2 * before.len() as u64 + 1;
        Ok(())
    }
}

/// A pack that was damaged on purpose.
struct Evidence {
    name: String,
    bytes: Vec<u8>,
}

impl Evidence {
    /// The damaged bytes are still there, under the pack's name or aside.
    fn is_there(&self, archive: &Archive) -> bool {
        let same = |path: PathBuf| fs::read(path).is_ok_and(|bytes| bytes == self.bytes);
        let leaf = self.name.rsplit('/').next().unwrap_or_default();
        same(archive.repository.join("packs").join(&self.name))
            || crate::archive::files(&archive.repository.join("aside"))
                .into_iter()
                .filter(|name| name.contains(leaf))
                .any(|name| same(archive.repository.join("aside").join(name)))
    }
}

/// Damages one pack: a byte flipped, the end cut off, or the header gone.
fn damage(archive: &Archive, numbers: &mut Numbers) -> Promise<Evidence> {
    let packs = crate::archive::files(&archive.repository.join("packs"));
    promise!(!packs.is_empty(), "the rig has no pack to damage");
    let name = packs[numbers.within(0..packs.len() as u64) as usize].clone();
    let path = archive.repository.join("packs").join(&name);
    let mut bytes = say("read a pack", fs::read(&path))?;
    match numbers.within(0..3) {
        0 => {
            let at = numbers.within(0..bytes.len() as u64) as usize;
            bytes[at] ^= 1 << numbers.within(0..8);
        }
        1 => bytes.truncate(numbers.within(1..bytes.len() as u64) as usize),
        _ => {
            let end = bytes.len().min(4096);
            bytes[..end].fill(0);
        }
    }
    // A storage's files are read-only.
    say("damage a pack", fs::remove_file(&path))?;
    say("damage a pack", fs::write(&path, &bytes))?;
    Ok(Evidence { name, bytes })
}
