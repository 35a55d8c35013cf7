//! Files out of points: what `ls`, `cp` and `find` show of file systems that the real tools made
//! is what was put in; what is damaged is an error; what is hostile stays in its folder.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stderr, reason = "a skipped test says so")]

#[path = "support/command.rs"]
mod command;
#[path = "files/damaged.rs"]
mod damaged;
#[path = "files/hostile.rs"]
mod hostile;
#[path = "files/images.rs"]
mod images;
#[path = "files/systems.rs"]
mod systems;
