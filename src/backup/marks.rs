//! Names of the dirty bitmaps in which a hypervisor keeps what has changed on a disk since a point was made.
//!
//! Invariant: a name leads to one point of one series of one repository and one disk of it; one that
//! another repository, series or disk has made is told from it.

use diskvault_format::id::{BackupId, RepositoryId, to_hex};

/// What all names begin with.
const START: &str = "diskvault-";
/// What the prefix is derived with; never to be changed, for bitmaps outlive versions.
const CONTEXT: &str = "diskvault 2026-11-28 name of a dirty bitmap";
/// Bytes of the hash in a name.
const PREFIX_BYTES: usize = 4;

/// The name of the bitmap that holds what has changed on a disk since the point that the backup
/// with this id makes: `diskvault-<8 hex>-<32 hex>`, where the 8 digits tell repository, series and
/// disk from others.
pub(crate) fn mark_name(
    repository: RepositoryId,
    series: &str,
    disk: &str,
    backup: BackupId,
) -> String {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    for part in [&repository.0[..], series.as_bytes(), disk.as_bytes()] {
        // With their lengths, so that no two triples give the same bytes.
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    let hash = hasher.finalize();
    format!("{START}{}-{}", to_hex(&hash.as_bytes()[..PREFIX_BYTES]), backup.to_hex())
}

/// The 8 digits and the backup of a name that [`mark_name`] may have made; nothing of any other.
pub(crate) fn parse(name: &str) -> Option<(&str, BackupId)> {
    let (prefix, backup) = name.strip_prefix(START)?.split_once('-')?;
    let is_hex = |digit: u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
    let is_prefix = prefix.len() == 2 * PREFIX_BYTES && prefix.bytes().all(is_hex);
    Some((prefix, BackupId::from_hex(backup)?)).filter(|_| is_prefix)
}

/// The disk that the mark of a whole machine is named for: a checkpoint of libvirt has one name.
pub(crate) const WHOLE: &str = "";

/// True for a mark of this disk, or of the whole machine that it belongs to.
pub(crate) fn is_of(repository: RepositoryId, series: &str, disk: &str, name: &str) -> bool {
    let is_for = |disk, backup| mark_name(repository, series, disk, backup) == name;
    parse(name).is_some_and(|(_, backup)| is_for(disk, backup) || is_for(WHOLE, backup))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKUP: BackupId = BackupId([0xa5; 16]);

    #[test]
    fn a_name_tells_repository_series_disk_and_backup() {
        let name = mark_name(RepositoryId([1; 16]), "web01", "vda", BACKUP);
        // Bitmaps that were made by this version are found by the next one.
        assert_eq!(name, "diskvault-b7ccc7b8-a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5");
        let (prefix, backup) = parse(&name).unwrap();
        assert_eq!((prefix, backup), ("b7ccc7b8", BACKUP));
        for other in [
            mark_name(RepositoryId([2; 16]), "web01", "vda", BACKUP),
            mark_name(RepositoryId([1; 16]), "web02", "vda", BACKUP),
            mark_name(RepositoryId([1; 16]), "web01", "vdb", BACKUP),
            mark_name(RepositoryId([1; 16]), "web01v", "da", BACKUP),
        ] {
            assert_ne!(parse(&other).unwrap().0, prefix, "{other}");
            assert_eq!(parse(&other).unwrap().1, BACKUP);
        }
    }

    #[test]
    fn marks_are_of_a_disk_or_of_its_machine() {
        let repository = RepositoryId([1; 16]);
        let mark = |disk: &str| mark_name(repository, "web01", disk, BACKUP);
        for (disk, is_of_vda) in [("vda", true), (WHOLE, true), ("vdb", false)] {
            assert_eq!(is_of(repository, "web01", "vda", &mark(disk)), is_of_vda, "{disk}");
            assert!(!is_of(repository, "web02", "vda", &mark(disk)), "{disk}");
            assert!(!is_of(RepositoryId([2; 16]), "web01", "vda", &mark(disk)), "{disk}");
        }
    }

    #[test]
    fn other_names_are_none() {
        let digits = "a5".repeat(16);
        for name in [
            "",
            "diskvault",
            "diskvault-",
            "backup-1",
            &format!("diskvault-0123456-{digits}"),
            &format!("diskvault-0123456g-{digits}"),
            &format!("diskvault-0123456A-{digits}"),
            &format!("diskvault-01234567-{digits}0"),
            &format!("diskvault-01234567-{}", digits.to_uppercase()),
            &format!("diskvault-01234567{digits}"),
            &format!("xdiskvault-01234567-{digits}"),
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
        assert!(parse(&format!("diskvault-01234567-{digits}")).is_some());
    }
}
