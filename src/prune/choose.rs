//! Which packs go, which are rewritten, and which stay as they are: a pure function.

use super::usage::PackUsage;
use diskvault_format::id::PackId;
use std::cmp::Reverse;

/// How much that nobody needs may stay in packs that are partly needed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unused {
    /// Of all bytes that stay, in thousandths of a percent.
    MilliPercent(u32),
    /// Bytes.
    Bytes(u64),
    /// Any amount: nothing is rewritten.
    Unlimited,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Packs of which nobody needs anything.
    pub delete: Vec<PackId>,
    /// Packs of which the needed part is copied into new ones first.
    pub repack: Vec<PackId>,
    /// Bytes of the packs that are to be deleted.
    pub delete_bytes: u64,
    /// Bytes of the packs that are to be rewritten.
    pub repack_bytes: u64,
    /// What is to be copied of them, about.
    pub copy_bytes: u64,
    /// Bytes that stay although nobody needs them.
    pub left_unused_bytes: u64,
    /// True if only the limit of what may be copied keeps a pack from being rewritten.
    pub is_limited: bool,
}

/// Chooses packs. Those with the least in use come first: they give the most room for the least
/// copying. A pack on another pruner's list is rewritten first of all, because it may go.
pub fn choose(packs: &[PackUsage], max_unused: Unused, max_repack: Option<u64>) -> Plan {
    let mut plan = Plan::default();
    let mut partly: Vec<&PackUsage> = Vec::new();
    for pack in packs {
        if pack.used_bytes == 0 {
            plan.delete.push(pack.id);
            plan.delete_bytes += pack.bytes;
        } else {
            partly.push(pack);
        }
    }
    let used: u64 = partly.iter().map(|pack| pack.used_bytes).sum();
    let mut unused: u64 = partly.iter().map(|pack| pack.unused_bytes).sum();
    partly.sort_by_key(|pack| {
        let share = u128::from(pack.unused_bytes) * 1_000_000 / u128::from(pack.bytes.max(1));
        (Reverse(pack.is_listed), Reverse(share), pack.id)
    });
    for pack in partly {
        let is_enough = match max_unused {
            Unused::Unlimited => true,
            Unused::Bytes(most) => unused <= most,
            Unused::MilliPercent(most) => {
                u128::from(unused) * 100_000 <= u128::from(used + unused) * u128::from(most)
            }
        };
        if pack.is_by_writer && !pack.is_listed && !is_worth_moving(pack) {
            continue;
        }
        let copied = plan.copy_bytes + pack.used_bytes;
        let is_too_much = max_repack.is_some_and(|most| copied > most);
        let may_stay = !pack.is_listed && (is_enough || pack.unused_bytes == 0);
        if may_stay || is_too_much {
            plan.is_limited |= !is_enough && pack.unused_bytes > 0;
            continue;
        }
        plan.repack.push(pack.id);
        plan.repack_bytes += pack.bytes;
        plan.copy_bytes = copied;
        unused -= pack.unused_bytes;
    }
    plan.left_unused_bytes = unused;
    plan
}

/// What is moved out of a pack of a writer that may not read, that writer stores once more, because it
/// does not find it any longer: only if at least three quarters of the pack are freed.
fn is_worth_moving(pack: &PackUsage) -> bool {
    pack.used_bytes <= pack.unused_bytes / 3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packs(used: &[u64]) -> Vec<PackUsage> {
        let pack = |(number, used_bytes): (usize, &u64)| PackUsage {
            id: PackId([number as u8; 32]),
            bytes: 100,
            used_bytes: *used_bytes,
            unused_bytes: 100 - used_bytes,
            is_listed: false,
            is_by_writer: false,
        };
        used.iter().enumerate().map(pack).collect()
    }

    fn numbers(ids: &[PackId]) -> Vec<u8> {
        ids.iter().map(|id| id.0[0]).collect()
    }

    #[test]
    fn what_is_listed_is_copied_first_but_no_more_than_allowed() {
        let mut packs = packs(&[10, 60, 100]);
        packs[2].is_listed = true;
        let plan = choose(&packs, Unused::Unlimited, None);
        assert_eq!(numbers(&plan.repack), [2]);
        let plan = choose(&packs, Unused::MilliPercent(0), Some(110));
        assert_eq!(numbers(&plan.repack), [2, 0]);
        let plan = choose(&packs, Unused::MilliPercent(0), Some(70));
        assert_eq!(numbers(&plan.repack), [0, 1]);
    }

    #[test]
    fn packs_of_writers_that_may_not_read_stay_until_little_of_them_is_needed() {
        let mut packs = packs(&[26, 25, 50]);
        packs.iter_mut().for_each(|pack| pack.is_by_writer = true);
        let plan = choose(&packs, Unused::MilliPercent(0), None);
        assert_eq!((numbers(&plan.repack), plan.left_unused_bytes), (vec![1], 124));
        packs[2].is_listed = true;
        assert_eq!(numbers(&choose(&packs, Unused::MilliPercent(0), None).repack), [2, 1]);
    }

    #[test]
    fn what_gives_most_for_least_copying_comes_first() {
        let packs = packs(&[100, 90, 0, 10, 50]);
        let plan = choose(&packs, Unused::MilliPercent(0), None);
        assert_eq!(numbers(&plan.delete), [2]);
        assert_eq!(numbers(&plan.repack), [3, 4, 1]);
        assert_eq!((plan.copy_bytes, plan.left_unused_bytes), (150, 0));
        // 250 bytes are in use: 5 % of 400 are 20 unused ones.
        let plan = choose(&packs, Unused::MilliPercent(5000), None);
        assert_eq!((numbers(&plan.repack), plan.left_unused_bytes), (vec![3, 4], 10));
        let plan = choose(&packs, Unused::Bytes(60), None);
        assert_eq!((numbers(&plan.repack), plan.left_unused_bytes), (vec![3], 60));
        let plan = choose(&packs, Unused::MilliPercent(0), Some(60));
        assert_eq!((numbers(&plan.repack), plan.left_unused_bytes), (vec![3, 4], 10));
        assert!(plan.is_limited);
        let plan = choose(&packs, Unused::Unlimited, Some(0));
        assert_eq!((plan.repack.len(), numbers(&plan.delete)), (0, vec![2]));
        assert!(!plan.is_limited);
    }
}
