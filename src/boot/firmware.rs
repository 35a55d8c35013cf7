//! Whether a disk boots by UEFI, and where its firmware is.
//!
//! Invariant: a partition table is input of a stranger: what is read of it has a fixed size.

use crate::error::{Error, ErrorKind, Result};
use crate::view::View;
use std::path::{Path, PathBuf};

/// The type of EFI system partitions, as it lies in a GPT.
const EFI_SYSTEM: [u8; 16] =
    [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
/// The type of EFI system partitions in an MBR.
const EFI_SYSTEM_MBR: u8 = 0xef;
/// Code in front of the table of an MBR.
const BOOT_CODE_BYTES: usize = 440;
const SECTOR_BYTES: usize = 512;
/// Entries of a GPT that are looked at: 128 of 128 bytes.
const ENTRIES_BYTES: usize = 16 << 10;

/// Code and variables that distributions install, most specific first.
const KNOWN: [(&str, &str); 5] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"),
];

/// Which firmware is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirmwareChoice {
    /// UEFI for a disk that only UEFI boots.
    Auto,
    /// A BIOS.
    Bios,
    /// UEFI.
    Uefi,
}

/// The firmware of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// The one of QEMU.
    Bios,
    /// OVMF: its code, and variables that the machine begins with.
    Uefi {
        /// The file with the code.
        code: PathBuf,
        /// The bytes of the variables.
        variables: Vec<u8>,
    },
}

impl Firmware {
    /// The firmware for a machine by its first disk; `kept` are the variables that it had.
    ///
    /// # Errors
    /// `NotFound` if there is no OVMF here, or none of the size of the variables; what reading the
    /// disk says.
    pub fn choose(
        choice: FirmwareChoice,
        first_disk: &View,
        kept: Option<Vec<u8>>,
    ) -> Result<Firmware> {
        let is_uefi = match choice {
            FirmwareChoice::Bios => false,
            FirmwareChoice::Uefi => true,
            FirmwareChoice::Auto => boots_by_uefi_only(first_disk)?,
        };
        if !is_uefi {
            return Ok(Firmware::Bios);
        }
        let there = KNOWN.iter().filter(|(code, _)| Path::new(code).exists());
        for (code, variables) in there {
            let Ok(fresh) = std::fs::read(variables) else { continue };
            let variables = match &kept {
                // Code and variables of different sizes do not work together.
                Some(kept) if kept.len() != fresh.len() => continue,
                Some(kept) => kept.clone(),
                None => fresh,
            };
            return Ok(Firmware::Uefi { code: PathBuf::from(code), variables });
        }
        let text = "cannot boot by UEFI: there is no OVMF on this host that fits";
        Err(Error::new(ErrorKind::NotFound, text).hint("install the package ovmf"))
    }
}

/// True for a disk with an EFI system partition and without code that a BIOS would start.
fn boots_by_uefi_only(disk: &View) -> Result<bool> {
    let mut head = vec![0; (2 * SECTOR_BYTES).min(usize::try_from(disk.size()).unwrap_or(0))];
    disk.read_at(0, &mut head)?;
    let Some((record, rest)) = head.split_at_checked(SECTOR_BYTES) else { return Ok(false) };
    let has_code = record[..BOOT_CODE_BYTES].iter().any(|byte| *byte != 0);
    if record[510..] != [0x55, 0xaa] || has_code {
        return Ok(false);
    }
    let entries = record[446..510].chunks_exact(16);
    if entries.map(|entry| entry[4]).any(|kind| kind == EFI_SYSTEM_MBR) {
        return Ok(true);
    }
    let Some(place) = rest.get(72..80).filter(|_| rest.starts_with(b"EFI PART")) else {
        return Ok(false);
    };
    let sector = place.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    let Some(start) = sector.checked_mul(SECTOR_BYTES as u64) else { return Ok(false) };
    let room = disk.size().saturating_sub(start).min(ENTRIES_BYTES as u64);
    let mut table = vec![0; usize::try_from(room).unwrap_or(0)];
    disk.read_at(start.min(disk.size()), &mut table)?;
    Ok(table.chunks_exact(128).any(|entry| entry[..16] == EFI_SYSTEM))
}
