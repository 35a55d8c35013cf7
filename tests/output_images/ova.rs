//! OVAs: tar unpacks them, sha256sum confirms the manifest, qemu-img the disks, and `backup` reads
//! them as archives.

use super::rig::{GIB, KIB, MIB, Rig};
use quick_xml::events::Event;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;

/// All attributes of elements with this local name, by their local names.
fn elements(text: &str, name: &str) -> Vec<BTreeMap<String, String>> {
    let mut reader = quick_xml::Reader::from_str(text);
    reader.config_mut().check_end_names = true;
    let mut found = Vec::new();
    loop {
        let element = match reader.read_event().unwrap() {
            Event::Eof => return found,
            Event::Start(element) | Event::Empty(element) => element,
            _ => continue,
        };
        if element.local_name().as_ref() != name {
            continue;
        }
        let attributes = element.attributes().map(|attribute| {
            let attribute = attribute.unwrap();
            let key = attribute.key.local_name().as_ref().to_owned();
            (key, attribute.value.to_string())
        });
        found.push(attributes.collect());
    }
}

/// Unpacks an archive and has everything in it judged; the members, and the descriptor.
fn assert_archive(rig: &Rig, archive: &str) -> (Vec<String>, String) {
    let listed = rig.tool("tar", &["tf", archive]);
    let names: Vec<String> = listed.lines().map(str::to_owned).collect();
    let _ = fs::remove_dir_all(rig.path("unpacked"));
    fs::create_dir(rig.path("unpacked")).unwrap();
    rig.tool("tar", &["xf", archive, "-C", "unpacked"]);
    assert!(names[0].ends_with(".ovf") && names.last().unwrap().ends_with(".mf"), "{names:?}");
    let manifest = fs::read_to_string(rig.path("unpacked").join(names.last().unwrap())).unwrap();
    assert_eq!(manifest.lines().count(), names.len() - 1);
    fs::write(rig.path("sums"), bsd_sums(&manifest)).unwrap();
    rig.tool("sh", &["-c", "cd unpacked && sha256sum --strict -c ../sums"]);
    let ovf = fs::read_to_string(rig.path("unpacked").join(&names[0])).unwrap();
    (names, ovf)
}

/// As sha256sum reads the lines of a manifest.
fn bsd_sums(manifest: &str) -> String {
    manifest.replace("SHA256(", "SHA256 (").replace(")= ", ") = ")
}

#[test]
fn all_disks_of_a_point_go_into_an_archive() {
    let rig = Rig::new();
    rig.disk("one", 40 * MIB + 512, &[(0, 3 * MIB), (40 * MIB, 512)]);
    rig.disk("two", 5 * GIB, &[(5 * GIB - 100 * KIB, 100 * KIB)]);
    rig.disk("three", MIB, &[]);
    let disks = ["--disk", "sys.raw=one", "--disk", "data=two", "--disk", "data.raw=three"];
    fs::write(rig.path("nvram"), b"variables").unwrap();
    let more = ["--stream", "nvram=nvram", "--name", "<my & \"vm\">"];
    rig.shell.backup(&[&disks[..], &more].concat());
    let series = "<my & \"vm\">";
    let out = rig.shell.ok(&["restore", "--verify", series, "vm.ova", "--format", "ova"]);
    for disk in ["sys.raw", "data", "data.raw"] {
        assert!(out.contains(&format!("read back: vm.ova is {disk}\n")), "{out}");
    }
    let (names, ovf) = assert_archive(&rig, "vm.ova");
    let expected = ["_my____vm__.ovf", "sys.vmdk", "data.vmdk", "data-2.vmdk", "_my____vm__.mf"];
    assert_eq!(names, expected);
    assert!(ovf.contains("<Name>&lt;my &amp; &quot;vm&quot;&gt;</Name>"), "{ovf}");
    let (files, shown) = (elements(&ovf, "File"), elements(&ovf, "Disk"));
    assert_eq!((files.len(), shown.len(), elements(&ovf, "Item").len()), (3, 3, 6));
    let populated = [3 * MIB + 64 * KIB, 128 * KIB, 0];
    for (number, (raw, name)) in
        [("one", "sys"), ("two", "data"), ("three", "data-2")].into_iter().enumerate()
    {
        let image = format!("unpacked/{name}.vmdk");
        rig.assert_is_disk(&image, raw, "vmdk");
        let bytes = rig.path(&image).metadata().unwrap().len();
        assert_eq!(files[number]["size"], bytes.to_string());
        assert_eq!(files[number]["href"], format!("{name}.vmdk"));
        let size = rig.path(raw).metadata().unwrap().len();
        assert_eq!(shown[number]["capacity"], size.to_string());
        assert_eq!(shown[number]["fileRef"], files[number]["id"]);
        let found: u64 = shown[number]["populatedSize"].parse().unwrap();
        assert!((populated[number]..=populated[number] + 64 * KIB).contains(&found), "{found}");
    }
    // Our own reader: the same disks, and nothing new but the descriptor and the manifest.
    rig.shell.backup(&["--name", "back", "vm.ova"]);
    let show = |point: &str| -> Value {
        let text = rig.shell.ok(&["--json", "show", point]);
        serde_json::from_str(text.lines().next().unwrap()).unwrap()
    };
    let roots = |point: &Value| -> Vec<Value> {
        let disks = point["disks"].as_array().unwrap().iter();
        disks.map(|disk| disk["map_root"].clone()).collect()
    };
    let back = show("back");
    assert_eq!(roots(&back), roots(&show(series)));
    for disk in back["disks"].as_array().unwrap() {
        assert_eq!(disk["statistics"]["new_chunks"], 0, "{disk}");
    }
    assert_eq!(back["streams"].as_array().unwrap().len(), 2);
}

#[test]
fn one_disk_of_a_point_and_a_folder() {
    let rig = Rig::new();
    rig.disk("one", 3 * MIB, &[(0, MIB)]);
    rig.disk("two", 2 * MIB, &[(MIB, 512)]);
    rig.shell.backup(&["--name", "vm", "--disk", "vda=one", "--disk", "vdb=two"]);
    fs::create_dir(rig.path("folder")).unwrap();
    rig.shell.ok(&["restore", "vm/vdb", "folder", "--format", "ova"]);
    let (names, _) = assert_archive(&rig, "folder/vm.ova");
    assert_eq!(names, ["vm.ovf", "vdb.vmdk", "vm.mf"]);
    rig.assert_is_disk("unpacked/vdb.vmdk", "two", "vmdk");
    let said = rig.shell.ok(&["--json", "restore", "vm", "folder", "--force", "--format", "ova"]);
    let summary: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(summary["restored_bytes"], 5 * MIB);
    assert_eq!(summary["targets"].as_array().unwrap().len(), 2);
    assert_eq!(summary["targets"][1]["path"], "folder/vm.ova");
    assert_eq!(assert_archive(&rig, "folder/vm.ova").0.len(), 4);
}
