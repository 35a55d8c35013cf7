//! What a storage at the far end of a slow line is asked for: nothing that this host has read
//! before, and never one after another what can be asked at once.

#![allow(clippy::unwrap_used, reason = "a test may stop where it fails")]

mod support;

use diskvault::repository::points::PointSet;
use diskvault::storage::memory::Operation;
use support::vault::{Parts, Vault, noise};

#[test]
fn manifests_are_read_once_by_each_host_and_by_every_check() {
    let mut vault = Vault::new(1);
    vault.storage.set_calls_at_once(8);
    let writer = vault.open("writer").unwrap();
    for number in 0..5 {
        let disk = Parts::from([("vda".to_string(), noise(number, 100_000))]);
        vault.backup(&writer, "web01", &disk).unwrap();
    }
    let manifests_read = |host: &str, fresh: bool| {
        let repository = vault.open(host).unwrap();
        let before = vault.storage.log().len();
        let set = match fresh {
            true => PointSet::load_fresh(&repository),
            false => PointSet::load(&repository),
        };
        assert_eq!(set.unwrap().points.len(), 5);
        let log = vault.storage.log().split_off(before);
        let is_manifest = |(operation, name): &&(Operation, String)| {
            *operation == Operation::Get && name.starts_with("points/")
        };
        log.iter().filter(is_manifest).count()
    };
    assert_eq!(manifests_read("reader", false), 5);
    assert_eq!(manifests_read("reader", false), 0);
    assert_eq!(manifests_read("reader", true), 5);
    assert_eq!(manifests_read("another", false), 5);
}
