//! What a QEMU does with an image: it locks one byte of the file for each thing that it may do, and one
//! for each that it does not permit to others (QEMU, block/file-posix.c).
//!
//! Invariants: who asks takes no lock, so QEMU is never kept from anything by that; another
//! program's locks are not taken for QEMU's.

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{F_RDLCK, F_WRLCK, SEEK_SET, c_short, flock, off_t};
use std::fs::File;

/// QEMU locks this byte and those behind it, one for each permission that it uses, shared.
const PERMISSIONS: off_t = 100;
/// Where the bytes for what it does not permit to others begin; each of both has fewer than 100.
const NOT_PERMITTED: off_t = 200;
/// Behind all of them.
const END: off_t = 300;
/// The permission to change what a guest sees.
const WRITE: off_t = 1;
/// The process of a lock that belongs to an open file description.
const NO_PROCESS: i32 = -1;

/// True if a QEMU has the file open and may write to it. Where there are no such locks it is false.
pub fn is_written(file: &File) -> bool {
    is_locked(file, PERMISSIONS + WRITE, 1)
}

/// True if a QEMU has the file open in any way, such as an image below an overlay. One that was told to
/// share everything (`force-share`) does not show.
pub fn is_open(file: &File) -> bool {
    is_locked(file, PERMISSIONS, END - PERMISSIONS)
}

/// Keeps QEMU from opening the file as long as this open file lives, unless it is told not to look at
/// locks. False where that cannot be; what it means then is up to the caller.
pub fn hold(file: &File) -> bool {
    // It has to be open for reading and writing, or the locks are refused.
    [PERMISSIONS, NOT_PERMITTED].iter().all(|first| {
        let lock = lock_at(first + WRITE, 1, F_RDLCK);
        fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).is_ok()
    })
}

fn lock_at(byte: off_t, bytes: off_t, kind: i32) -> flock {
    flock {
        l_type: kind as c_short,
        l_whence: SEEK_SET as c_short,
        l_start: byte,
        l_len: bytes,
        l_pid: 0,
    }
}

fn is_locked(file: &File, byte: off_t, bytes: off_t) -> bool {
    // A lock that would conflict with a shared one is asked about and not taken.
    let mut lock = lock_at(byte, bytes, F_WRLCK);
    if fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).is_err() {
        return false;
    }
    // Locks of neighbours are one; another program locks more, or exclusively, or by process.
    lock.l_type == F_RDLCK as c_short
        && lock.l_pid == NO_PROCESS
        && lock.l_start >= PERMISSIONS
        && lock.l_len > 0
        && lock.l_start.saturating_add(lock.l_len) <= END
}
