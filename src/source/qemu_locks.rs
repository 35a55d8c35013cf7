//! Whether a QEMU is writing to an image: it locks one byte of the file for each thing that it may do
//! (QEMU, block/file-posix.c).
//!
//! Invariants: no lock is taken, so QEMU is never kept from anything; another program's locks are
//! not taken for QEMU's.

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{F_RDLCK, F_WRLCK, SEEK_SET, c_short, flock, off_t};
use std::fs::File;

/// QEMU locks this byte and those behind it, one for each permission that it uses, shared.
const PERMISSIONS: off_t = 100;
/// Where the bytes for what it does not permit to others begin.
const NOT_PERMITTED: off_t = 200;
/// The permission to change what a guest sees.
const WRITE: off_t = 1;
/// The process of a lock that belongs to an open file description.
const NO_PROCESS: i32 = -1;

/// True if a QEMU has the file open and may write to it. Where there are no such locks it is false.
pub fn is_written(file: &File) -> bool {
    // A lock that would conflict with a shared one is asked about and not taken.
    let mut lock = flock {
        l_type: F_WRLCK as c_short,
        l_whence: SEEK_SET as c_short,
        l_start: PERMISSIONS + WRITE,
        l_len: 1,
        l_pid: 0,
    };
    if fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).is_err() {
        return false;
    }
    // Locks of neighbours are one; another program locks more, or exclusively, or by process.
    lock.l_type == F_RDLCK as c_short
        && lock.l_pid == NO_PROCESS
        && lock.l_start >= PERMISSIONS
        && lock.l_len > 0
        && lock.l_start.saturating_add(lock.l_len) <= NOT_PERMITTED
}
