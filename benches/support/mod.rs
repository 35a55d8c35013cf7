//! What both benches share: data with a known character, medians, and a table of ratios.

#![allow(dead_code, clippy::print_stdout, missing_docs)]

use std::time::Instant;

/// Bytes that compress to about a third: words from a small vocabulary, with noise between.
pub fn compressible(bytes: usize, seed: u64) -> Vec<u8> {
    let mut random = blake3::Hasher::new();
    random.update(&seed.to_le_bytes());
    let mut stream = random.finalize_xof();
    let mut vocabulary = vec![0_u8; 4096];
    stream.fill(&mut vocabulary);
    let mut choices = vec![0_u8; bytes / 4 + 64];
    stream.fill(&mut choices);
    let mut data = Vec::with_capacity(bytes + 32);
    let mut position = 0;
    while data.len() < bytes {
        let choice = usize::from(choices[position]) | usize::from(choices[position + 1]) << 8;
        position += 2;
        if choice.is_multiple_of(7) {
            data.extend_from_slice(&choices[position..position + 6]);
            position += 6;
        } else {
            let start = choice % 4000;
            data.extend_from_slice(&vocabulary[start..start + 8 + choice % 24]);
        }
        if position + 16 > choices.len() {
            position = data.len() % 61;
        }
    }
    data.truncate(bytes);
    data
}

/// Bytes that do not compress.
pub fn random(bytes: usize, seed: u64) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut data = vec![0; bytes];
    hasher.finalize_xof().fill(&mut data);
    data
}

/// Median seconds of `runs` runs after one that does not count.
pub fn median_seconds(runs: usize, mut work: impl FnMut()) -> f64 {
    work();
    let mut seconds: Vec<f64> = (0..runs)
        .map(|_| {
            let began = Instant::now();
            work();
            began.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

struct Row {
    name: String,
    rate: f64,
    unit: &'static str,
    /// The yardstick's name and the ratio to it.
    against: Option<(String, f64)>,
}

/// A table of rates, each beside its yardstick of the same run.
#[derive(Default)]
pub struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// Adds a row without a yardstick.
    pub fn limit(&mut self, name: &str, rate: f64, unit: &'static str) -> f64 {
        self.rows.push(Row { name: name.into(), rate, unit, against: None });
        rate
    }

    /// Adds a row with its yardstick.
    pub fn row(&mut self, name: &str, rate: f64, unit: &'static str, limit: &str, at: f64) -> f64 {
        let against = Some((limit.into(), rate / at));
        self.rows.push(Row { name: name.into(), rate, unit, against });
        rate
    }

    /// Prints it.
    pub fn print(&self) {
        println!("{:<44} {:>12}  {:<10} ratio", "what", "rate", "");
        for Row { name, rate, unit, against } in &self.rows {
            let ratio = match against {
                Some((limit, ratio)) => format!("{ratio:.2} of {limit}"),
                None => "(limit)".into(),
            };
            println!("{name:<44} {rate:>12.3}  {unit:<10} {ratio}");
        }
    }
}

/// Names the machine: processor and number of cores.
pub fn print_machine() {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown", |text| text.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    println!("machine: {model}, {cores} cores; medians\n");
}
