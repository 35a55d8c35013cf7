//! OVA: the disks in an archive that is not unpacked.

use super::ova_made::{self as made, END, RAW, VMDK};
use super::qcow2::noise;
use super::*;
use diskvault::source::ova::{Contents, read};
use diskvault::source::{InputKind, default_kind, open_disk};

const KIB: usize = 1 << 10;

impl Workshop {
    /// Packs files of the folder, in this order.
    fn pack(&self, name: &str, ovf: &[u8], members: &[&str]) -> Contents {
        let mut all = vec![("m.ovf".to_string(), ovf.to_vec())];
        for member in members {
            all.push((member.to_string(), fs::read(self.path(member)).unwrap()));
        }
        let all: Vec<(&str, &[u8])> = all.iter().map(|(name, it)| (&**name, &**it)).collect();
        fs::write(self.path(name), made::archive(&all)).unwrap();
        read(&self.path(name), &Silent).unwrap()
    }

    fn open_member(&self, name: &str, contents: &Contents, number: usize) -> Box<dyn DiskSource> {
        let (window, format) = contents.disks[number].clone();
        let (format, window) = (Some(format), Some(window));
        let options = ImageOptions { format, window, ..ImageOptions::default() };
        self.open_with(name, &options).unwrap()
    }
}

/// Each disk in the archive is what qemu-img makes of the file that went in, down to what is not
/// allocated; the order is that of the OVF.
#[test]
fn disks_of_every_format_read_as_their_files_do() {
    let Some(workshop) = Workshop::new() else { return };
    let mut disk = noise(1, 3 << 20);
    disk.resize(9 << 20, 0);
    disk.extend(noise(2, 700 * KIB));
    fs::write(workshop.path("disk.raw"), &disk).unwrap();
    let vhd = "http://go.microsoft.com/fwlink/?LinkId=137171";
    let qcow2 = "http://www.gnome.org/~markmc/qcow-image-format.html";
    let disks = [
        ("a.vmdk", "vmdk", "subformat=streamOptimized", VMDK),
        ("b.vmdk", "vmdk", "subformat=monolithicSparse", ""),
        ("c.vhd", "vpc", "subformat=dynamic,force_size=on", vhd),
        ("d.vhd", "vpc", "subformat=fixed,force_size=on", ""),
        ("e.vhdx", "vhdx", "subformat=dynamic,block_size=1M", ""),
        ("f.qcow2", "qcow2", "cluster_size=4k", qcow2),
        ("0123-4567", "qcow2", "compat=1.1", qcow2),
        ("disk.raw", "", "", RAW),
    ];
    for (name, format, options, _) in &disks[..7] {
        let arguments = ["convert", "-O", format, "-o", options, "disk.raw", name];
        workshop.qemu_img(&arguments);
    }
    let mut members = disks.map(|(name, ..)| name);
    let ovf = made::ovf(&disks.map(|(name, _, _, uri)| (name, uri)));
    members.reverse();
    let contents = workshop.pack("m.ova", &ovf, &members);
    assert_eq!(contents.disks.len(), disks.len());
    let mut identities = Vec::new();
    for (number, (name, format, ..)) in disks.iter().enumerate() {
        assert_eq!(contents.disks[number].0.member, *name);
        let source = workshop.open_member("m.ova", &contents, number);
        let format = if format.is_empty() { "raw" } else { format };
        workshop.qemu_img(&["convert", "-f", format, "-O", "raw", name, "converted"]);
        let expected = fs::read(workshop.path("converted")).unwrap();
        assert_view(source.as_ref(), &expected, name);
        assert!(source.describe().contains(&format!("m.ova/{name}")), "{}", source.describe());
        let alone = ImageOptions { format: ImageFormat::parse(format), ..ImageOptions::default() };
        let alone = workshop.open_with(name, &alone).unwrap();
        assert_eq!(source.format(), alone.format());
        if format != "raw" && *name != "d.vhd" {
            assert_eq!(data_of(source.as_ref()), data_of(alone.as_ref()), "{name}");
        }
        source.check_unchanged_size().unwrap();
        identities.push(source.identity());
    }
    identities.sort();
    identities.dedup();
    assert_eq!(identities.len(), disks.len(), "members can be told apart");
    let others: Vec<&str> = contents.others.iter().map(|it| it.member.as_str()).collect();
    assert_eq!(others, ["m.ovf"]);
}

/// What the file system knows as holes of the archive are holes of a raw disk in it.
#[test]
fn holes_of_the_archive_are_not_read() {
    let Some(workshop) = Workshop::new() else { return };
    let file = fs::File::create(workshop.path("hole")).unwrap();
    file.set_len(8 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[7; 4096], 4 << 20).unwrap();
    drop(file);
    workshop.pack("full.ova", &made::ovf(&[("hole", RAW)]), &["hole"]);
    workshop.run("cp", &["--sparse=always", "full.ova", "m.ova"]);
    let contents = read(&workshop.path("m.ova"), &Silent).unwrap();
    let source = workshop.open_member("m.ova", &contents, 0);
    let data: u64 = data_of(source.as_ref()).iter().map(|range| range.end - range.start).sum();
    assert!(source.allocation_known() && (4096..1 << 20).contains(&data), "{data}");
}

/// Names and sizes as GNU tar and pax write them if they are long.
#[test]
fn long_names_and_sizes_that_stand_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.ova");
    let long = format!("{}.raw", "long".repeat(40));
    let disks = [noise(1, 512), noise(2, 1536), noise(3, 4096), noise(4, 512)];
    let ovf = made::ovf(&[("./b.raw", RAW), (&long, RAW), ("c%20c.raw", RAW), ("d/\u{e9}", RAW)]);
    let [b, l, c, d] = disks.each_ref();
    let mut bytes = made::member(b"./", b"", &|it| it.set_entry_type(tar::EntryType::Directory));
    bytes.extend(made::member(b"./m.OVF", &ovf, &|_| {}));
    // A size in base 256.
    bytes.extend(made::member(b"./b.raw", b, &|header| {
        let size = &mut header.as_mut_bytes()[124..136];
        size.fill(0);
        (size[0], size[10]) = (0x80, 2);
    }));
    let gnu = made::archive(&[(&long, l)]);
    bytes.extend(&gnu[..gnu.len() - END.len()]);
    // Where there is a pax record, the header does not count.
    bytes.extend(made::pax(&[("path", "c c.raw"), ("size", "4096"), ("comment", "x")]));
    bytes.extend(made::member(b"x", c, &|header| header.set_size(0)));
    bytes.extend(made::member("d/\u{e9}".as_bytes(), d, &|_| {}));
    bytes.extend(END);
    fs::write(&path, &bytes).unwrap();
    let heard = Heard::default();
    let contents = read(&path, &heard).unwrap();
    for ((window, format), expected) in contents.disks.iter().zip(&disks) {
        assert_eq!(*format, ImageFormat::Raw);
        let source = window.open(&path).unwrap();
        assert_view(source.as_ref(), expected, &window.member);
    }
    let names: Vec<&str> = contents.disks.iter().map(|(it, _)| it.member.as_str()).collect();
    assert_eq!(names, ["b.raw", &long, "c c.raw", "d/\u{e9}"]);
    assert!(heard.0.lock().unwrap().is_empty());
    // Without its end, it is said so.
    fs::write(&path, &bytes[..bytes.len() - END.len()]).unwrap();
    assert_eq!(read(&path, &heard).unwrap().disks.len(), 4);
    assert!(heard.0.lock().unwrap()[0].ends_with("has no end mark: it may have been cut short"));
}

/// No bytes of a header or of the OVF make it panic, and none is read beyond a member.
#[test]
fn archives_with_any_byte_flipped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.ova");
    let bytes = made::archive(&[("m.ovf", &made::ovf(&[("a.raw", RAW)])), ("a.raw", &[1; 512])]);
    for at in 0..bytes.len() - 512 {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x81;
        fs::write(&path, &bytes).unwrap();
        match read(&path, &Silent) {
            Ok(contents) => assert!(contents.disks.len() + contents.others.len() <= 2),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Source, "{error:?}"),
        }
    }
}

/// A guest can write any bytes: neither a raw disk nor a member becomes an archive by them.
#[test]
fn an_archive_is_told_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = made::archive(&[("m.ovf", &made::ovf(&[])), ("a.raw", &[1; 512])]);
    for name in ["m.img", "m.ova", "m.vmdk"] {
        fs::write(folder.path().join(name), &bytes).unwrap();
        assert_eq!(default_kind(&folder.path().join(name)).unwrap(), InputKind::Disk);
    }
    let open = |name: &str, format: Option<ImageFormat>| {
        let options = ImageOptions { format, ..ImageOptions::default() };
        open_image(&folder.path().join(name), &options, &Silent)
    };
    let Err(error) = open("m.img", None) else { panic!("opened") };
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.full_text().ends_with("m.img: it looks like an ova image"), "{error:?}");
    assert_eq!(error.hint_text(), Some("use --format ova, or --format raw"));
    for (name, format) in [("m.ova", None), ("m.img", Some(ImageFormat::Ova))] {
        let Err(error) = open(name, format) else { panic!("opened") };
        assert!(error.full_text().ends_with("it is an OVA, which holds disks"), "{error:?}");
    }
    assert_eq!(open("m.img", Some(ImageFormat::Raw)).unwrap().size(), bytes.len() as u64);
    assert_eq!(open_disk(&folder.path().join("m.ova")).unwrap().format(), "raw");
    // Another file first: a tar like any other.
    let bytes = made::archive(&[("a.txt", b"x"), ("m.ovf", b"x")]);
    fs::write(folder.path().join("a.img"), bytes).unwrap();
    assert_eq!(open("a.img", None).unwrap().format(), "raw");
}
