//! The XML of libvirt that is read and written here.

use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// A disk of a domain that is written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Disk {
    /// Its target in the guest, such as `vda`.
    pub name: String,
    /// The image, if it is a file.
    pub file: Option<PathBuf>,
    /// True if it is qcow2, which can hold checkpoints.
    pub keeps_bitmaps: bool,
}

/// What a backup has to know of a domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Domain {
    pub disks: Vec<Disk>,
    /// Targets that are not backed up: media, and what is read only.
    pub others: Vec<String>,
    pub nvram: Option<PathBuf>,
}

/// What is known of a disk before its end.
#[derive(Default)]
struct Open {
    is_disk: bool,
    is_read_only: bool,
    format: String,
    file: Option<String>,
    target: String,
}

impl Domain {
    /// Reads a domain's definition.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(xml: &str) -> Result<Domain, String> {
        let mut domain = Domain::default();
        let mut open: Option<Open> = None;
        walk(xml, &mut |path, element, text| {
            let here: Vec<&str> = path.iter().map(String::as_str).collect();
            match (&here[..], element, text) {
                (["domain", "devices", "disk"], Some(disk), _) => {
                    let is_disk = attribute(disk, "device").is_none_or(|kind| kind == "disk");
                    open = Some(Open { is_disk, ..Open::default() });
                }
                (["domain", "devices", "disk", "driver"], Some(driver), _) => {
                    if let Some(open) = &mut open {
                        open.format = attribute(driver, "type").unwrap_or_default();
                    }
                }
                (["domain", "devices", "disk", "source"], Some(source), _) => {
                    if let Some(open) = &mut open {
                        open.file = attribute(source, "file");
                    }
                }
                (["domain", "devices", "disk", "target"], Some(target), _) => {
                    if let Some(open) = &mut open {
                        open.target = attribute(target, "dev").unwrap_or_default();
                    }
                }
                (["domain", "devices", "disk", "readonly"], Some(_), _) => {
                    if let Some(open) = &mut open {
                        open.is_read_only = true;
                    }
                }
                (["domain", "devices", "disk"], None, None) => {
                    if let Some(open) = open.take().filter(|open| !open.target.is_empty()) {
                        domain.add(open);
                    }
                }
                (["domain", "os", "nvram"], None, Some(text)) if text.starts_with('/') => {
                    domain.nvram = Some(PathBuf::from(text));
                }
                (["domain", "os", "nvram", "source"], Some(source), _) => {
                    domain.nvram = attribute(source, "file").map(PathBuf::from);
                }
                _ => {}
            }
        })?;
        Ok(domain)
    }

    fn add(&mut self, open: Open) {
        if !open.is_disk || open.is_read_only {
            self.others.push(open.target);
            return;
        }
        self.disks.push(Disk {
            name: open.target,
            file: open.file.map(PathBuf::from),
            keeps_bitmaps: open.format == "qcow2",
        });
    }

    /// The checkpoint that begins with a backup.
    pub fn checkpoint(&self, name: &str) -> String {
        let mut xml = format!("<domaincheckpoint><name>{}</name><disks>", escaped(name));
        for disk in &self.disks {
            let kind = if disk.keeps_bitmaps { "bitmap" } else { "no" };
            // Writing to a string cannot fail.
            let _ = write!(xml, "<disk name='{}' checkpoint='{kind}'/>", escaped(&disk.name));
        }
        for name in &self.others {
            let _ = write!(xml, "<disk name='{}' checkpoint='no'/>", escaped(name));
        }
        xml.push_str("</disks></domaincheckpoint>");
        xml
    }

    /// A pull backup of all disks, since a checkpoint where there can be one.
    pub fn backup(
        &self,
        socket: &Path,
        since: Option<&str>,
        scratch: &dyn Fn(&Disk) -> PathBuf,
    ) -> String {
        let socket = escaped(&socket.to_string_lossy());
        let mut xml = format!(
            "<domainbackup mode='pull'><server transport='unix' socket='{socket}'/><disks>"
        );
        for disk in &self.disks {
            let mode = match since.filter(|_| disk.keeps_bitmaps) {
                Some(since) => format!("backupmode='incremental' incremental='{}'", escaped(since)),
                None => "backupmode='full'".to_string(),
            };
            let (name, file) = (escaped(&disk.name), scratch(disk));
            let file = escaped(&file.to_string_lossy());
            let _ = write!(
                xml,
                "<disk name='{name}' backup='yes' type='file' {mode} exportname='{name}' \
                 exportbitmap='backup-{name}'><scratch file='{file}'/></disk>"
            );
        }
        for name in &self.others {
            let _ = write!(xml, "<disk name='{}' backup='no'/>", escaped(name));
        }
        xml.push_str("</disks></domainbackup>");
        xml
    }
}

/// The socket of a backup that runs.
pub(super) fn backup_socket(xml: &str) -> Option<PathBuf> {
    let mut socket = None;
    let _ = walk(xml, &mut |path, element, _| {
        if let (Some(element), Some("server")) = (element, path.last().map(String::as_str)) {
            socket = attribute(element, "socket").map(PathBuf::from);
        }
    });
    socket
}

/// The scratch files of a backup that runs.
pub(super) fn scratch_files(xml: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let _ = walk(xml, &mut |path, element, _| {
        if let (Some(element), Some("scratch")) = (element, path.last().map(String::as_str)) {
            files.extend(attribute(element, "file").map(PathBuf::from));
        }
    });
    files
}

/// Text between quotes or tags.
fn escaped(text: &str) -> String {
    quick_xml::escape::escape(text).into_owned()
}

fn attribute(element: &BytesStart<'_>, name: &str) -> Option<String> {
    let attribute = element.try_get_attribute(name).ok()??;
    attribute.normalized_value(XmlVersion::default()).ok().map(|value| value.into_owned())
}

type Visit<'a> = &'a mut dyn FnMut(&[String], Option<&BytesStart<'_>>, Option<&str>);

/// Calls `visit` for each begin of an element (with it), each text, and each end (with neither).
fn walk(xml: &str, visit: Visit<'_>) -> Result<(), String> {
    let mut reader = Reader::from_str(xml);
    let mut path: Vec<String> = Vec::new();
    loop {
        let event = reader.read_event().map_err(|cause| format!("its XML is broken: {cause}"))?;
        match event {
            Event::Start(element) => {
                path.push(element.name().as_ref().to_string());
                visit(&path, Some(&element), None);
            }
            Event::Empty(element) => {
                path.push(element.name().as_ref().to_string());
                visit(&path, Some(&element), None);
                visit(&path, None, None);
                path.pop();
            }
            Event::Text(text) => {
                visit(&path, None, Some(text.trim()));
            }
            Event::End(_) => {
                visit(&path, None, None);
                path.pop();
            }
            Event::Eof => return Ok(()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const XML: &str = "<domain type='kvm'><os><loader>/x</loader><nvram template='/t'>/var/n.fd</nvram></os>\
        <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
        <source file='/images/a&amp;b.qcow2'/><backingStore type='file'><source file='/other'/></backingStore>\
        <target dev='vda' bus='virtio'/></disk>\
        <disk type='block'><driver type='raw'/><source dev='/dev/vg/x'/><target dev='vdb'/></disk>\
        <disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>\
        <disk type='file' device='disk'><driver type='raw'/><source file='/ro'/><target dev='vdc'/>\
        <readonly/></disk></devices></domain>";

    #[test]
    fn disks_and_variables_of_a_domain_are_found() {
        let domain = Domain::parse(XML).unwrap();
        let file = Some(PathBuf::from("/images/a&b.qcow2"));
        assert_eq!(
            domain.disks,
            [
                Disk { name: "vda".into(), file, keeps_bitmaps: true },
                Disk { name: "vdb".into(), file: None, keeps_bitmaps: false },
            ]
        );
        assert_eq!(domain.others, ["sda", "vdc"]);
        assert_eq!(domain.nvram, Some(PathBuf::from("/var/n.fd")));
        assert!(Domain::parse("<domain><devices></domain>").is_err());
    }

    #[test]
    fn what_is_written_names_every_disk() {
        let domain = Domain::parse(XML).unwrap();
        assert_eq!(
            domain.checkpoint("c<1"),
            "<domaincheckpoint><name>c&lt;1</name><disks><disk name='vda' checkpoint='bitmap'/>\
             <disk name='vdb' checkpoint='no'/><disk name='sda' checkpoint='no'/>\
             <disk name='vdc' checkpoint='no'/></disks></domaincheckpoint>"
        );
        let scratch = |disk: &Disk| PathBuf::from(format!("/s/{}", disk.name));
        let xml = domain.backup(Path::new("/s/a'b"), Some("c1"), &scratch);
        assert!(xml.contains("socket='/s/a&apos;b'"), "{xml}");
        assert!(xml.contains(
            "name='vda' backup='yes' type='file' backupmode='incremental' incremental='c1'"
        ));
        assert!(xml.contains("name='vdb' backup='yes' type='file' backupmode='full'"));
        assert!(xml.contains("<disk name='sda' backup='no'/><disk name='vdc' backup='no'/>"));
        assert_eq!(backup_socket(&xml), Some(PathBuf::from("/s/a'b")));
        assert_eq!(scratch_files(&xml), [PathBuf::from("/s/vda"), PathBuf::from("/s/vdb")]);
    }
}
