//! What goes in comes out: disks and streams of every shape, over several points, cut and
//! restored in every way, compared byte by byte and hole by hole with plain copies.

#![allow(clippy::unwrap_used, reason = "a test may stop where it fails")]
#![allow(clippy::print_stderr, reason = "a test says what it skipped")]
#![allow(missing_docs, reason = "nobody but the tests uses it")]

#[path = "roundtrip/cases.rs"]
mod cases;
#[path = "roundtrip/disks.rs"]
mod disks;
#[path = "support/files.rs"]
mod files;
#[path = "roundtrip/huge.rs"]
mod huge;
#[path = "support/lab.rs"]
mod lab;
#[path = "roundtrip/model.rs"]
mod model;
#[path = "roundtrip/streams.rs"]
mod streams;

use proptest::test_runner::{Config, FileFailurePersistence};

/// So many cases, or as many as `PROPTEST_CASES` says. A failing seed is printed and kept beside
/// the test; a failing case is not made smaller for ever, since each writes and reads real files.
fn cases_of(cases: u32) -> Config {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    Config {
        cases: asked.unwrap_or(cases),
        max_shrink_iters: 300,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..Config::default()
    }
}
