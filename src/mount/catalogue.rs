//! Which folders and files a mount has, and their numbers.
//!
//! Invariants: a number stands for the same thing as long as the mount lasts; a name stands for
//! one thing, and for the same as long as that is there.

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::points::{Point, PointSet};
use crate::repository::{Repository, lock};
use crate::restore::{Part, parts};
use diskvault_format::id::PointId;
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Points are listed again when somebody looks so long after the last time.
pub const REFRESH: Duration = Duration::from_secs(5);

/// Which points are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restriction {
    /// All.
    None,
    /// Those of one series.
    Series(String),
    /// One.
    Point(PointId),
}

/// A folder or file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// The root folder.
    Root,
    /// The folder of a series.
    Series(String),
    /// The folder of a point.
    Point(PointId),
    /// A disk or stream.
    Part(PointId, String),
}

/// What is known of a file or folder.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its number.
    pub number: u64,
    /// What it is.
    pub node: Node,
    /// Bytes of a file.
    pub bytes: u64,
    /// Bytes of a file that take storage.
    pub allocated: u64,
    /// Nanoseconds since 1970: of a point its time, of a series that of its newest one.
    pub time_unix_ns: i64,
}

/// All names.
pub struct Catalogue {
    repository: Repository,
    restriction: Restriction,
    monitor: Arc<dyn Monitor + Send + Sync>,
    state: Mutex<State>,
}

struct State {
    listed: Instant,
    points: BTreeMap<PointId, Arc<Point>>,
    /// Names of folders in a series.
    series: BTreeMap<String, BTreeMap<String, PointId>>,
    nodes: Vec<Node>,
    numbers: HashMap<Node, u64>,
}

impl Catalogue {
    /// Lists the points.
    ///
    /// # Errors
    /// What the storage says; `NotFound` if the restriction leaves none.
    pub fn new(
        repository: Repository,
        restriction: Restriction,
        monitor: Arc<dyn Monitor + Send + Sync>,
    ) -> Result<Catalogue> {
        let mut state = State {
            listed: Instant::now(),
            points: BTreeMap::new(),
            series: BTreeMap::new(),
            nodes: Vec::new(),
            numbers: HashMap::new(),
        };
        state.number(Node::Root);
        let points = PointSet::load(&repository)?;
        for doubt in points.warnings(&repository)? {
            monitor.warn(&doubt);
        }
        state.take(points, &restriction);
        if let Restriction::Series(series) = &restriction
            && state.points.is_empty()
        {
            let text = format!("cannot find a series named {}", series.escape_debug());
            let error = Error::new(ErrorKind::NotFound, text);
            return Err(error.hint("`diskvault list` shows what there is"));
        }
        Ok(Catalogue { repository, restriction, monitor, state: Mutex::new(state) })
    }

    /// The point of a file, and the name of the part.
    pub fn part(&self, number: u64) -> Option<(Arc<Point>, String)> {
        let state = lock(&self.state);
        match state.node(number)? {
            Node::Part(point, name) => Some((state.points.get(point)?.clone(), name.clone())),
            _ => None,
        }
    }

    /// What has that number; `None` if it is gone.
    pub fn get(&self, number: u64) -> Option<Found> {
        let state = lock(&self.state);
        let node = state.node(number)?.clone();
        state.found(number, node)
    }

    /// What is called `name` in a folder.
    pub fn look_up(&self, folder: u64, name: &str) -> Option<Found> {
        self.refresh(folder);
        let mut state = lock(&self.state);
        let node = match state.node(folder)? {
            Node::Root => {
                let mut all = state.series.keys();
                Node::Series(all.find(|series| folder_name(series) == name)?.clone())
            }
            Node::Series(series) => Node::Point(*state.series.get(series)?.get(name)?),
            Node::Point(id) => {
                let mut all = parts(state.points.get(id)?);
                Node::Part(*id, all.find(|part| folder_name(part.name()) == name)?.name().into())
            }
            Node::Part(..) => return None,
        };
        let number = state.number(node.clone());
        state.found(number, node)
    }

    /// Names and what they stand for, in order; `None` for what is no folder any more.
    pub fn list(&self, folder: u64) -> Option<Vec<(String, Found)>> {
        self.refresh(folder);
        let mut state = lock(&self.state);
        let all: Vec<(String, Node)> = match state.node(folder)? {
            Node::Root => {
                let all = state.series.keys();
                all.map(|series| (folder_name(series), Node::Series(series.clone()))).collect()
            }
            Node::Series(series) => {
                let all = state.series.get(series)?.iter();
                all.map(|(name, id)| (name.clone(), Node::Point(*id))).collect()
            }
            Node::Point(id) => {
                let all = parts(state.points.get(id)?);
                let node = |part: Part<'_>| Node::Part(*id, part.name().to_owned());
                all.map(|part| (folder_name(part.name()), node(part))).collect()
            }
            Node::Part(..) => return None,
        };
        let named = all.into_iter().filter_map(|(name, node)| {
            let number = state.number(node.clone());
            Some((name, state.found(number, node)?))
        });
        Some(named.collect())
    }

    /// Lists the points again if it is time to, and the folder may show new ones.
    fn refresh(&self, folder: u64) {
        {
            let mut state = lock(&self.state);
            let may_change = matches!(state.node(folder), Some(Node::Root | Node::Series(_)));
            if !may_change || state.listed.elapsed() < REFRESH {
                return;
            }
            // Others that look meanwhile see what there was.
            state.listed = Instant::now();
        }
        match PointSet::load(&self.repository) {
            Ok(points) => lock(&self.state).take(points, &self.restriction),
            Err(error) => self.monitor.warn(&error.full_text()),
        }
    }
}

impl State {
    fn take(&mut self, set: PointSet, restriction: &Restriction) {
        let is_wanted = |point: &Point| match restriction {
            Restriction::None => true,
            Restriction::Series(series) => point.manifest.series == *series,
            Restriction::Point(id) => point.id == *id,
        };
        let wanted = set.points.into_iter().filter(is_wanted);
        self.points = wanted.map(|point| (point.id, Arc::new(point))).collect();
        let mut in_order: Vec<&Arc<Point>> = self.points.values().collect();
        in_order.sort_by_key(|point| (point.manifest.sequence, point.id));
        self.series.clear();
        for point in in_order {
            let names = self.series.entry(point.manifest.series.clone()).or_default();
            let mut name = time_name(point.manifest.time_unix_ns);
            // The first of one second keeps its name when another one comes.
            if names.contains_key(&name) {
                name = format!("{name}-{}", point.id.short());
            }
            if names.contains_key(&name) {
                name = format!("{name}-{}", point.id);
            }
            names.insert(name, point.id);
        }
    }

    fn node(&self, number: u64) -> Option<&Node> {
        self.nodes.get(usize::try_from(number.checked_sub(1)?).ok()?)
    }

    fn number(&mut self, node: Node) -> u64 {
        if let Some(number) = self.numbers.get(&node) {
            return *number;
        }
        self.nodes.push(node.clone());
        let number = self.nodes.len() as u64;
        self.numbers.insert(node, number);
        number
    }

    fn found(&self, number: u64, node: Node) -> Option<Found> {
        let (mut bytes, mut allocated) = (0, 0);
        let time_unix_ns = match &node {
            Node::Root => {
                let all = self.points.values().map(|point| point.manifest.time_unix_ns);
                all.max().unwrap_or(0)
            }
            Node::Series(series) => {
                let all = self.series.get(series)?.values();
                let times = all.filter_map(|id| Some(self.points.get(id)?.manifest.time_unix_ns));
                times.max()?
            }
            Node::Point(id) => self.points.get(id)?.manifest.time_unix_ns,
            Node::Part(id, name) => {
                let point = self.points.get(id)?;
                let part = parts(point).find(|part| part.name() == name)?;
                bytes = part.bytes();
                allocated = match part {
                    Part::Disk(disk) => disk.statistics.allocated_bytes.min(bytes),
                    Part::Stream(_) => bytes,
                };
                point.manifest.time_unix_ns
            }
        };
        Some(Found { number, node, bytes, allocated, time_unix_ns })
    }
}

/// Series and disks have names without slashes; `.` and `..` cannot be names of folders.
fn folder_name(name: &str) -> String {
    match name {
        "." | ".." => name.replace('.', "%2E"),
        other => other.to_owned(),
    }
}

/// `2026-11-28T03-00-00Z`: colons are trouble for many programs.
fn time_name(unix_ns: i64) -> String {
    match Timestamp::from_nanosecond(i128::from(unix_ns)) {
        Ok(instant) => instant.strftime("%Y-%m-%dT%H-%M-%SZ").to_string(),
        Err(_) => unix_ns.to_string(),
    }
}
