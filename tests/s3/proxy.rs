//! A server between diskvault and a real one that lies, forgets and falls silent, by seed.
//!
//! It breaks few enough answers for the work to get somewhere.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What the proxy does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Flips a bit of what is read or listed.
    Corrupt,
    /// Breaks an answer off.
    Truncate,
    /// Ends an answer early and says so.
    Shorten,
    /// Answers with another object.
    Swap,
    /// Answers as it answered the same question the first time.
    Replay,
    /// The same, of listings, always.
    StaleLists,
    /// Says that it stored an object, and does not.
    DropPuts,
    /// The same of every object.
    DropAllPuts,
    /// Stores an object, and breaks off before it says so.
    LoseAnswers,
    /// Is overloaded.
    Unavailable,
    /// Does not answer.
    Hang,
    /// Takes some objects, and then turns everything away: the token has expired.
    Expire,
}

impl Fault {
    /// Those that leave something to work with.
    pub const SOME: [Fault; 11] = [
        Fault::Corrupt,
        Fault::Truncate,
        Fault::Shorten,
        Fault::Swap,
        Fault::Replay,
        Fault::StaleLists,
        Fault::DropPuts,
        Fault::LoseAnswers,
        Fault::Unavailable,
        Fault::Hang,
        Fault::Expire,
    ];
}

/// A lease and a pack.
const TAKEN_BEFORE_IT_EXPIRES: u64 = 2;

struct Request {
    head: String,
    body: Vec<u8>,
}

#[derive(Clone)]
struct Answer {
    status: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

struct State {
    upstream: String,
    fault: Fault,
    random: u64,
    answers: HashMap<String, Answer>,
    bodies: Vec<Vec<u8>>,
    struck: u64,
    puts: u64,
}

/// A proxy that runs until the test ends.
pub struct Proxy {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    /// In front of `upstream`, which is `http://host:port`.
    pub fn start(upstream: &str, fault: Fault, seed: u64) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let upstream = upstream.trim_start_matches("http://").to_owned();
        let state = Arc::new(Mutex::new(State {
            upstream,
            fault,
            random: seed,
            answers: HashMap::new(),
            bodies: Vec::new(),
            struck: 0,
            puts: 0,
        }));
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                // An error ends the connection, as it would elsewhere.
                thread::spawn(move || drop(serve(&stream, &state)));
            }
        });
        Proxy { endpoint, state }
    }

    /// How often something was done wrong.
    pub fn struck(&self) -> u64 {
        self.state.lock().unwrap().struck
    }
}

impl State {
    fn chance(&mut self, of: u64) -> bool {
        self.number(of) == 0
    }

    fn number(&mut self, below: u64) -> u64 {
        let next = self.random.wrapping_mul(6_364_136_223_846_793_005);
        self.random = next.wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below.max(1)
    }
}

fn serve(stream: &TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    while let Some(request) = read_request(&mut reader)? {
        let line = request.head.lines().next().unwrap_or_default().to_owned();
        let (is_get, is_put) = (line.starts_with("GET"), line.starts_with("PUT"));
        let is_list = line.contains("list-type");
        let (fault, strikes, upstream) = {
            let mut state = state.lock().unwrap();
            let strikes = state.chance(8);
            let fault = state.fault;
            state.puts += u64::from(is_put);
            let strikes = match fault {
                Fault::Expire => state.puts > TAKEN_BEFORE_IT_EXPIRES,
                Fault::StaleLists => is_list,
                Fault::DropAllPuts => is_put,
                Fault::DropPuts | Fault::LoseAnswers => is_put && state.chance(3),
                Fault::Hang => strikes && state.chance(8),
                Fault::Unavailable => strikes,
                _ => is_get && strikes,
            };
            state.struck += u64::from(strikes);
            (fault, strikes, state.upstream.clone())
        };
        let empty = |status: &str| Answer {
            status: status.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
        };
        match fault {
            Fault::Unavailable if strikes => {
                write_answer(&mut writer, &empty("503 Slow Down"), false, None)?;
                continue;
            }
            Fault::Expire if strikes => {
                let mut answer = empty("400 Bad Request");
                answer.body =
                    b"<Error><Code>ExpiredToken</Code><Message>no</Message></Error>".into();
                write_answer(&mut writer, &answer, line.starts_with("HEAD"), None)?;
                continue;
            }
            Fault::Hang if strikes => {
                thread::sleep(Duration::from_secs(5));
                return Ok(());
            }
            Fault::DropPuts | Fault::DropAllPuts if strikes => {
                let mut answer = empty("200 OK");
                answer.headers.push(("etag".into(), "\"0\"".into()));
                write_answer(&mut writer, &answer, false, None)?;
                continue;
            }
            _ => {}
        }
        let mut answer = ask(&upstream, &request)?;
        if fault == Fault::LoseAnswers && strikes {
            return Ok(());
        }
        let mut cut = None;
        if is_get && answer.status.starts_with("20") {
            let mut state = state.lock().unwrap();
            let first = state.answers.entry(question(&request)).or_insert_with(|| answer.clone());
            let first = first.clone();
            if strikes {
                cut = spoil(&mut answer, first, &mut state);
            }
            if !is_list {
                state.bodies.push(answer.body.clone());
            }
        }
        write_answer(&mut writer, &answer, line.starts_with("HEAD"), cut)?;
        if cut.is_some() {
            return Ok(());
        }
    }
    Ok(())
}

/// What is asked for: the line and the range.
fn question(request: &Request) -> String {
    let lines = request.head.lines();
    let is_of_it = |line: &&str| line.to_ascii_lowercase().starts_with("range:");
    let first = request.head.lines().next().unwrap_or_default();
    let range = lines.clone().find(is_of_it).unwrap_or_default();
    format!("{first} {range}")
}

/// Spoils an answer; where to break it off, if it is to be.
fn spoil(answer: &mut Answer, first: Answer, state: &mut State) -> Option<usize> {
    let bytes = answer.body.len() as u64;
    match state.fault {
        Fault::Corrupt if bytes > 0 => {
            let at = state.number(bytes) as usize;
            answer.body[at] ^= 1 << state.number(8);
        }
        Fault::Truncate if bytes > 0 => return Some(state.number(bytes) as usize),
        Fault::Shorten if bytes > 0 => answer.body.truncate(state.number(bytes) as usize),
        Fault::Swap if !state.bodies.is_empty() => {
            let at = state.number(state.bodies.len() as u64) as usize;
            let mut other = state.bodies[at].clone();
            // So that the length does not give it away.
            other.resize(answer.body.len(), 0);
            answer.body = other;
        }
        Fault::Replay | Fault::StaleLists => *answer = first,
        _ => {}
    }
    None
}

fn read_request(reader: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut head = String::new();
    loop {
        let before = head.len();
        if reader.read_line(&mut head)? == 0 {
            return Ok(None);
        }
        if head[before..].trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length_of(&head)];
    reader.read_exact(&mut body)?;
    Ok(Some(Request { head, body }))
}

fn length_of(head: &str) -> usize {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = lines.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    lengths.next().and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}

/// Asks the real server.
fn ask(upstream: &str, request: &Request) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(upstream)?;
    let head = request.head.trim_end();
    stream.write_all(format!("{head}\r\nconnection: close\r\n\r\n").as_bytes())?;
    stream.write_all(&request.body)?;
    let mut reader = BufReader::new(stream);
    let mut status = String::new();
    reader.read_line(&mut status)?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.trim().split_once(':') {
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    let mut body = Vec::new();
    reader.read_to_end(&mut body)?;
    let status = status.trim().split_once(' ').unwrap_or_default().1.to_owned();
    Ok(Answer { status, headers, body })
}

fn write_answer(
    writer: &mut impl Write,
    answer: &Answer,
    is_head: bool,
    cut: Option<usize>,
) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {}\r\n", answer.status);
    for (name, value) in &answer.headers {
        let is_length = name == "content-length";
        if name != "connection" && (is_head || !is_length) {
            head += &format!("{name}: {value}\r\n");
        }
    }
    if !is_head {
        head += &format!("content-length: {}\r\n", answer.body.len());
    }
    writer.write_all(format!("{head}\r\n").as_bytes())?;
    writer.write_all(&answer.body[..cut.unwrap_or(answer.body.len())])?;
    writer.flush()
}
