//! Reading a delta frame by frame.

use crate::error::{Error, ErrorKind, Result};
use crate::repository::objects::refused;
use crate::repository::secrets::Passphrase;
use diskvault_format::delta::{
    Change, Description, Frames, HEAD_BYTES, Head, PREFIX_BYTES, Payload,
};
use diskvault_format::error::malformed;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

/// An open delta behind its description.
pub(super) struct DeltaReader {
    path: PathBuf,
    file: BufReader<File>,
    frames: Frames,
    description: Description,
    is_over: bool,
}

/// Reads the head.
pub(super) fn read_head(path: &Path) -> Result<(Head, BufReader<File>)> {
    let opened = File::open(path);
    let file = opened.map_err(|cause| {
        Error::io(ErrorKind::Source, format!("cannot open {}", path.display()), cause)
    })?;
    let mut file = BufReader::new(file);
    let mut head = [0; HEAD_BYTES];
    fill(path, &mut file, &mut head)?;
    let head = Head::decode(&head).map_err(|cause| refused(path.display(), cause))?;
    Ok((head, file))
}

fn fill(path: &Path, file: &mut BufReader<File>, buffer: &mut [u8]) -> Result<()> {
    file.read_exact(buffer).map_err(|cause| {
        if cause.kind() == std::io::ErrorKind::UnexpectedEof {
            return refused(path.display(), malformed("D-3", "ends too soon"));
        }
        Error::io(ErrorKind::Source, format!("cannot read {}", path.display()), cause)
    })
}

impl DeltaReader {
    /// Opens a delta and reads its description.
    pub fn open(path: &Path, passphrase: Option<&Passphrase>) -> Result<DeltaReader> {
        let (head, mut file) = read_head(path)?;
        let secret = passphrase.map(Passphrase::expose);
        let frames = Frames::new(&head, secret).map_err(|cause| refused(path.display(), cause));
        let mut frames = frames?;
        let payload = next(path, &mut file, &mut frames);
        let Payload::Description(description) = payload.map_err(|error| {
            // Nothing was authenticated yet: most probably it is the secret.
            if head.cost.is_some() && error.full_text().ends_with("(rule D-4)") {
                let text = format!("cannot open {}: wrong password, or damaged", path.display());
                return Error::new(ErrorKind::WrongKey, text);
            }
            error
        })?
        else {
            return Err(refused(path.display(), malformed("D-5", "has no description")));
        };
        let path = path.to_owned();
        Ok(DeltaReader { path, file, frames, description, is_over: false })
    }

    /// Which disks it is about.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The changes of the next frame; `None` behind the last one, which says that all were there.
    pub fn next(&mut self) -> Result<Option<Vec<Change>>> {
        if self.is_over {
            return Ok(None);
        }
        let refuse = |text: &str| refused(self.path.display(), malformed("D-5", text));
        match next(&self.path, &mut self.file, &mut self.frames)? {
            Payload::Changes(changes) => Ok(Some(changes)),
            _ => {
                self.is_over = true;
                let mut byte = [0];
                match self.file.read(&mut byte) {
                    Ok(0) => Ok(None),
                    _ => Err(refuse("goes on behind its last frame")),
                }
            }
        }
    }
}

fn next(path: &Path, file: &mut BufReader<File>, frames: &mut Frames) -> Result<Payload> {
    let mut prefix = [0; PREFIX_BYTES];
    fill(path, file, &mut prefix)?;
    let refuse = |cause| refused(path.display(), cause);
    let (bytes, is_last) = Frames::read_prefix(prefix).map_err(refuse)?;
    let mut body = vec![0; bytes];
    fill(path, file, &mut body)?;
    frames.open(&body, is_last).map_err(refuse)
}
