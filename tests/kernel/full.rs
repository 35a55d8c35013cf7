//! A file system that runs full, over a loop device: nothing is lost, what is there can be read,
//! and forgetting and pruning gives room back, also where cache and temporary files lie on it.

use crate::archive::{Archive, Outcome, Promise, backup_arguments, disk, promise, say};
use crate::image::Image;
use crate::mount::Mounted;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

const NO_SPACE: i32 = 6;

/// One way to run full.
pub struct Case {
    name: &'static str,
    parity_per_mille: u32,
    /// True if cache and TMPDIR lie on the same file system.
    is_shared: bool,
    /// What is left free besides, once a backup failed.
    rest: u64,
}

pub const CASES: [Case; 6] = [
    Case { name: "plain", parity_per_mille: 0, is_shared: false, rest: u64::MAX },
    Case { name: "parity", parity_per_mille: 20, is_shared: false, rest: u64::MAX },
    Case { name: "shared", parity_per_mille: 0, is_shared: true, rest: u64::MAX },
    Case { name: "64 KiB", parity_per_mille: 0, is_shared: false, rest: 64 << 10 },
    Case { name: "shared, 64 KiB", parity_per_mille: 0, is_shared: true, rest: 64 << 10 },
    Case { name: "shared, 0", parity_per_mille: 20, is_shared: true, rest: 0 },
];

/// These cases, on a file system of 200 MiB each.
pub fn run(program: &Path, folder: &Path, seed: u64, cases: &[Case]) -> Promise<String> {
    let mut lines = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let folder = folder.join(number.to_string());
        let Some(mounted) = Mounted::new(&folder, 200)? else { return Ok("full: skipped".into()) };
        lines.push(one(program, &folder, &mounted, seed + number as u64, case)?);
    }
    Ok(format!("full:\n  {}\nfull: {} cases, 0 broken", lines.join("\n  "), cases.len()))
}

/// Runs one case on a file system of its own.
fn one(
    program: &Path,
    folder: &Path,
    mounted: &Mounted,
    seed: u64,
    case: &Case,
) -> Promise<String> {
    let what = case.name;
    let mut archive = Archive::make(program, &mounted.at, case.parity_per_mille)?;
    if case.is_shared {
        archive.temporary = mounted.at.join("tmp");
        say("make a folder", fs::create_dir_all(&archive.temporary))?;
    } else {
        archive.cache = folder.join("cache");
    }
    let path = folder.join("image");
    let mut image = Image::new(seed, 40 << 20);
    let mut backups = 0;
    let outcome = loop {
        promise!(backups < 30, "{what}: it never runs full");
        image.change(2);
        let bytes = Arc::new(image.bytes.clone());
        say("write the image", fs::write(&path, &bytes[..]))?;
        let outcome = archive.run(&backup_arguments(&disk(&path)))?;
        archive.learn(&outcome, &bytes);
        if !outcome.succeeded() {
            break outcome;
        }
        backups += 1;
    };
    promise!(outcome.code == NO_SPACE, "{what}: another exit code: {outcome:?}");
    promise!(outcome.stderr.contains("No space left"), "{what}: does not say why: {outcome:?}");
    let filler = fill(mounted, case.rest)?;
    let free = mounted.free();
    let usual = archive.cache.clone();
    let moved = read_while_full(&mut archive, folder, case)?;
    archive.assert_whole(what)?;
    let (attempts, told) =
        make_room(&mut archive, &filler, &mounted.at.join("filler-spare"), what)?;
    let gained = mounted.free().saturating_sub(free) >> 20;
    promise!(gained > 20, "{what}: only {gained} MiB came back");
    archive.cache = usual;
    let bytes = Arc::new(image.bytes.clone());
    archive.backup(what, &path, &bytes)?;
    archive.assert_whole(what)?;
    archive.assert_garbage_goes(what)?;
    Ok(format!(
        "{what}: full after {backups} backups, {free} bytes free, {gained} MiB back {attempts}{told}{moved}"
    ))
}

/// Where not even the index of one run has room, reading says so; with `--cache-dir` on another file
/// system everything goes on, and that is used from here on.
fn read_while_full(archive: &mut Archive, folder: &Path, case: &Case) -> Promise<String> {
    let what = case.name;
    let newest = archive.known.keys().next().cloned().unwrap_or_default();
    let mut outcome = archive.run(&["dump", &newest])?;
    if outcome.is_done() {
        // This one makes an index of its own.
        outcome = archive.run(&["check"])?;
    }
    if outcome.is_done() {
        return Ok(String::new());
    }
    promise!(case.is_shared && outcome.code == NO_SPACE, "{what}: it cannot be read: {outcome:?}");
    promise!(outcome.stderr.contains("--cache-dir"), "{what}: no way out is told: {outcome:?}");
    archive.cache = folder.join("cache");
    archive.must(what, &["list"])?;
    Ok("; reading needs --cache-dir elsewhere".into())
}

/// Takes what is free but for `rest` bytes. A part of it is a file of its own, so that a little can
/// be given back.
fn fill(mounted: &Mounted, rest: u64) -> Promise<std::path::PathBuf> {
    let filler = mounted.at.join("filler");
    if rest == u64::MAX {
        return Ok(filler);
    }
    // Room for the folder's own growth.
    let spare = mounted.at.join("filler-spare");
    say("fill", fs::write(&spare, vec![1; 256 << 10]).or(Ok::<(), std::io::Error>(())))?;
    let mut file = say("fill", fs::File::create(&filler))?;
    let mut step = 1 << 20;
    while step >= 4096 {
        let is_room = mounted.free() >= rest.saturating_add(step as u64) || rest == 0;
        if !is_room || file.write_all(&vec![1; step]).is_err() || file.sync_all().is_err() {
            step /= 2;
        }
    }
    Ok(filler)
}

/// Forgets and prunes. Where that finds no room to begin with, some KiB and then all of the filler
/// are given back by hand.
fn make_room(
    archive: &mut Archive,
    filler: &Path,
    spare: &Path,
    what: &str,
) -> Promise<(String, String)> {
    let points = archive.points(what, None)?;
    for id in &points[..points.len().saturating_sub(2)] {
        archive.known.remove(id);
    }
    let mut told = String::new();
    for given in ["at once", "with 256 KiB given back", "with all of the filler given back"] {
        match given {
            "at once" => {}
            "with 256 KiB given back" => _ = fs::remove_file(spare),
            _ => _ = fs::remove_file(filler),
        }
        let outcome = archive.run(&["forget", "--keep-last", "2", "--prune"])?;
        if outcome.is_done() {
            return Ok((given.into(), format!("{told}{}", warnings(&outcome))));
        }
        promise!(outcome.code == NO_SPACE, "{what}: another exit code: {outcome:?}");
        archive.assert_whole(what)?;
        told = format!("; before: {}", outcome.stderr.trim().replace('\n', " / "));
    }
    Err(format!("{what}: no way to make room{told}"))
}

fn warnings(outcome: &Outcome) -> String {
    let text: Vec<_> = outcome.stderr.lines().filter(|line| line.contains("warning")).collect();
    if text.is_empty() { String::new() } else { format!("; told: {}", text.join(" / ")) }
}
