//! Images that `restore --format` writes, before independent judges: qemu-img checks them and
//! compares them with the disk, tar and sha256sum open archives, and a backup of the image finds
//! the disk again.
//!
//! The judges are part of the promise: without qemu-img this fails.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test may stop where it fails")]

#[path = "output_images/backing.rs"]
mod backing;
#[path = "support/command.rs"]
mod command;
#[path = "support/files.rs"]
mod files;
#[path = "output_images/formats.rs"]
mod formats;
#[path = "output_images/ova.rs"]
mod ova;
#[path = "output_images/refusals.rs"]
mod refusals;
#[path = "output_images/rig.rs"]
mod rig;
