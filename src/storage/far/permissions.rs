//! What a login may do at the far end, as a rule without effects, and which folders it may name.
//!
//! Invariants: who may only add points can neither change nor remove what others have put, nor make a
//! point of theirs visible; and a folder that is named lies, links followed, in one that is allowed.

use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Folder, ObjectName, POINT_DONE_SUFFIX};
use std::io;
use std::path::{Component, Path, PathBuf};

/// How much a login may do. Reading is allowed to each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    Full,
    /// To add points, and to take back what it has begun itself.
    AppendOnly,
    /// Nothing but reading.
    ReadOnly,
}

/// A change that somebody asks for.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// To put an object.
    Put(&'a ObjectName),
    /// To remove one.
    Delete(&'a ObjectName),
    /// To give one another name.
    Rename(&'a ObjectName),
}

/// What the rule has to know of the objects there.
pub trait Known {
    /// True if this login has put the object.
    fn is_own(&self, name: &ObjectName) -> bool;
    /// True if there is such an object, or nobody can tell.
    fn exists(&self, name: &ObjectName) -> bool;
}

/// Whether a change is allowed.
///
/// # Errors
/// `Storage`, because of a permission, if it is not.
pub fn check(access: Access, change: Change<'_>, known: &dyn Known) -> Result<()> {
    let (allowed, rule) = match access {
        Access::Full => return Ok(()),
        Access::ReadOnly => (false, "this login may only read"),
        Access::AppendOnly => {
            let allowed = match change {
                Change::Put(name) => may_add(name, known).unwrap_or(false),
                Change::Delete(name) => may_take_back(name, known).unwrap_or(false),
                Change::Rename(_) => false,
            };
            (allowed, "this login may only add points")
        }
    };
    if allowed {
        return Ok(());
    }
    let (verb, name) = match change {
        Change::Put(name) => ("write", name),
        Change::Delete(name) => ("delete", name),
        Change::Rename(name) => ("rename", name),
    };
    Err(refused(format!("cannot {verb} {name}"), rule))
}

/// The error for what a login may not do.
pub fn refused(what: String, rule: &str) -> Error {
    let cause = io::Error::new(io::ErrorKind::PermissionDenied, rule);
    Error::new(ErrorKind::Storage, what).because(cause)
}

/// `None` stands for no, as where a name that this one belongs to cannot be told.
fn may_add(name: &ObjectName, known: &dyn Known) -> Option<bool> {
    let leaf = name.leaf();
    Some(match name.folder() {
        Folder::Packs => true,
        // Parity that does not fit would keep a pack from being healed.
        Folder::Parity => known.is_own(&ObjectName::new(Folder::Packs, leaf).ok()?),
        Folder::Points => match leaf.strip_suffix(POINT_DONE_SUFFIX) {
            None => true,
            // Another's manifest is not to become a point before it is whole.
            Some(manifest) => known.is_own(&ObjectName::new(Folder::Points, manifest).ok()?),
        },
        Folder::Notes => {
            let (point, _) = leaf.split_once('-')?;
            known.is_own(&ObjectName::new(Folder::Points, point).ok()?)
        }
        Folder::Leases => match leaf.split_once('.') {
            None => true,
            // Heartbeats would keep alive what stands still.
            Some((lease, _)) => known.is_own(&ObjectName::new(Folder::Leases, lease).ok()?),
        },
        _ => false,
    })
}

/// As [`may_add`].
fn may_take_back(name: &ObjectName, known: &dyn Known) -> Option<bool> {
    let leaf = name.leaf();
    Some(match name.folder() {
        Folder::Leases => {
            let (lease, _) = leaf.split_once('.').unwrap_or((leaf, ""));
            known.is_own(&ObjectName::new(Folder::Leases, lease).ok()?)
        }
        Folder::Points if !leaf.ends_with(POINT_DONE_SUFFIX) => {
            let ok = ObjectName::new(Folder::Points, &format!("{leaf}{POINT_DONE_SUFFIX}")).ok()?;
            known.is_own(name) && !known.exists(&ok)
        }
        _ => false,
    })
}

/// The folder that a client names: absolute, or below the home with `~/`. With `allowed` not empty
/// it lies in one of these, whatever links there are.
///
/// # Errors
/// `Usage` for a relative path; `Storage`, because of a permission, for one that is not allowed.
pub fn folder(named: &str, home: Option<&Path>, allowed: &[PathBuf]) -> Result<PathBuf> {
    let path = match (named.strip_prefix("~/"), home) {
        (Some(below), Some(home)) => home.join(below),
        _ => PathBuf::from(named),
    };
    if !path.is_absolute() {
        let text = format!("cannot use {}: not an absolute path", named.escape_debug());
        return Err(Error::new(ErrorKind::Usage, text));
    }
    if allowed.is_empty() {
        return Ok(path);
    }
    let refuse = || {
        let text = format!("cannot use {}", named.escape_debug());
        refused(text, "this login may not use that folder")
    };
    let real = resolve(&path).ok_or_else(refuse)?;
    let is_in = |above: &PathBuf| above.canonicalize().is_ok_and(|above| real.starts_with(above));
    if allowed.iter().any(is_in) { Ok(real) } else { Err(refuse()) }
}

/// The path without links and `..`, also if the end of it does not exist; `None` if that cannot be
/// told.
fn resolve(path: &Path) -> Option<PathBuf> {
    let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::RootDir);
    if !path.components().all(is_plain) {
        return None;
    }
    let mut missing = Vec::new();
    let mut there = path;
    loop {
        match there.canonicalize() {
            Ok(real) => return Some(missing.iter().rev().fold(real, |real, part| real.join(part))),
            // A link that leads nowhere is there, and what it leads to could be made.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound && !there.is_symlink() => {
                missing.push(there.file_name()?);
                there = there.parent()?;
            }
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Own(Vec<&'static str>, Vec<&'static str>);

    impl Known for Own {
        fn is_own(&self, name: &ObjectName) -> bool {
            self.0.contains(&name.as_str())
        }
        fn exists(&self, name: &ObjectName) -> bool {
            self.1.contains(&name.as_str())
        }
    }

    fn may(access: Access, what: char, name: &str) -> bool {
        let own = Own(
            vec!["packs/aa/aa01", "points/aa01", "points/aa02", "leases/aa01"],
            vec!["points/aa01.ok", "points/bb01.ok"],
        );
        let name = ObjectName::parse(name).unwrap();
        let change = match what {
            'p' => Change::Put(&name),
            'd' => Change::Delete(&name),
            _ => Change::Rename(&name),
        };
        let result = check(access, change, &own);
        if let Err(error) = &result {
            assert_eq!(error.kind(), ErrorKind::Storage);
            assert!(crate::storage::is_refused(error));
            assert!(error.full_text().contains(": this login may only "), "{error:?}");
        }
        result.is_ok()
    }

    #[test]
    fn the_table_of_what_who_may() {
        // Put and delete by somebody who may only add points; `aa` is own, `bb` another's.
        let table = [
            ("packs/cc/cc01", true, false),
            ("packs/aa/aa01", true, false),
            ("parity/aa01", true, false),
            ("parity/bb01", false, false),
            ("points/cc01", true, false),
            ("points/aa01", true, false),
            ("points/aa02", true, true),
            ("points/bb02", true, false),
            ("points/aa01.ok", true, false),
            ("points/aa02.ok", true, false),
            ("points/bb01.ok", false, false),
            ("points/bb02.ok", false, false),
            ("notes/aa01-01", true, false),
            ("notes/bb01-01", false, false),
            ("notes/aa01", false, false),
            ("leases/cc01", true, false),
            ("leases/aa01", true, true),
            ("leases/aa01.7", true, true),
            ("leases/bb01", true, false),
            ("leases/bb01.7", false, false),
            ("config/00000002-aa", false, false),
            ("instance", false, false),
            ("keys/aa01", false, false),
            ("lost/aa01", false, false),
            ("index/aa01", false, false),
            ("condemned/aa01", false, false),
            ("trash/aa01", false, false),
            ("aside/points-aa01.1", false, false),
        ];
        for (name, put, delete) in table {
            assert_eq!(may(Access::AppendOnly, 'p', name), put, "put {name}");
            assert_eq!(may(Access::AppendOnly, 'd', name), delete, "delete {name}");
            assert!(!may(Access::AppendOnly, 'r', name), "rename {name}");
            for what in ['p', 'd', 'r'] {
                assert!(!may(Access::ReadOnly, what, name) && may(Access::Full, what, name));
            }
        }
    }

    #[test]
    fn no_way_leads_out_of_the_folders_that_are_allowed() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        for folder in ["srv/a", "other", "home"] {
            std::fs::create_dir_all(top.join(folder)).unwrap();
        }
        std::os::unix::fs::symlink(top.join("other"), top.join("srv/out")).unwrap();
        std::os::unix::fs::symlink(top.join("nowhere"), top.join("srv/dangling")).unwrap();
        std::os::unix::fs::symlink(top.join("srv/a"), top.join("in")).unwrap();
        let allowed = [top.join("srv"), top.join("not-there")];
        let named = |path: &str| format!("{}/{path}", top.display());
        let home = top.join("home");
        let ask = |path: &str, allowed: &[PathBuf]| folder(path, Some(&home), allowed);
        for (path, real) in
            [("srv/a", "srv/a"), ("srv", "srv"), ("srv/n/m", "srv/n/m"), ("in", "srv/a")]
        {
            assert_eq!(ask(&named(path), &allowed).unwrap(), top.join(real), "{path}");
        }
        for path in [
            "other",
            "srv/out",
            "srv/out/x",
            "srv/dangling",
            "srv/dangling/x",
            "srv/../other",
            "srv/a/../../other",
            "srvx",
            "",
            "not-there-either",
        ] {
            let error = ask(&named(path), &allowed).unwrap_err();
            assert!(crate::storage::is_refused(&error), "{path}: {error:?}");
        }
        assert!(ask("~/x", &allowed).is_err());
        assert_eq!(ask("~/x", &[]).unwrap(), home.join("x"));
        assert_eq!(ask("relative", &[]).unwrap_err().kind(), ErrorKind::Usage);
        assert_eq!(ask(&named("srv/out"), &[]).unwrap(), top.join("srv/out"));
    }
}
