//! Walking a file system: to a path, and through everything below one.
//!
//! Invariants: a walk ends, whatever the file system says: no folder is entered twice, none deeper
//! than 1000 levels, and no link is followed below the start; what is wrong with one folder does
//! not end it.

use super::volume::{Entry, Volume};
use super::{Glob, Kind, Name};
use crate::error::{Error, ErrorKind, Result};
use std::collections::{HashSet, VecDeque};

/// Links that are followed on the way to a path: as Linux does.
const LINKS_MAX: usize = 40;
/// Levels below the start: a path of 4096 bytes, as long as Linux takes them, has no more than
/// twice as many.
const DEPTH_MAX: usize = 1000;
/// Folders that are entered: more than any tool makes, less than would take days.
const FOLDERS_MAX: u64 = 16 << 20;

/// An entry and the path by which it was found, without links in it.
pub struct Resolved<'v> {
    /// From the root of the file system on, with a `/` at its start.
    pub path: Name,
    /// What is there.
    pub entry: Entry<'v>,
}

/// Finds a path. Links on the way are followed inside of the file system; one at the end only if
/// a `/` follows it.
///
/// # Errors
/// `NotFound`; `Usage` for too many links or something that is no folder; `Damage`.
pub fn resolve<'v>(volume: &'v Volume, path: &Name) -> Result<Resolved<'v>> {
    let mut stack = vec![volume.root()?];
    let mut rest: VecDeque<Vec<u8>> = parts(&path.0);
    let mut links = 0;
    while let Some(part) = rest.pop_front() {
        if part.is_empty() || part == b"." {
            continue;
        }
        if part == b".." {
            if stack.len() > 1 {
                stack.pop();
            }
            continue;
        }
        let at = path_of(&stack);
        let name = Name(part);
        let Some(folder) = stack.last().filter(|entry| entry.facts.kind == Kind::Folder) else {
            let text =
                format!("cannot find {} on {}: {at} is no folder", at.join(&name), volume.name());
            return Err(Error::new(ErrorKind::NotFound, text));
        };
        let found = look_up(volume, folder, &at, &name)?;
        if found.facts.kind != Kind::Link || rest.is_empty() {
            stack.push(found);
            continue;
        }
        links += 1;
        if links > LINKS_MAX {
            let text = format!("cannot find {path} on {}: over {LINKS_MAX} links", volume.name());
            return Err(Error::new(ErrorKind::Usage, text));
        }
        let target = inside(volume, volume.target(&found, &at.join(&name))?);
        if target.starts_with(b"/") {
            stack.truncate(1);
        }
        for part in parts(&target).into_iter().rev() {
            rest.push_front(part);
        }
    }
    let path = path_of(&stack);
    match stack.pop() {
        Some(entry) => Ok(Resolved { path, entry }),
        None => Ok(Resolved { path, entry: volume.root()? }),
    }
}

fn parts(path: &[u8]) -> VecDeque<Vec<u8>> {
    path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect()
}

fn path_of(stack: &[Entry<'_>]) -> Name {
    stack.iter().skip(1).fold(Name(b"/".to_vec()), |path, entry| path.join(&entry.name))
}

/// A link of Windows as a path of the volume: `C:\a` and `\??\C:\a` are `/a`.
fn inside(volume: &Volume, target: Name) -> Vec<u8> {
    if !volume.has_drives() {
        return target.0;
    }
    let path: Vec<u8> =
        target.0.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect();
    let path = path.strip_prefix(b"/??/").unwrap_or(&path);
    match path {
        [drive, b':', rest @ ..] if drive.is_ascii_alphabetic() => [b"/", rest].concat(),
        _ => path.to_vec(),
    }
}

fn look_up<'v>(
    volume: &'v Volume,
    folder: &Entry<'v>,
    at: &Name,
    name: &Name,
) -> Result<Entry<'v>> {
    let listing = volume.list(folder, at);
    let folded = |name: &Name| String::from_utf8_lossy(&name.0).to_lowercase();
    let mut entries = listing.entries;
    let place = entries.iter().position(|entry| entry.name == *name).or_else(|| {
        let wanted = volume.ignores_case().then(|| folded(name))?;
        entries.iter().position(|entry| folded(&entry.name) == wanted)
    });
    match (place, listing.trouble) {
        (Some(place), _) => Ok(entries.swap_remove(place)),
        (None, Some(trouble)) => Err(trouble),
        (None, None) => {
            let text = format!("cannot find {} on {}", at.join(name), volume.name());
            Err(Error::new(ErrorKind::NotFound, text))
        }
    }
}

/// What a walk meets.
pub enum Step<'w, 'v> {
    /// An entry, before what is in it.
    Entry(&'w Entry<'v>),
    /// The end of a folder that was entered.
    Leave(&'w Entry<'v>),
    /// Something of a folder could not be read.
    Trouble(Error),
}

/// Whether a walk goes into a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Go {
    /// Yes.
    In,
    /// No.
    Past,
}

/// Where a walk is.
pub struct At<'w> {
    /// The path from the root of the file system on.
    pub path: &'w Name,
    /// The names below the start: none for the start.
    pub names: &'w [Name],
}

struct Level<'v> {
    folder: Entry<'v>,
    path: Name,
    /// The next one is the last.
    left: Vec<Entry<'v>>,
}

/// Calls `each` for the start and all that is below, folders before what is in them, in the order
/// of their names. Names that no folder can have are entries like others, but not entered.
///
/// # Errors
/// What `each` says.
pub fn walk<'v>(
    volume: &'v Volume,
    start: &Resolved<'v>,
    each: &mut dyn FnMut(At<'_>, Step<'_, 'v>) -> Result<Go>,
) -> Result<()> {
    let mut names: Vec<Name> = Vec::new();
    let at = At { path: &start.path, names: &names };
    if each(at, Step::Entry(&start.entry))? == Go::Past || start.entry.facts.kind != Kind::Folder {
        return Ok(());
    }
    let mut entered = HashSet::new();
    let folders_max = volume.folders_max().min(FOLDERS_MAX);
    let mut count = 1;
    let first = enter(volume, start.entry.clone(), &start.path, &names, &mut entered, each)?;
    let mut levels: Vec<Level<'v>> = first.into_iter().collect();
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.left.pop() else {
            each(At { path: &level.path, names: &names }, Step::Leave(&level.folder))?;
            levels.pop();
            names.pop();
            continue;
        };
        let path = level.path.join(&entry.name);
        names.push(entry.name.clone());
        let go = each(At { path: &path, names: &names }, Step::Entry(&entry))?;
        if go == Go::In && entry.facts.kind == Kind::Folder && entry.name.is_safe() {
            let is_too_much = levels.len() >= DEPTH_MAX || count >= folders_max;
            if is_too_much {
                let text = format!("cannot list {path}: too many folders, perhaps in a loop");
                let trouble = Step::Trouble(Error::new(ErrorKind::Damage, text));
                each(At { path: &path, names: &names }, trouble)?;
                each(At { path: &path, names: &names }, Step::Leave(&entry))?;
            } else if let Some(level) = enter(volume, entry, &path, &names, &mut entered, each)? {
                count += 1;
                levels.push(level);
                continue;
            }
        }
        names.pop();
    }
    Ok(())
}

/// Lists a folder; `None` if it was met before.
fn enter<'v>(
    volume: &'v Volume,
    folder: Entry<'v>,
    path: &Name,
    names: &[Name],
    entered: &mut HashSet<u64>,
    each: &mut dyn FnMut(At<'_>, Step<'_, 'v>) -> Result<Go>,
) -> Result<Option<Level<'v>>> {
    let listing = volume.list(&folder, path);
    if let Some(trouble) = listing.trouble {
        each(At { path, names }, Step::Trouble(trouble))?;
    }
    if listing.identity.is_some_and(|identity| !entered.insert(identity)) {
        let text = format!("cannot list {path}: it is a folder that was met before: a loop");
        each(At { path, names }, Step::Trouble(Error::new(ErrorKind::Damage, text)))?;
        each(At { path, names }, Step::Leave(&folder))?;
        return Ok(None);
    }
    let mut left = listing.entries;
    left.sort_by(|one, two| two.name.cmp(&one.name));
    Ok(Some(Level { folder, path: path.clone(), left }))
}

/// What is looked for.
#[derive(Default)]
pub struct Find {
    /// Fits the name.
    pub name: Option<Glob>,
    /// What it is.
    pub kind: Option<Kind>,
}

/// Calls `each` with the path of each entry that fits, and `trouble` with what could not be read.
///
/// # Errors
/// What these say.
pub fn find<'v>(
    volume: &'v Volume,
    start: &Resolved<'v>,
    wanted: &Find,
    each: &mut dyn FnMut(&Name, &Entry<'v>) -> Result<()>,
    trouble: &mut dyn FnMut(Error) -> Result<()>,
) -> Result<()> {
    walk(volume, start, &mut |at, step| {
        match step {
            Step::Entry(entry) => {
                let fits_name =
                    wanted.name.as_ref().is_none_or(|pattern| pattern.fits(&entry.name.0));
                let fits_kind = wanted.kind.is_none_or(|kind| kind == entry.facts.kind);
                if fits_name && fits_kind {
                    each(at.path, entry)?;
                }
            }
            Step::Leave(_) => {}
            Step::Trouble(error) => trouble(error)?,
        }
        Ok(Go::In)
    })
}
