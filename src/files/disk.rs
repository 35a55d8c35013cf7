//! A disk of a point as something that can be read in any order.

use crate::error::Result;
use crate::repository::lock;
use crate::source::RandomAccess;
use crate::view::{Reader, View};
use std::sync::{Arc, Mutex};

/// A view, which is read ahead where it is read from front to back.
pub struct ViewDisk {
    view: Arc<View>,
    reader: Mutex<Reader>,
}

impl ViewDisk {
    /// Reads that view.
    pub fn new(view: View) -> ViewDisk {
        let view = Arc::new(view);
        ViewDisk { reader: Mutex::new(Reader::new(view.clone())), view }
    }
}

impl RandomAccess for ViewDisk {
    fn size(&self) -> u64 {
        self.view.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        lock(&self.reader).read_at(offset, buffer)
    }
}
