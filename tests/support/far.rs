//! Far ends for tests: one in this process, with faults of the line by count of bytes, and a real
//! sshd on the loopback address.

#![allow(dead_code, reason = "no test program uses all of it")]
#![allow(clippy::print_stdout, reason = "a test says what it skips")]

use diskvault::error::Result;
use diskvault::storage::far::permissions::Access;
use diskvault::storage::far::{
    Dialer, FarOptions, FarStorage, Line, LineControl, Purpose, ServerOptions, serve,
};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What happens to a line after so many bytes of one direction.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// It is cut when so many bytes have come to the far end.
    CutUp(u64),
    /// It is cut when so many bytes have come from the far end.
    CutDown(u64),
    /// Nothing comes through any more after so many bytes to the far end.
    Hang(u64),
}

/// A far end in this process.
pub struct Inside {
    pub options: ServerOptions,
    /// Of the lines to come, one each; those after the last are sound.
    pub faults: Mutex<VecDeque<Fault>>,
    /// What the owner of the far end was told.
    pub log: Arc<Mutex<Vec<String>>>,
    /// Lines made so far.
    pub dialed: Mutex<usize>,
}

impl Inside {
    pub fn new(access: Access) -> Inside {
        let log = Arc::new(Mutex::new(Vec::new()));
        let hears = log.clone();
        let notice = Arc::new(move |text: &str| hears.lock().unwrap().push(text.to_owned()));
        let options = ServerOptions { access, restrict_to: Vec::new(), home: None, notice };
        Inside { options, faults: Mutex::default(), log, dialed: Mutex::new(0) }
    }

    pub fn with_faults(faults: &[Fault]) -> Inside {
        let inside = Inside::new(Access::Full);
        inside.faults.lock().unwrap().extend(faults);
        inside
    }
}

/// Opens a repository over lines of this dialer.
pub fn open(dialer: &Arc<Inside>, path: &Path, options: FarOptions) -> Result<FarStorage> {
    FarStorage::open(dialer.clone(), path.to_str().unwrap(), Purpose::Open, options)
}

/// Options under which no test takes long.
pub fn quick() -> FarOptions {
    FarOptions {
        patience: Duration::from_secs(5),
        silence: Duration::from_secs(20),
        greeting: Duration::from_secs(30),
        ..FarOptions::default()
    }
}

impl Dialer for Inside {
    fn dial(&self) -> Result<Line> {
        *self.dialed.lock().unwrap() += 1;
        let fault = self.faults.lock().unwrap().pop_front();
        let (near, far) = UnixStream::pair().unwrap();
        let options = self.options.clone();
        let (mut up, mut down) = (u64::MAX, u64::MAX);
        let mut hangs = false;
        match fault {
            Some(Fault::CutUp(bytes)) => up = bytes,
            Some(Fault::CutDown(bytes)) => down = bytes,
            Some(Fault::Hang(bytes)) => (up, hangs) = (bytes, true),
            None => {}
        }
        let input = Faulty { stream: far.try_clone().unwrap(), left: up, hangs };
        let output = Faulty { stream: far, left: down, hangs: false };
        std::thread::spawn(move || serve(input, output, &options));
        Ok(Line {
            input: Box::new(near.try_clone().unwrap()),
            output: Box::new(Ending(near.try_clone().unwrap())),
            control: Box::new(Socket(near)),
        })
    }

    fn location(&self) -> String {
        "ssh://inside/".into()
    }
}

struct Socket(UnixStream);

impl LineControl for Socket {
    fn cut(&self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
    fn farewell(&self) -> (String, Option<&'static str>) {
        ("the test closed it".into(), None)
    }
}

/// The far end hears when nothing more will come.
struct Ending(UnixStream);

impl Write for Ending {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.write(data)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Write);
    }
}

/// One direction of a line, with a fault after so many bytes.
struct Faulty {
    stream: UnixStream,
    left: u64,
    hangs: bool,
}

impl Faulty {
    fn strike<T>(&mut self) -> io::Result<T> {
        if self.hangs {
            // Until the other end gives up. What it still sends is not heard.
            let mut buffer = vec![0; 4096];
            while self.stream.read(&mut buffer)? > 0 {}
        }
        let _ = self.stream.shutdown(Shutdown::Both);
        Err(io::ErrorKind::BrokenPipe.into())
    }
}

impl Read for Faulty {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if count == 0 && !buffer.is_empty() {
            return self.strike();
        }
        let count = self.stream.read(&mut buffer[..count])?;
        self.left -= count as u64;
        Ok(count)
    }
}

impl Write for Faulty {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = data.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if count == 0 && !data.is_empty() {
            return self.strike();
        }
        let count = self.stream.write(&data[..count])?;
        self.left -= count as u64;
        Ok(count)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An sshd on the loopback address, with a key for each way to log in; ended when dropped.
pub struct Sshd {
    folder: tempfile::TempDir,
    server: Child,
    port: u16,
    user: String,
}

impl Sshd {
    /// Starts one. `forced` are pairs of the name of a key and the command that it is bound to;
    /// `full` is a key that may run anything. `None`, with a message, where there is no sshd.
    pub fn start(forced: &[(&str, String)]) -> Option<Sshd> {
        let program = ["/usr/sbin/sshd", "/usr/lib/ssh/sshd"]
            .into_iter()
            .find(|path| Path::new(path).exists());
        let Some(program) = program else {
            println!("skipped: there is no sshd");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path();
        std::fs::set_permissions(top, std::fs::Permissions::from_mode(0o700)).unwrap();
        let mut authorized = make_key(top, "full");
        for (name, command) in forced {
            let key = make_key(top, name);
            authorized.push_str(&format!("restrict,command=\"{command}\" {key}"));
        }
        std::fs::write(top.join("authorized"), authorized).unwrap();
        let host_key = make_key(top, "host");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        std::fs::write(top.join("known"), format!("[127.0.0.1]:{port} {host_key}")).unwrap();
        let at = top.display();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {at}/host\nPidFile none\n\
             AuthorizedKeysFile {at}/authorized\nStrictModes no\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nUsePAM no\nPermitRootLogin prohibit-password\n\
             MaxStartups 100:30:200\nMaxSessions 100\nSubsystem sftp internal-sftp\n"
        );
        std::fs::write(top.join("config"), config).unwrap();
        // Where root runs it, it wants an empty folder.
        let _ = std::fs::create_dir_all("/run/sshd");
        let mut command = Command::new(program);
        command.arg("-D").arg("-f").arg(top.join("config")).arg("-E").arg(top.join("log"));
        let server = command.stdin(Stdio::null()).spawn().unwrap();
        let user = Command::new("id").arg("-un").output().unwrap().stdout;
        let user = String::from_utf8(user).unwrap().trim().to_owned();
        let sshd = Sshd { folder, server, port, user };
        sshd.answers().then_some(sshd)
    }

    fn answers(&self) -> bool {
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if began.elapsed() > Duration::from_secs(20) {
                println!("skipped: sshd does not listen");
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let words = self.words("full");
        let mut command = Command::new(&words[0]);
        let answer = command.args(&words[1..]).args(["127.0.0.1", "true"]).output().unwrap();
        if !answer.status.success() {
            let why = String::from_utf8_lossy(&answer.stderr);
            println!("skipped: this user cannot log in here by ssh: {why}");
        }
        answer.status.success()
    }

    /// The command that logs in with a key.
    pub fn words(&self, key: &str) -> Vec<String> {
        let at = self.folder.path().display();
        let text = format!(
            "ssh -F /dev/null -i {at}/{key} -o UserKnownHostsFile={at}/known -o IdentitiesOnly=yes \
             -o BatchMode=yes -o StrictHostKeyChecking=yes -p {} -l {}",
            self.port, self.user
        );
        text.split(' ').map(String::from).collect()
    }

    /// The address of a folder.
    pub fn address(&self, scheme: &str, path: &Path) -> String {
        format!("{scheme}://{}@127.0.0.1:{}{}", self.user, self.port, path.display())
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Makes a pair of keys and gives the public one.
fn make_key(folder: &Path, name: &str) -> String {
    let path: PathBuf = folder.join(name);
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path);
    assert!(command.status().unwrap().success());
    std::fs::read_to_string(path.with_extension("pub")).unwrap()
}
