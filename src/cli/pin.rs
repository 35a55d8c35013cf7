//! `pin`, `unpin` and `tag`: notes on points.

use super::context::{Context, host_name};
use super::output::{escape, json_line, line};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::address::Address;
use crate::repository::notes::put_note;
use crate::repository::points::Point;
use diskvault_format::small::{NOTE_PIN, NOTE_TAG, NOTE_UNPIN};
use serde_json::json;

/// Options of `pin`.
#[derive(clap::Args, Debug)]
pub struct PinArguments {
    /// The points, such as web01, web01@2026-11-01 or an id
    #[arg(required = true, value_name = "POINT")]
    points: Vec<String>,
    /// Why, for whoever would like to forget the point
    #[arg(long, default_value = "")]
    reason: String,
}

/// Options of `unpin`.
#[derive(clap::Args, Debug)]
pub struct UnpinArguments {
    /// The points
    #[arg(required = true, value_name = "POINT")]
    points: Vec<String>,
}

/// Options of `tag`.
#[derive(clap::Args, Debug)]
pub struct TagArguments {
    /// The point
    point: String,
    /// Tags to set; KEY= removes one
    #[arg(required = true, value_name = "KEY=VALUE")]
    tags: Vec<String>,
}

/// Runs `pin`.
///
/// # Errors
/// As `show`.
pub fn pin(context: &Context, arguments: &PinArguments) -> Result<()> {
    let reason = vec![("reason".to_string(), arguments.reason.clone())];
    note_all(context, &arguments.points, NOTE_PIN, &reason, "pinned")
}

/// Runs `unpin`.
///
/// # Errors
/// As `show`.
pub fn unpin(context: &Context, arguments: &UnpinArguments) -> Result<()> {
    note_all(context, &arguments.points, NOTE_UNPIN, &[], "unpinned")
}

/// Runs `tag`.
///
/// # Errors
/// `Usage` for what is no tag, or as `show`.
pub fn tag(context: &Context, arguments: &TagArguments) -> Result<()> {
    let fields = arguments.tags.iter().map(|tag| parse_tag(tag)).collect::<Result<Vec<_>>>()?;
    note_all(context, std::slice::from_ref(&arguments.point), NOTE_TAG, &fields, "tagged")
}

fn parse_tag(text: &str) -> Result<(String, String)> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_string(), value.to_string())),
        _ => {
            let text = format!("cannot read the tag {text:?}: expected KEY=VALUE");
            Err(Error::new(ErrorKind::Usage, text))
        }
    }
}

/// Finds all points, then puts the note on each.
fn note_all(
    context: &Context,
    points: &[String],
    kind: u8,
    fields: &[(String, String)],
    done: &str,
) -> Result<()> {
    let repository = context.open()?;
    repository.check_may_write()?;
    let find = |text: &String| {
        let address = Address::parse(text)?;
        if let Some(part) = address.part {
            let part = part.escape_debug();
            let text =
                format!("cannot note anything on {part}: expected a point, not a part of it");
            return Err(Error::new(ErrorKind::Usage, text));
        }
        context.find_point(&repository, &address, None)
    };
    let found: Vec<Point> = points.iter().map(find).collect::<Result<_>>()?;
    for point in found {
        put_note(&repository, point.id, kind, &host_name(), fields.to_vec())?;
        if context.json() {
            json_line(&json!({"message_type": done, "point_id": point.id.to_hex()}))?;
        } else if !context.quiet() {
            line(&format!(
                "{done} point {} of {}",
                point.id.short(),
                escape(&point.manifest.series)
            ))?;
        }
    }
    Ok(())
}
