//! That the faults of the memory storage are the faults they claim to be: what is built on it
//! proves nothing otherwise.

use super::name;
use diskvault::error::{Error, ErrorKind};
use diskvault::storage::memory::{Fault, FaultKind, MemoryStorage, Operation};
use diskvault::storage::{Folder, ObjectName, Storage};

fn key(number: u32) -> ObjectName {
    name(Folder::Keys, &format!("{number:04x}"))
}

/// A storage that holds key 0, and meets `kind` at its next fitting operation.
fn faulty(kind: FaultKind, once: bool) -> MemoryStorage {
    let storage = MemoryStorage::new();
    storage.put_new(&key(0), b"before").unwrap();
    storage.set_fault(Fault { at_operation: storage.operations(), kind, once });
    storage
}

fn is_power(error: &Error) -> bool {
    error.kind() == ErrorKind::Storage && error.full_text().ends_with("the power is off")
}

#[test]
fn an_error_strikes_every_operation_once_or_for_ever() {
    type Attempt = fn(&MemoryStorage) -> Result<(), Error>;
    let attempts: [Attempt; 8] = [
        |storage| storage.put_new(&key(1), b"x"),
        |storage| storage.get(&key(0), 10).map(drop),
        |storage| storage.get_range(&key(0), 0, &mut [0]),
        |storage| storage.get_tail(&key(0), 1).map(drop),
        |storage| storage.size(&key(0)).map(drop),
        |storage| storage.list(Folder::Keys).map(drop),
        |storage| storage.foreign().map(drop),
        |storage| storage.delete(&key(0)),
    ];
    for attempt in attempts {
        for once in [true, false] {
            let storage = faulty(FaultKind::Error, once);
            let before = storage.snapshot();
            assert_eq!(attempt(&storage).unwrap_err().kind(), ErrorKind::Storage);
            assert_eq!(storage.snapshot(), before);
            assert_eq!(attempt(&storage).is_ok(), once);
            storage.clear_faults();
            if !once {
                attempt(&storage).unwrap();
            }
        }
    }
}

#[test]
fn a_fault_strikes_the_operation_it_names() {
    for number in 0..6 {
        let storage = MemoryStorage::new();
        storage.set_fault(Fault { at_operation: number, kind: FaultKind::Error, once: true });
        for attempt in 0..6_u32 {
            let failed = storage.put_new(&key(attempt), b"x").is_err();
            assert_eq!(failed, u64::from(attempt) == number);
        }
        assert_eq!(storage.operations(), 6);
    }
}

#[test]
fn no_space_strikes_puts_alone() {
    let storage = faulty(FaultKind::NoSpace, false);
    assert_eq!(storage.get(&key(0), 10).unwrap(), b"before");
    assert_eq!(storage.put_new(&key(1), b"x").unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(storage.put_new(&key(1), b"x").unwrap_err().kind(), ErrorKind::NoSpace);
    storage.delete(&key(0)).unwrap();
    assert!(storage.snapshot().is_empty());
}

#[test]
fn a_torn_put_leaves_nothing_or_the_half() {
    for visible in [false, true] {
        let storage = faulty(FaultKind::TornPut { visible }, true);
        assert!(is_power(&storage.put_new(&key(1), b"12345678").unwrap_err()));
        assert!(is_power(&storage.size(&key(1)).unwrap_err()));
        storage.restore_power();
        assert_eq!(storage.get(&key(0), 10).unwrap(), b"before");
        match visible {
            true => assert_eq!(storage.get(&key(1), 10).unwrap(), b"1234"),
            false => assert_eq!(storage.size(&key(1)).unwrap(), None),
        }
    }
}

#[test]
fn an_unsynced_put_is_lost_with_the_power() {
    let storage = faulty(FaultKind::LoseUnsynced, true);
    storage.put_new(&key(1), b"lost").unwrap();
    assert_eq!(storage.get(&key(1), 10).unwrap(), b"lost");
    storage.power_cut();
    assert!(is_power(&storage.get(&key(1), 10).unwrap_err()));
    storage.restore_power();
    assert_eq!(storage.get(&key(1), 10).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(storage.get(&key(0), 10).unwrap(), b"before");
}

#[test]
fn an_unsynced_put_is_kept_by_the_next_honest_change() {
    for delete in [false, true] {
        let storage = faulty(FaultKind::LoseUnsynced, true);
        storage.put_new(&key(1), b"late").unwrap();
        match delete {
            true => storage.delete(&key(0)).unwrap(),
            false => storage.put_new(&key(2), b"honest").unwrap(),
        }
        storage.power_cut();
        storage.restore_power();
        assert_eq!(storage.get(&key(1), 10).unwrap(), b"late");
        assert_eq!(storage.size(&key(0)).unwrap().is_none(), delete);
    }
}

#[test]
fn a_medium_that_always_lies_loses_everything_since() {
    let storage = faulty(FaultKind::LoseUnsynced, false);
    storage.put_new(&key(1), b"lost").unwrap();
    storage.put_new(&key(2), b"lost").unwrap();
    storage.power_cut();
    storage.restore_power();
    let names: Vec<_> = storage.snapshot().into_keys().collect();
    assert_eq!(names, [key(0).as_str()]);
}

#[test]
fn a_lost_reply_hides_what_was_done() {
    let storage = faulty(FaultKind::LostReply, true);
    assert_eq!(storage.put_new(&key(1), b"done").unwrap_err().kind(), ErrorKind::Storage);
    storage.add_fault(Fault { at_operation: 0, kind: FaultKind::LostReply, once: true });
    assert_eq!(storage.delete(&key(0)).unwrap_err().kind(), ErrorKind::Storage);
    storage.power_cut();
    storage.restore_power();
    assert_eq!(storage.get(&key(1), 10).unwrap(), b"done");
    assert_eq!(storage.size(&key(0)).unwrap(), None);
}

#[test]
fn a_power_cut_stops_everything_until_power_is_back() {
    let storage = faulty(FaultKind::PowerCut, false);
    assert!(is_power(&storage.put_new(&key(1), b"x").unwrap_err()));
    assert!(is_power(&storage.list(Folder::Keys).unwrap_err()));
    assert!(is_power(&storage.clone().delete(&key(0)).unwrap_err()));
    storage.restore_power();
    storage.put_new(&key(1), b"x").unwrap();
    assert_eq!(storage.list(Folder::Keys).unwrap().len(), 2);
}

#[test]
fn the_log_tells_the_order_and_the_failed_ones() {
    let storage = faulty(FaultKind::Error, true);
    storage.put_new(&key(1), b"x").unwrap_err();
    storage.get_tail(&key(0), 1).unwrap();
    storage.list(Folder::Packs).unwrap();
    storage.delete(&key(0)).unwrap();
    let expected = [
        (Operation::Put, "keys/0000"),
        (Operation::Put, "keys/0001"),
        (Operation::Range, "keys/0000"),
        (Operation::List, "packs"),
        (Operation::Delete, "keys/0000"),
    ];
    assert_eq!(storage.log(), expected.map(|(operation, name)| (operation, name.to_owned())));
    assert_eq!(storage.operations(), expected.len() as u64);
}

#[test]
fn damage_is_durable_and_no_operation() {
    let storage = MemoryStorage::new();
    storage.put_new(&key(0), b"bytes").unwrap();
    assert!(storage.corrupt(key(0), |data| data[0] ^= 1));
    assert!(!storage.corrupt("keys/none", Vec::clear));
    storage.insert("keys/0001", "planted");
    storage.put_new(&key(2), b"x").unwrap();
    assert!(storage.remove(key(2)));
    assert!(!storage.remove(key(2)));
    assert_eq!(storage.operations(), 2);
    storage.power_cut();
    storage.restore_power();
    assert_eq!(storage.get(&key(0), 10).unwrap(), b"cytes");
    assert_eq!(storage.get(&key(1), 10).unwrap(), b"planted");
    assert_eq!(storage.size(&key(2)).unwrap(), None);
}
