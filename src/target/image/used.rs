//! Which clusters of a disk an image holds, and the how-manieth each of them is.
//!
//! Invariant: memory goes with what is used, not with the size: a bit for each cluster of a part of
//! 4096 clusters that has one in use, and 16 bytes for each other part. A full disk of 64 TiB takes
//! 144 MiB in clusters of 64 KiB.

use std::ops::Range;

const WORD_BITS: u64 = u64::BITS as u64;
const PART_WORDS: usize = 64;
const PART_CLUSTERS: u64 = PART_WORDS as u64 * WORD_BITS;

/// A part of the disk with used clusters.
struct Part {
    words: [u64; PART_WORDS],
    /// Used clusters of the parts before this one; 0 until all are known.
    before: u64,
}

/// Clusters that are being chosen.
pub struct ClusterSet {
    cluster_bytes: u64,
    size: u64,
    parts: Vec<Option<Box<Part>>>,
}

impl ClusterSet {
    /// None of the clusters of a disk of `size` bytes; a cluster is a power of two.
    pub fn new(size: u64, cluster_bytes: u64) -> ClusterSet {
        let count = size.div_ceil(cluster_bytes).div_ceil(PART_CLUSTERS);
        ClusterSet { cluster_bytes, size, parts: (0..count).map(|_| None).collect() }
    }

    /// Adds the clusters that a range of bytes lies in, as far as the disk goes.
    pub fn add(&mut self, bytes: Range<u64>) {
        let end = bytes.end.min(self.size);
        if bytes.start >= end {
            return;
        }
        for cluster in bytes.start / self.cluster_bytes..end.div_ceil(self.cluster_bytes) {
            let empty = || Box::new(Part { words: [0; PART_WORDS], before: 0 });
            let part = &mut self.parts[(cluster / PART_CLUSTERS) as usize];
            let (word, bit) = place_in_part(cluster);
            part.get_or_insert_with(empty).words[word] |= bit;
        }
    }

    /// These clusters and no more.
    pub fn finish(mut self) -> Clusters {
        let mut used = 0;
        for part in self.parts.iter_mut().flatten() {
            part.before = used;
            used += part.words.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
        }
        Clusters { set: self, used }
    }
}

/// The word of a part that a cluster's bit is in, and the bit.
fn place_in_part(cluster: u64) -> (usize, u64) {
    let within = cluster % PART_CLUSTERS;
    ((within / WORD_BITS) as usize, 1 << (within % WORD_BITS))
}

/// The clusters that an image holds.
pub struct Clusters {
    set: ClusterSet,
    used: u64,
}

impl Clusters {
    /// The disk's size in bytes.
    pub fn size(&self) -> u64 {
        self.set.size
    }

    /// Bytes of a cluster.
    pub fn cluster_bytes(&self) -> u64 {
        self.set.cluster_bytes
    }

    /// Clusters of the disk, used or not; the last one may reach beyond its end.
    pub fn count(&self) -> u64 {
        self.set.size.div_ceil(self.set.cluster_bytes)
    }

    /// How many are used.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// The number of used clusters in front of this one, if it is used itself.
    pub fn rank(&self, cluster: u64) -> Option<u64> {
        let part = self.set.parts.get((cluster / PART_CLUSTERS) as usize)?.as_ref()?;
        let (word, bit) = place_in_part(cluster);
        if part.words[word] & bit == 0 {
            return None;
        }
        let before = part.words[..word].iter().map(|word| u64::from(word.count_ones()));
        let within = u64::from((part.words[word] & (bit - 1)).count_ones());
        Some(part.before + before.sum::<u64>() + within)
    }

    /// Calls `each` with the used clusters of a range and their ranks, ascending.
    pub fn each_used(&self, clusters: Range<u64>, each: &mut dyn FnMut(u64, u64)) {
        let end = clusters.end.min(self.count());
        let mut at = clusters.start;
        let mut rank = None;
        while at < end {
            let Some(part) = &self.set.parts[(at / PART_CLUSTERS) as usize] else {
                at = (at / PART_CLUSTERS + 1) * PART_CLUSTERS;
                continue;
            };
            let (word, bit) = place_in_part(at);
            let left = part.words[word] & !(bit - 1);
            let first = at - at % WORD_BITS;
            if left == 0 {
                at = first + WORD_BITS;
                continue;
            }
            let cluster = first + u64::from(left.trailing_zeros());
            if cluster >= end {
                return;
            }
            let number = rank.or_else(|| self.rank(cluster)).unwrap_or_default();
            each(cluster, number);
            rank = Some(number + 1);
            at = cluster + 1;
        }
    }

    /// True if a cluster of the range is used.
    pub fn any(&self, clusters: Range<u64>) -> bool {
        let mut found = false;
        let end = clusters.end.min(self.count());
        let mut at = clusters.start;
        while at < end && !found {
            let stop = (at / PART_CLUSTERS + 1) * PART_CLUSTERS;
            let stop = stop.min(end);
            self.each_used(at..stop, &mut |_, _| found = true);
            at = stop;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const CLUSTER: u64 = 4096;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn ranks_are_places_in_the_sorted_set(
            count in 1_u64..20_000,
            tail in 0_u64..CLUSTER,
            ranges in prop::collection::vec((0_u64..20_000, 0_u64..300), 0..40),
            within in (0_u64..20_000, 0_u64..20_000),
        ) {
            let size = count * CLUSTER - tail;
            let mut set = ClusterSet::new(size, CLUSTER);
            let mut wanted = BTreeSet::new();
            for (start, length) in ranges {
                // Off the clusters' borders: one byte counts.
                let bytes = start * CLUSTER + 7..(start + length) * CLUSTER + 8;
                wanted.extend((start..start + length + 1).filter(|it| it * CLUSTER + 7 < size));
                set.add(bytes);
            }
            let clusters = set.finish();
            prop_assert_eq!((clusters.count(), clusters.used()), (count, wanted.len() as u64));
            for cluster in 0..count + 70 {
                let rank = wanted.contains(&cluster)
                    .then(|| wanted.range(..cluster).count() as u64);
                prop_assert_eq!(clusters.rank(cluster), rank);
            }
            let within = within.0.min(within.1)..within.0.max(within.1);
            let mut found = Vec::new();
            clusters.each_used(within.clone(), &mut |cluster, rank| found.push((cluster, rank)));
            let expected: Vec<_> = wanted.range(within.clone())
                .map(|it| (*it, wanted.range(..it).count() as u64)).collect();
            prop_assert_eq!(clusters.any(within), !expected.is_empty());
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_huge_empty_disk_takes_little() {
        let mut set = ClusterSet::new(64 << 40, 64 << 10);
        set.add((64 << 40) - 1..64 << 40);
        assert!(set.parts.len() * size_of::<Option<Box<Part>>>() <= 4 << 20);
        let clusters = set.finish();
        assert_eq!(clusters.rank((1 << 30) - 1), Some(0));
        assert_eq!(clusters.used(), 1);
    }
}
