//! The OVF descriptor: which files are disks.
//!
//! Elements and attributes go by their local names, for the namespaces of the versions and of
//! vendors differ.
//!
//! Invariant: time and memory are linear in the text; no entity is followed.

use crate::source::ImageFormat;
use diskvault_format::limits::PARTS_MAX;
use percent_encoding::percent_decode_str;
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};
use std::collections::BTreeMap;

type Result<T> = std::result::Result<T, String>;

/// A virtual disk that has a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Disk {
    /// Its id in the descriptor.
    pub id: String,
    /// Where its file is, relative to the descriptor.
    pub href: String,
    /// The URI of its format.
    pub format: Option<String>,
}

/// What a descriptor says of disks.
#[derive(Debug, Default)]
pub(super) struct Ovf {
    /// Those with a file, in their order.
    pub disks: Vec<Disk>,
    /// The ids of those without.
    pub empty: Vec<String>,
}

/// A file that the descriptor refers to.
struct File {
    href: String,
    /// Why a disk cannot be read from it.
    refusal: Option<&'static str>,
}

/// A disk as it stands in the descriptor.
struct Entry {
    id: String,
    file: Option<String>,
    format: Option<String>,
}

impl Ovf {
    /// Reads a descriptor, or says why not.
    pub fn parse(text: &str) -> Result<Ovf> {
        let mut files = BTreeMap::new();
        let mut entries: Vec<Entry> = Vec::new();
        let mut reader = Reader::from_str(text.strip_prefix('\u{feff}').unwrap_or(text));
        loop {
            let event = reader.read_event();
            let event = event.map_err(|cause| format!("it is no XML: {cause}"))?;
            let element = match event {
                Event::Eof => break,
                Event::DocType(_) => return Err("it has a document type".into()),
                Event::Start(element) | Event::Empty(element) => element,
                _ => continue,
            };
            match element.local_name().as_ref() {
                "File" => files.extend(file(&element)?),
                "Disk" | "SharedDisk" => entries.extend(disk(&element)?),
                "EncryptionSection" => return Err("parts of the archive are encrypted".into()),
                _ => {}
            }
            if files.len() > PARTS_MAX || entries.len() > PARTS_MAX {
                return Err(format!("it names more than {PARTS_MAX} files or disks"));
            }
        }
        let mut ovf = Ovf::default();
        for Entry { id, file, format } in entries {
            let Some(file) = file else {
                ovf.empty.push(id);
                continue;
            };
            let shown = id.escape_debug();
            let Some(File { href, refusal }) = files.get(&file) else {
                let file = file.escape_debug();
                return Err(format!("its disk {shown} has a file {file} that it does not name"));
            };
            if let Some(refusal) = refusal {
                return Err(format!(
                    "its disk {shown}, the file {}, {refusal}",
                    href.escape_debug()
                ));
            }
            ovf.disks.push(Disk { id, href: href.clone(), format });
        }
        Ok(ovf)
    }
}

/// The attributes with these local names.
fn attributes<const N: usize>(
    element: &BytesStart<'_>,
    names: [&str; N],
) -> Result<[Option<String>; N]> {
    let mut values = [const { None }; N];
    // Its check for duplicates takes quadratic time; of two, the first counts.
    for attribute in element.attributes().with_checks(false) {
        let attribute = attribute.map_err(|cause| format!("it is no XML: {cause}"))?;
        let name = attribute.key.local_name();
        let Some(place) = names.iter().position(|it| *it == name.as_ref()) else { continue };
        if values[place].is_none() {
            let value = attribute.normalized_value(XmlVersion::default());
            let value = value.map_err(|cause| format!("it is no XML: {cause}"))?;
            values[place] = Some(value.into_owned());
        }
    }
    Ok(values)
}

fn file(element: &BytesStart<'_>) -> Result<Option<(String, File)>> {
    let names = ["id", "href", "compression", "chunkSize"];
    let [Some(id), Some(href), compression, chunks] = attributes(element, names)? else {
        return Ok(None);
    };
    let is_compressed = compression.is_some_and(|it| !it.is_empty() && it != "identity");
    let refusal = match (is_compressed, chunks) {
        (true, _) => Some("is compressed as a whole"),
        (false, Some(_)) => Some("is cut into chunks"),
        (false, None) => None,
    };
    Ok(Some((id, File { href, refusal })))
}

fn disk(element: &BytesStart<'_>) -> Result<Option<Entry>> {
    let names = ["diskId", "fileRef", "format", "parentRef"];
    let [Some(id), file, format, parent] = attributes(element, names)? else { return Ok(None) };
    if let Some(parent) = parent.filter(|parent| !parent.is_empty()) {
        let (id, parent) = (id.escape_debug(), parent.escape_debug());
        return Err(format!("its disk {id} is a delta to {parent}"));
    }
    let known = |text: &String| !text.is_empty();
    Ok(Some(Entry { id, file: file.filter(known), format: format.filter(known) }))
}

/// The format that a URI of an OVF stands for. Programs write many for one format, with versions
/// and variants behind them.
pub(super) fn format_of_uri(uri: &str) -> Option<ImageFormat> {
    let uri = uri.to_ascii_lowercase();
    // The pages of Microsoft's specification of VHD, as exporters have linked it.
    let vhd = ["linkid=137171", "bb676673", "vhd"];
    let known: [(&[&str], ImageFormat); 5] = [
        (&["vmdk"], ImageFormat::Vmdk),
        (&["vhdx"], ImageFormat::Vhdx),
        (&vhd, ImageFormat::Vhd),
        (&["qcow"], ImageFormat::Qcow2),
        (&["wikipedia.org/wiki/byte", "wikipedia.org/wiki/raw"], ImageFormat::Raw),
    ];
    let fits = |words: &[&str]| words.iter().any(|word| uri.contains(word));
    known.into_iter().find(|(words, _)| fits(words)).map(|(_, format)| format)
}

/// A reference without its escapes; nothing if that is no text.
pub(super) fn unescape_uri(href: &str) -> Option<String> {
    let text = percent_decode_str(href).decode_utf8().ok()?;
    Some(text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(id: &str, href: &str, format: Option<&str>) -> Disk {
        Disk { id: id.into(), href: href.into(), format: format.map(Into::into) }
    }

    #[test]
    fn disks_are_told_in_any_namespace() {
        let new = r#"<?xml version="1.0" encoding="UTF-8"?><!-- made -->
            <Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
                xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
            <References><File ovf:id="f2" ovf:href="b&amp;c.vmdk" ovf:size="7"/>
            <File ovf:id="f1" ovf:href="a.vmdk" ovf:compression="identity"></File></References>
            <DiskSection><Info>Disk</Info>
            <Disk ovf:diskId="d1" ovf:fileRef="f1" ovf:format="F" ovf:capacity="9"/>
            <Disk ovf:diskId="d2" ovf:capacity="9"/>
            <Disk ovf:diskId="d3" ovf:fileRef="f2"/></DiskSection>
            <Item><rasd:Disk>x</rasd:Disk></Item></Envelope>"#;
        let old = r#"<ovf:Envelope><References><File ovf:href='b&amp;c.vmdk' ovf:id='f2'/>
            <File ovf:href='a.vmdk' ovf:id='f1'/></References>
            <Section xsi:type="ovf:DiskSection_Type"><Disk ovf:diskId='d1' ovf:fileRef='f1'
            ovf:format='F'/><Disk ovf:diskId='d2' ovf:fileRef=''/>
            <Disk ovf:diskId='d3' ovf:fileRef='f2' ovf:parentRef=''/></Section></ovf:Envelope>"#;
        for text in [new, &format!("\u{feff}{new}"), old] {
            let ovf = Ovf::parse(text).unwrap();
            let expected = [disk("d1", "a.vmdk", Some("F")), disk("d3", "b&c.vmdk", None)];
            assert_eq!(ovf.disks, expected);
            assert_eq!(ovf.empty, ["d2"]);
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let file = "<File id='f' href='a.vmdk'/>";
        for (text, expected) in [
            ("<Envelope><a></b></Envelope>".to_string(), "it is no XML"),
            ("<Disk diskId='d".to_string(), "it is no XML"),
            (format!("{file}<Disk diskId='d' fileRef='g'/>"), "has a file g that it does not name"),
            (format!("{file}<Disk diskId='d' fileRef='&bad;'/>"), "it is no XML"),
            (
                format!("{file}<Disk diskId='d' fileRef='f' parentRef='e'/>"),
                "disk d is a delta to e",
            ),
            (
                "<File id='f' href='a' compression='gzip'/><Disk diskId='d' fileRef='f'/>".into(),
                "its disk d, the file a, is compressed as a whole",
            ),
            (
                "<File id='f' href='a' chunkSize='9'/><Disk diskId='d' fileRef='f'/>".into(),
                "its disk d, the file a, is cut into chunks",
            ),
            ("<!DOCTYPE a [<!ENTITY b 'c'>]><a/>".into(), "it has a document type"),
            ("<a><EncryptionSection/></a>".into(), "parts of the archive are encrypted"),
            ("<Disk diskId='d'/>".repeat(PARTS_MAX + 1), "it names more than 1024 files or disks"),
        ] {
            let error = Ovf::parse(&text).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    /// Each of these took minutes with readers that compare or keep too much.
    #[test]
    fn long_descriptors_take_linear_time() {
        let attributes = format!("<Disk {}/>", "a='' ".repeat(1 << 21));
        assert!(Ovf::parse(&attributes).unwrap().disks.is_empty());
        assert!(Ovf::parse(&"<a>".repeat(1 << 21)).is_ok_and(|ovf| ovf.disks.is_empty()));
    }

    #[test]
    fn formats_by_the_uris_that_programs_write() {
        use ImageFormat::{Qcow2, Raw, Vhd, Vmdk};
        let vmware = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized";
        for (uri, format) in [
            (vmware, Some(Vmdk)),
            ("http://www.vmware.com/specifications/vmdk.html#sparse", Some(Vmdk)),
            ("http://go.microsoft.com/fwlink/?LinkId=137171", Some(Vhd)),
            ("http://technet.microsoft.com/en-us/virtualserver/bb676673.aspx", Some(Vhd)),
            ("http://www.gnome.org/~markmc/qcow-image-format.html", Some(Qcow2)),
            ("http://en.wikipedia.org/wiki/Byte", Some(Raw)),
            ("http://www.virtualbox.org/ovf/specifications/vdi.html", None),
        ] {
            assert_eq!(format_of_uri(uri), format, "{uri}");
        }
    }

    #[test]
    fn escapes_of_references() {
        assert_eq!(unescape_uri("My%20VM%2fa.vmdk").unwrap(), "My VM/a.vmdk");
        assert_eq!(unescape_uri("100%").unwrap(), "100%");
        assert_eq!(unescape_uri("%+1%4").unwrap(), "%+1%4");
        assert_eq!(unescape_uri("%ff"), None);
    }
}
