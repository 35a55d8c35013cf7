//! What lies in the demo image's file systems: every byte a function of its name and its day.
//!
//! Nothing here touches a disk. "Random" bytes come from BLAKE3 in its extendable output mode.

use super::{KIB, MIB};

pub(super) const MEDIA: &str = "srv/media/launch.mp4";
pub(super) const MEDIA_BYTES: u64 = 20 * MIB;
pub(super) const DATABASE: &str = "var/lib/shop/orders.db";
pub(super) const DATABASE_PAGES: u64 = 2048;
pub(super) const PAGE_BYTES: u64 = 4 * KIB;
pub(super) const LOG: &str = "var/log/syslog";
pub(super) const LOG_LINES: u32 = 40_000;
pub(super) const SWAP: &str = "var/swap";
pub(super) const SWAP_BYTES: u64 = 4 * MIB;

/// Name, size in KiB, and whether the second day's upgrade replaces it.
pub(super) const PROGRAMS: [(&str, u64, bool); 10] = [
    ("usr/bin/bash", 1236, false),
    ("usr/bin/nginx", 1247, false),
    ("usr/bin/openssl", 998, true),
    ("usr/bin/perl", 3702, false),
    ("usr/bin/python3.11", 6612, true),
    ("usr/bin/sshd", 1391, true),
    ("usr/bin/vim", 3661, false),
    ("usr/lib/libc.so.6", 1878, false),
    ("usr/lib/libcrypto.so.3", 4610, true),
    ("usr/lib/libstdc++.so.6", 2135, false),
];

pub(super) const OS_RELEASE: &str = "etc/os-release";
pub(super) const SETTINGS: [(&str, &str); 7] = [
    ("etc/hostname", "web01\n"),
    ("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 web01\n"),
    ("etc/fstab", "PARTLABEL=data / vfat defaults 0 1\nPARTLABEL=esp /boot vfat umask=0077 0 2\n"),
    ("etc/passwd", "root:x:0:0:root:/root:/bin/bash\nwww-data:x:33:33::/var/www:/bin/false\n"),
    ("etc/ssh/sshd_config", "PermitRootLogin no\nPasswordAuthentication no\nX11Forwarding no\n"),
    ("etc/nginx/sites-enabled/shop.conf", "server {\n  listen 80;\n  root /srv/media;\n}\n"),
    ("etc/shop/secrets.env", "ORDERS=/var/lib/shop/orders.db\nSESSION_KEY=not-a-real-one\n"),
];

/// `bytes` bytes nobody can compress, always the same for one name.
pub(super) fn noise(name: &str, bytes: u64) -> Vec<u8> {
    let mut content = vec![0; bytes as usize];
    let mut hasher = blake3::Hasher::new_derive_key("diskvault demo image 2026-03-01 noise");
    hasher.update(name.as_bytes()).finalize_xof().fill(&mut content);
    content
}

/// Something like machine code: short words, the first ones more often, that compress by about
/// a half. A new version changes every other 64 KiB.
pub(super) fn program(name: &str, kib: u64, version: u32) -> Vec<u8> {
    let words = noise("machine words", 16 * KIB);
    let mut content = Vec::with_capacity((kib * KIB) as usize);
    for section in 0..kib.div_ceil(64) {
        let built = if section % 2 == 0 { version } else { 1 };
        let draws = noise(&format!("{name} {section} {built}"), 64 * KIB);
        let end = (kib.min((section + 1) * 64) * KIB) as usize;
        for draw in draws.chunks_exact(2) {
            let start = (usize::from(draw[0]) * usize::from(draw[1])) >> 2;
            let length = (3 + usize::from(draw[1] & 7)).min(end - content.len());
            content.extend_from_slice(&words[start..start + length]);
        }
    }
    content
}

pub(super) fn os_release(version: u32) -> String {
    format!("PRETTY_NAME=\"Demo Linux 12.{version}\"\nID=demo\nVERSION_ID=12.{version}\n")
}

/// One day of syslog.
pub(super) fn log_lines(day: u32, lines: u32) -> Vec<u8> {
    const SENTENCES: [&str; 5] = [
        "sshd[812]: Connection closed by authenticating user root port",
        "nginx[907]: GET /launch.mp4 HTTP/1.1 206",
        "systemd[1]: shop-worker.service: Consumed CPU milliseconds:",
        "cron[655]: (www-data) CMD (cd /var/lib/shop && ./rotate) pid",
        "shop[1031]: stored order",
    ];
    let mut log = String::with_capacity(lines as usize * 96);
    for (line, draw) in noise(&format!("log {day}"), u64::from(lines) * 8).chunks(8).enumerate() {
        let second = line as u64 * 86_400 / u64::from(lines);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let sentence = SENTENCES[usize::from(draw[0]) % SENTENCES.len()];
        let value = u32::from_le_bytes([draw[1], draw[2], draw[3], draw[4]]);
        log += &format!("Mar  {day} {hour:02}:{minute:02}:{second:02} web01 {sentence} {value}\n");
    }
    log.into_bytes()
}

pub(super) fn database() -> Vec<u8> {
    (0..DATABASE_PAGES).flat_map(|page| database_page(page, 1)).collect()
}

/// A page of records and, at its end, the free space a database leaves.
pub(super) fn database_page(page: u64, version: u32) -> Vec<u8> {
    let draws = noise(&format!("page {page} {version}"), 48 * 8);
    let mut content = format!("PAGE {page:08} {version}\n").into_bytes();
    for (row, draw) in draws.chunks_exact(8).enumerate() {
        let key = page * 48 + row as u64;
        let customer = u32::from_le_bytes([draw[0], draw[1], draw[2], draw[3]]);
        let total = u16::from_le_bytes([draw[4], draw[5]]);
        let record = format!("order={key} customer={customer:08x} total={total} state=paid\n");
        content.extend_from_slice(record.as_bytes());
    }
    content.resize(PAGE_BYTES as usize, 0);
    content
}

/// The pages the second day writes: a few hot ones at the front, the rest all over the file.
pub(super) fn changed_pages() -> impl Iterator<Item = u64> {
    (0..8).chain((100..DATABASE_PAGES).step_by(61))
}
