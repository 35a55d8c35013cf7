//! The descriptor of an OVA (DMTF, DSP0243 2.1).
//!
//! It describes what a point knows, which is disks, and leaves the rest at values that import
//! programs accept: a machine without a network, for an unknown guest.
//!
//! Invariant: what it is called with is text, never markup.

use std::fmt::Write;

/// A disk of the machine.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OvaDisk {
    /// Its file in the archive.
    pub file: String,
    /// Its size in bytes.
    pub size: u64,
    /// Those of its file.
    pub file_bytes: u64,
    /// Bytes of it that are not zeros, in whole grains.
    pub populated_bytes: u64,
}

/// Processors and memory that a guest of today starts with.
const PROCESSORS: u32 = 2;
const MEMORY_MIB: u32 = 2048;
/// The URI of the format, as VMware and VirtualBox write and expect it.
const VMDK_URI: &str = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized";
/// Disks of a SCSI controller: 16 addresses without that of the controller itself.
const DISKS_PER_CONTROLLER: usize = 15;
const CONTROLLER_ADDRESS: usize = 7;
/// Kinds of items, by CIM.
const TYPE_PROCESSOR: u32 = 3;
const TYPE_MEMORY: u32 = 4;
const TYPE_SCSI: u32 = 6;
const TYPE_DISK: u32 = 17;
/// First instance number of controllers, and of disks.
const FIRST_CONTROLLER: usize = 100;
const FIRST_DISK: usize = 1000;

/// The text of the descriptor of a machine.
pub(super) fn descriptor(machine: &str, disks: &[OvaDisk]) -> String {
    let name = escape(machine);
    let mut text = String::from(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\"\n  \
         xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\"\n  \
         xmlns:rasd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/\
         CIM_ResourceAllocationSettingData\"\n  \
         xmlns:vssd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/\
         CIM_VirtualSystemSettingData\">\n  <References>\n",
    );
    // Writing to a string does not fail.
    for (number, disk) in disks.iter().enumerate() {
        let (file, bytes) = (escape(&disk.file), disk.file_bytes);
        let _ = writeln!(
            text,
            "    <File ovf:id=\"file{number}\" ovf:href=\"{file}\" ovf:size=\"{bytes}\"/>"
        );
    }
    text.push_str("  </References>\n  <DiskSection>\n    <Info>The disks</Info>\n");
    for (number, disk) in disks.iter().enumerate() {
        let (size, populated) = (disk.size, disk.populated_bytes);
        let _ = writeln!(
            text,
            "    <Disk ovf:diskId=\"disk{number}\" ovf:fileRef=\"file{number}\" \
             ovf:capacity=\"{size}\" ovf:populatedSize=\"{populated}\"\n      \
             ovf:format=\"{VMDK_URI}\"/>"
        );
    }
    let _ = write!(
        text,
        "  </DiskSection>\n  <VirtualSystem ovf:id=\"{name}\">\n    \
         <Info>A machine out of a backup</Info>\n    <Name>{name}</Name>\n    \
         <OperatingSystemSection ovf:id=\"1\">\n      <Info>The guest is not known</Info>\n    \
         </OperatingSystemSection>\n    <VirtualHardwareSection>\n      \
         <Info>Its hardware</Info>\n      <System>\n        \
         <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>\n        \
         <vssd:InstanceID>0</vssd:InstanceID>\n        \
         <vssd:VirtualSystemIdentifier>{name}</vssd:VirtualSystemIdentifier>\n        \
         <vssd:VirtualSystemType>vmx-07</vssd:VirtualSystemType>\n      </System>\n"
    );
    push_hardware(&mut text, disks.len());
    text.push_str("    </VirtualHardwareSection>\n  </VirtualSystem>\n</Envelope>\n");
    text
}

fn push_hardware(text: &mut String, disks: usize) {
    let processors = format!("{PROCESSORS} processors");
    push_item(
        text,
        &[
            ("AllocationUnits", "hertz * 10^6"),
            ("ElementName", &processors),
            ("InstanceID", "1"),
            ("ResourceType", &TYPE_PROCESSOR.to_string()),
            ("VirtualQuantity", &PROCESSORS.to_string()),
        ],
    );
    let memory = format!("{MEMORY_MIB} MiB of memory");
    push_item(
        text,
        &[
            ("AllocationUnits", "byte * 2^20"),
            ("ElementName", &memory),
            ("InstanceID", "2"),
            ("ResourceType", &TYPE_MEMORY.to_string()),
            ("VirtualQuantity", &MEMORY_MIB.to_string()),
        ],
    );
    for controller in 0..disks.div_ceil(DISKS_PER_CONTROLLER) {
        push_item(
            text,
            &[
                ("Address", &controller.to_string()),
                ("ElementName", &format!("SCSI controller {controller}")),
                ("InstanceID", &(FIRST_CONTROLLER + controller).to_string()),
                ("ResourceSubType", "lsilogic"),
                ("ResourceType", &TYPE_SCSI.to_string()),
            ],
        );
    }
    for disk in 0..disks {
        let controller = disk / DISKS_PER_CONTROLLER;
        let within = disk % DISKS_PER_CONTROLLER;
        let address = within + usize::from(within >= CONTROLLER_ADDRESS);
        push_item(
            text,
            &[
                ("AddressOnParent", &address.to_string()),
                ("ElementName", &format!("Disk {disk}")),
                ("HostResource", &format!("ovf:/disk/disk{disk}")),
                ("InstanceID", &(FIRST_DISK + disk).to_string()),
                ("Parent", &(FIRST_CONTROLLER + controller).to_string()),
                ("ResourceType", &TYPE_DISK.to_string()),
            ],
        );
    }
}

/// An item of hardware; its elements have to be in the order of their names.
fn push_item(text: &mut String, elements: &[(&str, &str)]) {
    text.push_str("      <Item>\n");
    for (name, value) in elements {
        let _ = writeln!(text, "        <rasd:{name}>{value}</rasd:{name}>");
    }
    text.push_str("      </Item>\n");
}

/// Text as it may stand in an element or in quotes. XML has no way to say most control characters.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            it if it.is_control() || matches!(it, '\u{fffe}' | '\u{ffff}') => escaped.push('_'),
            it => escaped.push(it),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_text() {
        let disk = OvaDisk { file: "a.vmdk".into(), size: 1, file_bytes: 2, populated_bytes: 3 };
        let text = descriptor("<a & \"b\">\u{7}", &[disk]);
        assert!(text.contains("<Name>&lt;a &amp; &quot;b&quot;&gt;_</Name>"), "{text}");
    }

    #[test]
    fn sixteen_disks_need_two_controllers() {
        let disk = || OvaDisk { file: "a".into(), size: 1, file_bytes: 2, populated_bytes: 3 };
        let text = descriptor("m", &(0..16).map(|_| disk()).collect::<Vec<_>>());
        assert_eq!(text.matches("lsilogic").count(), 2);
        // The controller's own address stays free.
        assert!(!text.contains("<rasd:AddressOnParent>7<"));
        assert!(text.contains("<rasd:AddressOnParent>15<"));
    }
}
