//! Inputs that hold several parts: one request of the user becomes one for each.
//!
//! Invariant: an input is expanded before anything is stored, and what comes out has names and
//! kinds of its own.

use super::plan::InputRequest;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::source::{ImageFormat, InputKind, Window, default_kind, nbd, ova};

/// The inputs in their order, with the parts of those that hold several in their place.
///
/// # Errors
/// `Source` for what cannot be read; `Usage` for a change list of an input that has several disks.
pub(super) fn expand(inputs: &[InputRequest], monitor: &dyn Monitor) -> Result<Vec<InputRequest>> {
    let mut expanded = Vec::with_capacity(inputs.len());
    for input in inputs {
        if is_ova(input)? {
            expanded.extend(parts_of_ova(input, monitor)?);
        } else {
            expanded.push(input.clone());
        }
    }
    Ok(expanded)
}

/// True for what the user calls an OVA, or a file with the name of one.
fn is_ova(input: &InputRequest) -> Result<bool> {
    let is_stream = input.kind == Some(InputKind::Stream) || input.is_standard_input();
    if is_stream || nbd::is_address(&input.path) || input.image.window.is_some() {
        return Ok(false);
    }
    let has_name = || ImageFormat::of_name(&input.path) == Some(ImageFormat::Ova);
    match input.image.format {
        None => Ok(has_name() && std::fs::metadata(&input.path).is_ok_and(|it| it.is_file())),
        // A format that is given for all inputs is none of streams.
        Some(ImageFormat::Ova) => Ok(input.kind == Some(InputKind::Disk)
            || has_name()
            || default_kind(&input.path)? == InputKind::Disk),
        Some(_) => Ok(false),
    }
}

fn parts_of_ova(input: &InputRequest, monitor: &dyn Monitor) -> Result<Vec<InputRequest>> {
    let contents = ova::read(&input.path, monitor)?;
    let count = contents.disks.len();
    if input.hint.is_some() && count != 1 {
        let path = input.path.display();
        let text = format!("cannot use a change list for {path}: it holds {count} disks");
        return Err(Error::new(ErrorKind::Usage, text));
    }
    let part = |window: Window, kind: InputKind, takes_name: bool| {
        let member = window.member.replace(['/', ':'], "_");
        let mut part = input.clone();
        part.kind = Some(kind);
        part.name = Some(match &input.name {
            Some(name) if takes_name => name.clone(),
            Some(name) => format!("{name}-{member}"),
            None => member,
        });
        part.image.window = Some(window);
        part
    };
    let mut parts = Vec::with_capacity(count + contents.others.len());
    for (window, format) in contents.disks {
        let mut disk = part(window, InputKind::Disk, count == 1);
        disk.image.format = Some(format);
        parts.push(disk);
    }
    for window in contents.others {
        parts.push(InputRequest { hint: None, ..part(window, InputKind::Stream, false) });
    }
    Ok(parts)
}
