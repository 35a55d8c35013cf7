//! A file system that turns read-only in the middle of a backup or a prune: by a remount where the
//! kernel grants one, else as after an error of the disk (`remount,abort`), which also loses what
//! was not on stable storage yet.

use crate::archive::{Archive, Promise, backup_arguments, disk, promise, say, wait};
use crate::image::{Image, Numbers};
use crate::mount::Mounted;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Turns it read-only `runs` times.
pub fn run(program: &Path, folder: &Path, seed: u64, runs: u64) -> Promise<String> {
    let Some(mounted) = Mounted::new(folder, 400)? else { return Ok("readonly: skipped".into()) };
    let mut archive = Archive::make(program, &mounted.at, 0)?;
    // Caches are of another disk in life.
    archive.cache = folder.join("cache");
    let mut numbers = Numbers::new(seed ^ 0x726f);
    let mut image = Image::new(seed, 24 << 20);
    let path = folder.join("image");
    let (mut failed, mut aborted) = ([0_u64; 2], 0_u64);
    let mut usual = Duration::from_millis(300);
    for number in 0..runs {
        let is_prune = number % 2 == 1;
        let what = format!("run {number}, {}", if is_prune { "prune" } else { "backup" });
        image.change(4);
        let bytes = Arc::new(image.bytes.clone());
        say("write the image", fs::write(&path, &bytes[..]))?;
        let began = Instant::now();
        archive.backup(&what, &path, &bytes)?;
        usual = (usual + began.elapsed()) / 2;
        image.change(4);
        let bytes = Arc::new(image.bytes.clone());
        say("write the image", fs::write(&path, &bytes[..]))?;
        let disk = disk(&path);
        let child = if is_prune {
            archive.let_time_pass()?;
            archive.forget(&what, 2)?;
            archive.start(&["prune", "--max-unused", "0", "--no-wait"])?
        } else {
            archive.start(&backup_arguments(&disk))?
        };
        let micros = usual.as_micros() as u64;
        std::thread::sleep(Duration::from_micros(numbers.within(0..micros + 1)));
        // A plain remount is refused while a file is open for writing.
        let is_plain = (0..20).any(|_| mounted.remount("ro").is_ok());
        if !is_plain {
            mounted.remount("abort")?;
            aborted += 1;
        }
        let outcome = wait(child);
        outcome.is_clear(&what)?;
        promise!([0, 1].contains(&outcome.code), "{what}: another exit code: {outcome:?}");
        if outcome.code == 1 {
            failed[usize::from(is_prune)] += 1;
            let is_told = ["Read-only file system", "Input/output error", "Structure needs"]
                .iter()
                .any(|text| outcome.stderr.contains(text));
            promise!(is_told, "{what}: does not say why: {outcome:?}");
        }
        if is_plain {
            // What there is can be read meanwhile.
            archive.points(&what, None)?;
            mounted.remount("rw")?;
        } else {
            mounted.again()?;
        }
        archive.learn(&outcome, &bytes);
        if !is_prune {
            archive.expect(&bytes);
        }
        archive.adopt(&what)?;
        archive.assert_whole(&what)?;
        archive.must(&what, &["prune", "--max-unused", "0", "--no-wait"])?;
        archive.adopt(&what)?;
    }
    archive.assert_garbage_goes("the end")?;
    archive.assert_whole("the end")?;
    let [backups, prunes] = failed;
    Ok(format!(
        "readonly: {runs} times read-only ({aborted} by an aborted journal), {backups} backups and \
         {prunes} prunes failed by it, 0 broken"
    ))
}
