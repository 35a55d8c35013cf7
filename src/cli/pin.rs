//! `pin`, `unpin` and `tag`: notes on points.

use super::context::{Context, host_name};
use super::output::{escape, json_line, line};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::Repository;
use crate::repository::address::Address;
use crate::repository::notes::{end_pins, put_note};
use crate::repository::points::{Point, manifest_name};
use crate::storage::{Folder, ObjectName};
use diskvault_format::small::{NOTE_PIN, NOTE_TAG};
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
    each_point(context, &arguments.points, "pinned", &|repository, point| {
        put_note(repository, point.id, NOTE_PIN, &host_name(), reason.clone())?;
        // A forget that did not see the pin has put the point into the trash before it looked.
        refuse_going(repository, point)
    })
}

/// Fails if the point is being forgotten.
fn refuse_going(repository: &Repository, point: &Point) -> Result<()> {
    let storage = repository.storage();
    let trash = ObjectName::new(Folder::Trash, &point.id.to_hex())?;
    if storage.size(&trash)?.is_none() && storage.size(&manifest_name(point.id)?)?.is_some() {
        return Ok(());
    }
    let text = format!("cannot pin point {}: it is being forgotten", point.id.short());
    Err(Error::new(ErrorKind::NotFound, text))
}

/// Runs `unpin`.
///
/// # Errors
/// As `show`.
pub fn unpin(context: &Context, arguments: &UnpinArguments) -> Result<()> {
    each_point(context, &arguments.points, "unpinned", &|repository, point| {
        end_pins(repository, point, &host_name(), false)
    })
}

/// Runs `tag`.
///
/// # Errors
/// `Usage` for what is no tag, or as `show`.
pub fn tag(context: &Context, arguments: &TagArguments) -> Result<()> {
    let fields = arguments.tags.iter().map(|tag| parse_tag(tag)).collect::<Result<Vec<_>>>()?;
    each_point(context, std::slice::from_ref(&arguments.point), "tagged", &|repository, point| {
        put_note(repository, point.id, NOTE_TAG, &host_name(), fields.clone())
    })
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

/// Finds all points, then notes something on each.
fn each_point(
    context: &Context,
    points: &[String],
    done: &str,
    note: &dyn Fn(&Repository, &Point) -> Result<()>,
) -> Result<()> {
    let repository = context.open()?;
    repository.check_may_change()?;
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
        note(&repository, &point)?;
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
