//! OVA archives as programs write them, and as nobody should.

use tar::{Builder, EntryType, Header};

/// What VMware and others call their disks.
pub const VMDK: &str = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized";
/// What oVirt calls raw disks.
pub const RAW: &str = "http://en.wikipedia.org/wiki/Byte";

/// A descriptor with these files as disks, `d0` and so on, each with the URI of its format.
pub fn ovf(disks: &[(&str, &str)]) -> Vec<u8> {
    let (mut files, mut entries) = (String::new(), String::new());
    for (number, (href, uri)) in disks.iter().enumerate() {
        files += &format!("<File ovf:id=\"f{number}\" ovf:href=\"{href}\"/>");
        entries += &format!("<Disk ovf:diskId=\"d{number}\" ovf:fileRef=\"f{number}\"");
        entries += &match *uri {
            "" => "/>".to_string(),
            uri => format!(" ovf:format=\"{uri}\"/>"),
        };
    }
    descriptor(&files, &entries)
}

/// A descriptor around these elements.
pub fn descriptor(files: &str, disks: &str) -> Vec<u8> {
    let space = "http://schemas.dmtf.org/ovf/envelope/1";
    format!(
        "<?xml version=\"1.0\"?>\n<Envelope xmlns=\"{space}\" xmlns:ovf=\"{space}\">\
         <References>{files}</References><DiskSection><Info>Disks</Info>{disks}</DiskSection>\
         </Envelope>"
    )
    .into_bytes()
}

/// An archive of plain files; names of any length.
pub fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, bytes) in members {
        builder.append_data(&mut header(EntryType::Regular, bytes.len()), name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn header(kind: EntryType, bytes: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(bytes as u64);
    header.set_mode(0o644);
    header
}

/// A member whose header is made by `change`; with padding, and no end of the archive.
pub fn member(name: &[u8], bytes: &[u8], change: &dyn Fn(&mut Header)) -> Vec<u8> {
    let mut header = header(EntryType::Regular, bytes.len());
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    change(&mut header);
    header.set_cksum();
    let mut made = header.as_bytes().to_vec();
    made.extend(bytes);
    made.resize(made.len().next_multiple_of(512), 0);
    made
}

/// Pax records in front of a member.
pub fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    builder
        .append_pax_extensions(records.iter().map(|(key, value)| (*key, value.as_bytes())))
        .unwrap();
    let mut made = builder.into_inner().unwrap();
    // Without the end of the archive.
    made.truncate(made.len() - 1024);
    made
}

/// What ends an archive.
pub const END: [u8; 1024] = [0; 1024];
