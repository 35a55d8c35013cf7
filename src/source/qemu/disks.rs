//! The disks of a machine, as QMP tells them.

use super::{CHANGES, GRANULARITY, Qmp, START};
use crate::error::Result;
use crate::source::machine::Marks;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A dirty bitmap of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bitmap {
    pub name: String,
    /// True if it has seen every write since it began, and goes on.
    pub is_whole: bool,
}

/// A disk that the machine writes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Disk {
    pub name: String,
    pub node: String,
    /// In bytes.
    pub size: u64,
    /// The image, if it is a file.
    pub file: Option<PathBuf>,
    /// True if bitmaps outlive QEMU.
    pub keeps_bitmaps: bool,
    pub bitmaps: Vec<Bitmap>,
}

impl Disk {
    /// The newest bitmap since a point.
    pub fn base(&self, marks: &dyn Marks) -> Option<&str> {
        let whole = self.bitmaps.iter().filter(|bitmap| bitmap.is_whole);
        let ranked =
            whole.filter_map(|bitmap| Some((marks.rank(&self.name, &bitmap.name)?, bitmap)));
        ranked.max_by_key(|(rank, _)| *rank).map(|(_, bitmap)| bitmap.name.as_str())
    }

    /// What freezes it, from when on until the end of the transaction it is not written to.
    pub fn freeze(&self, number: usize, start: &str) -> Value {
        json!({"type": "blockdev-backup", "data": {
            "job-id": format!("{start}j{number}"), "device": &self.node,
            "target": format!("{start}s{number}"), "sync": "none",
        }})
    }

    /// What begins a bitmap; with what has changed since an older one. Behind what freezes: a write of an
    /// I/O thread between both would be on the frozen disk, and not among the changes.
    pub fn begin(&self, begun: &str, base: Option<&str>) -> Vec<Value> {
        let node = &self.node;
        let mut actions = vec![json!({"type": "block-dirty-bitmap-add", "data": {
            "node": node, "name": begun, "persistent": self.keeps_bitmaps,
            "granularity": GRANULARITY,
        }})];
        if let Some(base) = base {
            actions.push(json!({"type": "block-dirty-bitmap-add", "data": {
                "node": node, "name": CHANGES, "disabled": true, "granularity": GRANULARITY,
            }}));
            actions.push(json!({"type": "block-dirty-bitmap-merge", "data": {
                "node": node, "target": CHANGES, "bitmaps": [base],
            }}));
        }
        actions
    }
}

/// The disks that a machine writes to; of a storage daemon, what it exports for writing.
pub(super) fn list(qmp: &mut Qmp) -> Result<Vec<Disk>> {
    let nodes = qmp.run("query-named-block-nodes", json!({"flat": true}))?;
    let node =
        |name: &str| nodes.as_array().into_iter().flatten().find(|node| node["node-name"] == name);
    let mut disks: Vec<Disk> = Vec::new();
    let devices = match qmp.ask("query-block", json!({}))? {
        Ok(devices) => devices,
        // A storage daemon knows no devices.
        Err(refused) if refused.class == "CommandNotFound" => Value::Null,
        Err(refused) => return Err(qmp.refusal("query-block", &refused)),
    };
    for device in devices.as_array().into_iter().flatten() {
        let inserted = &device["inserted"];
        let Some(name) = inserted["node-name"].as_str() else { continue };
        if inserted["ro"] == true || device["removable"] == true {
            continue;
        }
        disks.extend(node(name).and_then(|node| disk(&device_name(device, name), node)));
    }
    if devices.as_array().is_none_or(Vec::is_empty) {
        let exports = qmp.run("query-block-exports", json!({}))?;
        for export in exports.as_array().into_iter().flatten() {
            let Some(name) = export["node-name"].as_str() else { continue };
            let is_known = disks.iter().any(|disk| disk.node == name);
            if !is_known && !name.starts_with(START) {
                disks.extend(node(name).and_then(|node| disk(name, node)));
            }
        }
    }
    // Two devices without names, or with one.
    for number in 1..disks.len() {
        let (before, rest) = disks.split_at_mut(number);
        if before.iter().any(|disk| disk.name == rest[0].name) {
            rest[0].name = rest[0].node.replace(['/', ':', '#'], "_");
        }
    }
    Ok(disks)
}

/// The id of a device, out of its path in QEMU's object tree if need be.
fn device_name(device: &Value, node: &str) -> String {
    let of = |key: &str| device[key].as_str().filter(|text| !text.is_empty());
    let name = match (of("qdev"), of("device")) {
        (Some(path), device) if path.starts_with('/') => {
            let named = path.strip_prefix("/machine/peripheral/");
            let named = named.and_then(|rest| rest.split('/').next());
            named.or(device).unwrap_or(node)
        }
        (Some(id), _) => id,
        (None, Some(device)) => device,
        (None, None) => node,
    };
    name.replace(['/', ':', '#'], "_")
}

fn disk(name: &str, node: &Value) -> Option<Disk> {
    let image = &node["image"];
    let specific = &image["format-specific"]["data"];
    let file = node["file"].as_str().filter(|file| file.starts_with('/')).map(Path::new);
    let bitmap = |bitmap: &Value| {
        let is = |key: &str| bitmap[key].as_bool().unwrap_or(false);
        let name = bitmap["name"].as_str()?.to_string();
        Some(Bitmap { name, is_whole: is("recording") && !is("inconsistent") && !is("busy") })
    };
    Some(Disk {
        name: name.to_string(),
        node: node["node-name"].as_str()?.to_string(),
        size: image["virtual-size"].as_u64()?,
        file: file.map(Path::to_path_buf),
        keeps_bitmaps: node["drv"] == "qcow2" && specific["compat"] != "0.10",
        bitmaps: node["dirty-bitmaps"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(bitmap)
            .collect(),
    })
    .filter(|_| node["ro"] != true)
}
