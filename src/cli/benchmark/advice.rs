//! What follows from the figures, in sentences; each only where its figure says so.

use super::{limit_text, point_text};
use crate::benchmark::{
    Cache, LEVELS, Limit, Operation, Part, PartRate, Prediction, StorageReport, WholeRate,
    free_level, predict,
};
use crate::cli::context::Context;
use crate::cli::sizes::{format_brief, format_rate};
use crate::cli::version::{chacha20_backend, has_avx512};
use crate::repository::compression::ZSTD_LEVEL;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A durable write that takes longer is worth a sentence.
const SLOW_PUT_SECONDS: f64 = 0.02;
/// Sealing that takes a larger share of a backup is worth a sentence.
const SEALING_SHARE: f64 = 0.15;
/// All cores together below this share of their number times one: somebody else uses them.
const SCALING_MIN: f64 = 0.7;
/// A whole run below this share of the prediction is worth a sentence.
const REACHED_MIN: f64 = 0.6;

/// What was measured.
pub struct Facts<'a> {
    pub folder: &'a Path,
    pub storage: &'a StorageReport,
    pub parts: &'a [PartRate],
    pub whole: &'a [WholeRate],
}

/// All sentences, the limits first.
pub fn advice(context: &Context, facts: &Facts<'_>, predictions: &[Prediction; 3]) -> Vec<String> {
    let [first, unchanged, restore] = predictions;
    let mut texts = vec![first_text(facts, first)];
    texts.push(format!(
        "an unchanged disk is gone through at {} if its own storage delivers that; the limit is \
         then {}. To measure the disk's storage, run this on its folder",
        format_rate(unchanged.rate),
        limit_text(unchanged)
    ));
    texts.push(restore_text(restore));
    texts.push(point_text(facts.storage));
    texts.extend(cipher_text(first));
    texts.extend(scaling_text(context, facts.parts));
    texts.extend(storage_texts(context, facts));
    texts.extend(reached_text(facts, predictions));
    texts
}

fn first_text(facts: &Facts<'_>, first: &Prediction) -> String {
    let rate = format_rate(first.rate);
    if first.limit == Limit::Write {
        let mut text = format!(
            "a first backup runs at {rate}: the storage writes {}, and the processor could do {}",
            format_rate(facts.storage.write),
            format_rate(first.processor)
        );
        if let Some((level, saved)) = free_level(facts.storage, facts.parts) {
            text = format!(
                "{text}. `backup --compression {level}` costs no time there and saves {:.0} % of \
                 the room; `auto` finds out by itself",
                saved * 100.0
            );
        }
        return text;
    }
    let lowest = LEVELS[0];
    let [faster, ..] = predict(facts.storage, facts.parts, lowest);
    let text = format!("a first backup runs at {rate}: the limit is {}", limit_text(first));
    let limit = match faster.limit {
        Limit::Write => "and the storage would be the limit",
        _ => "and the processor would still be the limit",
    };
    format!(
        "{text}. More or faster cores help; `backup --compression {lowest}` gives {}, {limit}",
        format_rate(faster.rate)
    )
}

fn restore_text(restore: &Prediction) -> String {
    let text = format!("a restore runs at {}", format_rate(restore.rate));
    match restore.limit {
        Limit::Processor(_) => format!("{text}: the limit is {}", limit_text(restore)),
        _ => format!(
            "{text} into the same storage; into one that is no limit, at up to {}",
            format_rate(restore.processor)
        ),
    }
}

/// About the cipher, if it takes much of the time and could be faster.
fn cipher_text(first: &Prediction) -> Option<String> {
    let share = first.shares.iter().find(|(part, _)| *part == Part::Pack)?.1;
    let percent = share * 100.0;
    let backend = chacha20_backend();
    if backend.contains("chacha20_avx512") {
        return Some(format!(
            "packs take {percent:.0} % of a first backup's processor time: this program was built \
             without --cfg chacha20_avx512, which makes sealing 2.5 times as fast here"
        ));
    }
    (share > SEALING_SHARE && !has_avx512()).then(|| {
        format!(
            "packs take {percent:.0} % of a first backup's processor time; with AVX-512, which this \
             processor does not have, sealing is 2.5 times as fast"
        )
    })
}

fn scaling_text(context: &Context, parts: &[PartRate]) -> Option<String> {
    let threads = context.threads() as f64;
    let rate = parts.iter().find(|rate| rate.part == Part::Compress(ZSTD_LEVEL))?;
    let scaling = rate.all_cores / rate.one_core;
    (scaling < SCALING_MIN * threads).then(|| {
        format!(
            "{threads} threads together are only {scaling:.1} times as fast as one: the cores are \
             shared with other work, or are threads of fewer cores"
        )
    })
}

fn storage_texts(context: &Context, facts: &Facts<'_>) -> Vec<String> {
    let mut texts = Vec::new();
    let storage = facts.storage;
    if storage.file_system == "tmpfs" {
        texts.push("this folder is in memory: nothing in it survives a power cut".into());
    } else if storage.cache != Cache::Dropped {
        texts.push(
            "reads may have come from memory: do not trust the rates of reading and restoring"
                .into(),
        );
    }
    let put = storage.median(Operation::Put);
    if put > SLOW_PUT_SECONDS {
        texts.push(format!(
            "a durable write takes {}: a drive or controller with a protected write cache would \
             make small backups faster",
            format_brief(put)
        ));
        if shares_a_device(context, facts.folder) {
            texts.push("the cache is on the same storage: --cache-dir on an SSD helps".into());
        }
    }
    texts
}

/// True if the cache, or the folder it will be made in, is on the storage that was measured.
fn shares_a_device(context: &Context, folder: &Path) -> bool {
    let Ok(cache) = context.cache() else { return false };
    let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let cache = cache.ancestors().find_map(device);
    cache.is_some() && cache == device(folder)
}

fn reached_text(facts: &Facts<'_>, predictions: &[Prediction; 3]) -> Option<String> {
    let slower: Vec<&str> = predictions
        .iter()
        .zip(facts.whole)
        .filter(|(prediction, measured)| measured.rate() < REACHED_MIN * prediction.rate)
        .map(|(prediction, _)| prediction.work.name())
        .collect();
    if slower.is_empty() {
        return None;
    }
    Some(format!(
        "the {} measured was slower than predicted: the prediction knows nothing of what each run \
         costs at least, nor of what else keeps this machine busy",
        slower.join(" and the ")
    ))
}
