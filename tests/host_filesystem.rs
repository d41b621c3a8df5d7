//! Looking at, formatting, mounting and growing real block devices. Needs root, loop devices,
//! e2fsprogs, xfsprogs, btrfs-progs and fdisk.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, says why it was skipped, and prepares devices with tools"
)]

#[path = "support/loopdev.rs"]
mod loopdev;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cinder_docker_driver::host::attach::{Device, local};
use cinder_docker_driver::host::filesystem::mount::{self, MountOptions};
use cinder_docker_driver::host::filesystem::mountinfo::{DeviceNumber, MountEntry};
use cinder_docker_driver::host::filesystem::probe::{
    BlankProof, Contents, Filesystem, FsType, Partition, blank, probe,
};
use cinder_docker_driver::host::filesystem::{format, freeze, grow, mountinfo, partition};
use cinder_docker_driver::host::{Exec, HostError, Paths, process};
use loopdev::{LoopDevice, MIB, run};
use tokio::sync::RwLock;
use uuid::Uuid;

/// A new mount namespace copies every mount of the machine, those of the tests beside it included,
/// and keeps their devices busy: such tests run alone.
static NAMESPACES: RwLock<()> = RwLock::const_new(());

const ALL: [FsType; 3] = [FsType::Ext4, FsType::Xfs, FsType::Btrfs];

fn exec() -> Exec {
    Exec::new(&Paths::default())
}

/// A size that each mkfs accepts.
fn size_for(fs_type: FsType) -> u64 {
    match fs_type {
        FsType::Ext4 => 64 * MIB,
        FsType::Xfs => 320 * MIB,
        FsType::Btrfs => 160 * MIB,
    }
}

async fn make(disk: &LoopDevice, fs_type: FsType) -> Filesystem {
    let device = disk.device();
    let proof = blank(&device, device.size, BlankProof::Ours).await.unwrap();
    format::mkfs(&exec(), proof, fs_type, Uuid::new_v4(), &[]).await.unwrap();
    filesystem(&device).await
}

async fn filesystem(device: &Device) -> Filesystem {
    match probe(device).await.unwrap() {
        Contents::Filesystem(fs) => fs,
        other => panic!("{other:?}"),
    }
}

async fn mount_at(disk: &LoopDevice, fs: &Filesystem, options: &MountOptions) -> MountEntry {
    let at = disk.path("mount/web");
    mount::mount(&exec(), &Paths::default(), &disk.device(), fs, &at, options).await.unwrap()
}

async fn unmount(entry: &MountEntry) {
    mount::unmount(&exec(), &Paths::default(), &entry.mount_point).await.unwrap();
}

/// Waits for something that another process does.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A process that is killed when the test ends.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// ---------------------------------------------------------------------------------------------
// We never format what may hold data.

/// Asserts that the device is refused for this reason, by each proof that must not write, and
/// that not one byte of it changed.
async fn is_refused(disk: &LoopDevice, reason: &str) {
    let before = disk.contents();
    let device = disk.device();
    for proof in [BlankProof::Ours, BlankProof::Foreign] {
        let error = blank(&device, device.size, proof).await.unwrap_err();
        assert!(matches!(error, HostError::NotBlank { .. }), "{error:?}");
        assert!(error.to_string().contains(reason), "{proof:?}: {error}");
    }
    assert!(disk.contents() == before, "refusing changed the device");
}

#[tokio::test]
async fn every_filesystem_that_we_make_is_refused_afterwards() {
    let _alone = NAMESPACES.read().await;
    for fs_type in ALL {
        let Some(disk) = LoopDevice::new(size_for(fs_type)) else { return };
        let fs = make(&disk, fs_type).await;
        is_refused(&disk, &format!("{} {}", fs.mount_type, fs.uuid)).await;
    }
}

#[tokio::test]
async fn an_ext4_whose_beginning_was_zeroed_is_refused_for_its_backup() {
    let _alone = NAMESPACES.read().await;
    for (block, size) in [("1024", 64 * MIB), ("2048", 96 * MIB), ("4096", 256 * MIB)] {
        let Some(disk) = LoopDevice::with_image(size, &[], |image| {
            run("mkfs.ext4", &["-q", "-b", block, image.to_str().unwrap()]);
        }) else {
            return;
        };
        disk.write(0, &vec![0; 2 * 1024 * 1024]);
        is_refused(&disk, "backup ext2/3/4 superblock").await;
    }
}

#[tokio::test]
async fn a_btrfs_and_an_xfs_whose_beginning_was_zeroed_are_refused_for_their_backups() {
    let _alone = NAMESPACES.read().await;
    for (fs_type, reason) in [(FsType::Btrfs, "backup Btrfs"), (FsType::Xfs, "backup XFS")] {
        let Some(disk) = LoopDevice::new(size_for(fs_type)) else { return };
        make(&disk, fs_type).await;
        disk.write(0, &vec![0; 2 * 1024 * 1024]);
        is_refused(&disk, reason).await;
    }
}

#[tokio::test]
async fn what_others_keep_on_devices_is_refused_by_name() {
    let _alone = NAMESPACES.read().await;
    let signatures: [(u64, &[u8], &str); 12] = [
        (0, b"LUKS\xba\xbe\0\x02", "LUKS container"),
        (0x4000, b"SKUL\xba\xbe\0\x02", "secondary LUKS2 header"),
        (0x40_0000, b"SKUL\xba\xbe\0\x02", "secondary LUKS2 header"),
        (512, b"LABELONE\x01\0\0\0\0\0\0\0\0\0\0\0 \0\0\0LVM2 001", "LVM physical volume"),
        (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "md 1.2"),
        (16 * MIB - 8192, &[0xfc, 0x4e, 0x2b, 0xa9], "md 1.0"),
        (16 * MIB - 65536, &[0xfc, 0x4e, 0x2b, 0xa9], "md 0.90"),
        (16 * MIB - 4096 + 60, &[0x83, 0x74, 0x02, 0x6d], "DRBD"),
        (3, b"NTFS    ", "NTFS"),
        (32769, b"CD001", "ISO 9660"),
        (131_072, &[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0], "ZFS"),
        (0x20_0000, &[0x5e, 0xf1, 0xab, 0x2f], "VMFS"),
    ];
    for (at, bytes, name) in signatures {
        let Some(disk) = LoopDevice::new(16 * MIB) else { return };
        disk.write(at, bytes);
        is_refused(&disk, name).await;
    }
    let Some(disk) = LoopDevice::new(16 * MIB) else { return };
    run("mkswap", &[disk.node()]);
    is_refused(&disk, "swap").await;
}

#[tokio::test]
async fn one_byte_of_unknown_data_is_enough_to_refuse() {
    let _alone = NAMESPACES.read().await;
    for at in [0, 440, 2 * MIB - 1, 62 * MIB, 64 * MIB - 1] {
        let Some(disk) = LoopDevice::new(64 * MIB) else { return };
        disk.write(at, &[1]);
        is_refused(&disk, &format!("unknown data (first at byte {at})")).await;
    }
}

#[tokio::test]
async fn random_data_is_refused() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = LoopDevice::with_image(16 * MIB, &[], |image| {
        let path = image.to_str().unwrap();
        run("dd", &["if=/dev/urandom", &format!("of={path}"), "bs=1M", "count=16", "conv=notrunc"]);
    }) else {
        return;
    };
    let device = disk.device();
    let before = disk.contents();
    let error = blank(&device, device.size, BlankProof::Foreign).await.unwrap_err();
    assert!(matches!(error, HostError::NotBlank { .. }), "{error}");
    assert!(disk.contents() == before);
}

#[tokio::test]
async fn data_between_the_ends_is_seen_on_a_foreign_volume() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = LoopDevice::new(256 * MIB) else { return };
    let device = disk.device();
    // Samples are a 65th of the device apart: 8 MiB of data cannot lie between two of them.
    disk.write(100 * MIB, &vec![7; 8 * 1024 * 1024]);
    let error = blank(&device, device.size, BlankProof::Foreign).await.unwrap_err();
    assert!(error.to_string().contains("unknown data"), "{error}");
}

#[tokio::test]
async fn partition_tables_are_refused() {
    let _alone = NAMESPACES.read().await;
    for table in ["label: gpt\n,8M\n", "label: dos\n,8M\n"] {
        let Some(disk) = partitioned(64 * MIB, table) else { return };
        is_refused(&disk, "a partition table (partitions: 1)").await;
    }
    let Some(disk) = partitioned(64 * MIB, "label: gpt\n,8M\n") else { return };
    disk.write(0, &vec![0; 1024 * 1024]);
    is_refused(&disk, "backup GPT").await;
}

#[tokio::test]
async fn a_device_smaller_than_the_volume_is_refused() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = LoopDevice::new(16 * MIB) else { return };
    let error = blank(&disk.device(), 16 * MIB + 1, BlankProof::Ours).await.unwrap_err();
    assert!(matches!(&error, HostError::Refused { what } if what.contains("another volume")));
}

#[tokio::test]
async fn a_read_only_device_is_refused() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = LoopDevice::with_image(16 * MIB, &["--read-only"], |_| {}) else { return };
    // Also when it was writable when it was attached.
    for device in [disk.device(), Device { read_only: false, ..disk.device() }] {
        let error = blank(&device, device.size, BlankProof::Ours).await.unwrap_err();
        assert!(matches!(&error, HostError::Refused { what } if what.contains("read-only")));
    }
}

#[tokio::test]
async fn a_device_in_use_is_refused() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = LoopDevice::new(64 * MIB) else { return };
    let device = disk.device();
    let held =
        File::options().read(true).custom_flags(nix::libc::O_EXCL).open(disk.node()).unwrap();
    for proof in [BlankProof::Ours, BlankProof::Foreign, BlankProof::OursDirty] {
        let error = blank(&device, device.size, proof).await.unwrap_err();
        assert!(matches!(error, HostError::Busy { .. }), "{error}");
    }
    drop(held);
    let fs = make(&disk, FsType::Ext4).await;
    let entry = mount_at(&disk, &fs, &MountOptions::default()).await;
    let error = blank(&device, device.size, BlankProof::OursDirty).await.unwrap_err();
    assert!(matches!(error, HostError::Busy { .. }), "{error}");
    unmount(&entry).await;
}

#[tokio::test]
async fn a_read_error_is_an_error_and_never_blank() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = LoopDevice::new(64 * MIB) else { return };
    let device = disk.device();
    // All of it is cached: a read that goes through the cache would still find zeros.
    let mut cached = File::open(disk.node()).unwrap();
    std::io::copy(&mut cached, &mut std::io::sink()).unwrap();
    // The device keeps its size; what lies behind the end of the file answers EIO.
    File::options().write(true).open(disk.image()).unwrap().set_len(32 * MIB).unwrap();
    let mut block = [1; 4096];
    cached.read_exact_at(&mut block, 60 * MIB).unwrap();
    assert_eq!(block, [0; 4096]);
    for error in [
        probe(&device).await.unwrap_err(),
        blank(&device, device.size, BlankProof::Ours).await.unwrap_err(),
        blank(&device, device.size, BlankProof::Foreign).await.unwrap_err(),
        blank(&device, device.size, BlankProof::OursDirty).await.unwrap_err(),
    ] {
        assert!(matches!(error, HostError::Io { action: "read", .. }), "{error:?}");
    }
}

#[tokio::test]
async fn what_is_no_block_device_or_another_one_is_refused() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = LoopDevice::new(16 * MIB) else { return };
    let device = disk.device();
    let file = Device { path: disk.image().into(), ..device.clone() };
    let other = Device { number: DeviceNumber { major: 8, minor: 0 }, ..device.clone() };
    for device in [file, other] {
        for error in [
            probe(&device).await.unwrap_err(),
            blank(&device, 0, BlankProof::OursDirty).await.unwrap_err(),
        ] {
            assert!(matches!(error, HostError::Refused { .. }), "{error}");
        }
    }
    let missing = Device { path: "/dev/no-such-volume".into(), ..device };
    assert!(blank(&missing, 0, BlankProof::Ours).await.is_err());
}

#[tokio::test]
async fn several_signatures_are_never_mounted_nor_formatted() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = LoopDevice::new(64 * MIB) else { return };
    make(&disk, FsType::Ext4).await;
    disk.write(64 * MIB - 8192, &[0xfc, 0x4e, 0x2b, 0xa9]);
    match probe(&disk.device()).await.unwrap() {
        Contents::Other(what) => assert!(what.starts_with("several signatures: ext4"), "{what}"),
        other => panic!("{other:?}"),
    }
    is_refused(&disk, "several signatures").await;
}

#[tokio::test]
async fn a_blank_device_becomes_each_filesystem_with_the_uuid_that_was_asked_for() {
    let _alone = NAMESPACES.read().await;
    for (fs_type, options) in
        [(FsType::Ext4, "-L web -E stride=4"), (FsType::Xfs, "-L web"), (FsType::Btrfs, "-L web")]
    {
        let Some(disk) = LoopDevice::new(size_for(fs_type)) else { return };
        let device = disk.device();
        assert_eq!(probe(&device).await.unwrap(), Contents::NoSignature);
        let proof = blank(&device, device.size, BlankProof::Foreign).await.unwrap();
        let uuid = Uuid::new_v4();
        let words = format::check_options(fs_type, options).unwrap();
        format::mkfs(&exec(), proof, fs_type, uuid, &words).await.unwrap();
        let fs = filesystem(&device).await;
        assert_eq!((fs.fs_type, fs.uuid, fs.label.as_str()), (fs_type, uuid, "web"));
        assert_eq!(fs.size, device.size);
        assert!(!fs.needs_check);
    }
}

#[tokio::test]
async fn a_mkfs_that_fails_says_what_the_tool_said() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = LoopDevice::new(16 * MIB) else { return };
    let device = disk.device();
    let proof = blank(&device, device.size, BlankProof::Ours).await.unwrap();
    let error = format::mkfs(&exec(), proof, FsType::Btrfs, Uuid::new_v4(), &[]).await.unwrap_err();
    assert!(matches!(error, HostError::Tool { .. }), "{error:?}");
}

#[tokio::test]
async fn a_device_that_is_taken_between_proof_and_mkfs_is_not_formatted() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = LoopDevice::new(64 * MIB) else { return };
    let device = disk.device();
    let proof = blank(&device, device.size, BlankProof::Ours).await.unwrap();
    let _held =
        File::options().read(true).custom_flags(nix::libc::O_EXCL).open(disk.node()).unwrap();
    let error = format::mkfs(&exec(), proof, FsType::Ext4, Uuid::new_v4(), &[]).await.unwrap_err();
    assert!(matches!(error, HostError::Busy { .. }), "{error:?}");
    assert_eq!(probe(&device).await.unwrap(), Contents::NoSignature);
}

#[tokio::test]
async fn unwiped_blocks_of_our_own_volume_are_wiped_with_what_stood_behind_them() {
    let _alone = NAMESPACES.read().await;
    for fs_type in [FsType::Ext4, FsType::Xfs] {
        let Some(disk) = LoopDevice::new(size_for(FsType::Xfs)) else { return };
        let device = disk.device();
        make(&disk, FsType::Btrfs).await;
        let proof = blank(&device, device.size, BlankProof::OursDirty).await.unwrap();
        assert_eq!(probe(&device).await.unwrap(), Contents::NoSignature);
        format::mkfs(&exec(), proof, fs_type, Uuid::new_v4(), &[]).await.unwrap();
        assert_eq!(filesystem(&device).await.fs_type, fs_type);
    }
}

// ---------------------------------------------------------------------------------------------
// Recognising.

#[tokio::test]
async fn ext2_and_ext3_are_mounted_as_such() {
    let _alone = NAMESPACES.read().await;
    for mount_type in ["ext2", "ext3"] {
        let Some(disk) = LoopDevice::new(16 * MIB) else { return };
        run(&format!("mkfs.{mount_type}"), &["-q".as_ref(), disk.node().as_os_str()]);
        let fs = filesystem(&disk.device()).await;
        assert_eq!(fs.mount_type, mount_type);
        for read_only in [false, true] {
            let options = MountOptions { read_only, extra: Vec::new() };
            unmount(&mount_at(&disk, &fs, &options).await).await;
        }
    }
}

#[tokio::test]
async fn an_ext4_with_the_signature_of_a_boot_sector_is_an_ext4() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = LoopDevice::new(64 * MIB) else { return };
    make(&disk, FsType::Ext4).await;
    disk.write(510, &[0x55, 0xaa]);
    assert_eq!(filesystem(&disk.device()).await.fs_type, FsType::Ext4);
}

fn partitioned(size: u64, table: &str) -> Option<LoopDevice> {
    LoopDevice::with_image(size, &["--partscan"], |image| {
        let script = image.with_extension("sfdisk");
        fs::write(&script, table).unwrap();
        let mut sfdisk = Command::new("sfdisk");
        let status = sfdisk
            .args(["--quiet", "--no-tell-kernel"])
            .arg(image)
            .stdin(File::open(&script).unwrap())
            .status()
            .unwrap();
        assert!(status.success());
    })
}

/// Tells a kernel of the partitions that was built without parsers for their tables.
fn know_partitions(disk: &LoopDevice) {
    let first = format!("{}p1", disk.node().display());
    if !Path::new(&first).exists() {
        run("partx", &["--add".as_ref(), disk.node().as_os_str()]);
    }
}

async fn partitions(disk: &LoopDevice) -> Vec<Partition> {
    match probe(&disk.device()).await.unwrap() {
        Contents::Partitions(partitions) => partitions,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn partitions_of_a_gpt_are_found_with_their_filesystems_and_can_be_mounted() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = partitioned(64 * MIB, "label: gpt\n,16M\n,32M\n") else { return };
    let found = partitions(&disk).await;
    let places: Vec<_> = found.iter().map(|part| (part.number, part.start, part.size)).collect();
    assert_eq!(places, [(1, MIB, 16 * MIB), (2, 17 * MIB, 32 * MIB)]);

    know_partitions(&disk);
    let second = partition::device_of(&Paths::default(), &disk.device(), &found[1]).unwrap();
    let proof = blank(&second, second.size, BlankProof::Ours).await.unwrap();
    format::mkfs(&exec(), proof, FsType::Ext4, Uuid::new_v4(), &[]).await.unwrap();
    let found = partitions(&disk).await;
    assert_eq!(*found[0].contents, Contents::NoSignature);
    let Contents::Filesystem(fs) = &*found[1].contents else { panic!("{found:?}") };

    let at = disk.path("mount/web");
    let options = MountOptions::default();
    let entry = mount::mount(&exec(), &Paths::default(), &second, fs, &at, &options).await.unwrap();
    assert_eq!(entry.device, second.number);
    let error = blank(&disk.device(), 0, BlankProof::OursDirty).await.unwrap_err();
    assert!(matches!(error, HostError::Busy { .. }), "{error}");
    unmount(&entry).await;
}

#[tokio::test]
async fn a_gpt_whose_first_copy_is_damaged_is_read_from_its_backup() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = partitioned(64 * MIB, "label: gpt\n,16M\n") else { return };
    disk.write(1024 + 8, &[0xff]);
    assert_eq!(partitions(&disk).await.len(), 1);
    disk.write(64 * MIB - 512 + 40, &[0xff]);
    match probe(&disk.device()).await.unwrap() {
        Contents::Other(what) => assert!(what.contains("without a valid GPT"), "{what}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn logical_partitions_of_an_mbr_count_from_five() {
    let _alone = NAMESPACES.read().await;
    let table = "label: dos\np1 : size=8M\np2 : size=32M,type=5\np5 : size=8M\np6 : size=8M\n";
    let Some(disk) = partitioned(64 * MIB, table) else { return };
    let paths = Paths::default();
    let found = partitions(&disk).await;
    let numbers: Vec<_> = found.iter().map(|part| part.number).collect();
    assert_eq!(numbers, [1, 5, 6]);
    // The kernel has them in the same places.
    know_partitions(&disk);
    for part in &found {
        partition::device_of(&paths, &disk.device(), part).unwrap();
    }
    let wrong = Partition { start: found[0].start + 512, ..found[0].clone() };
    assert!(partition::device_of(&paths, &disk.device(), &wrong).is_err());
}

// ---------------------------------------------------------------------------------------------
// Mounting.

#[tokio::test]
async fn each_filesystem_is_mounted_verified_synced_and_unmounted() {
    let _alone = NAMESPACES.read().await;
    for fs_type in ALL {
        let Some(disk) = LoopDevice::new(size_for(fs_type)) else { return };
        let fs = make(&disk, fs_type).await;
        let extra = mount::check_options("noatime,nodev").unwrap();
        let entry = mount_at(&disk, &fs, &MountOptions { read_only: false, extra }).await;
        assert_eq!(entry.block_device(), Some(disk.device().number));
        assert!(entry.options.contains("noatime") && entry.options.contains("nodev"));
        assert!(mount::is_healthy(&entry, false));
        let parent = entry.mount_point.parent().unwrap();
        assert_eq!(parent.metadata().unwrap().permissions().mode() & 0o777, 0o700);

        fs::write(entry.mount_point.join("file"), "kept").unwrap();
        mount::sync(&entry.mount_point).await.unwrap();
        unmount(&entry).await;
        assert!(!entry.mount_point.exists());
        // Unmounting what is not mounted is success.
        unmount(&entry).await;

        let read_only = MountOptions { read_only: true, extra: Vec::new() };
        let before = disk.contents();
        let entry = mount_at(&disk, &fs, &read_only).await;
        assert_eq!(fs::read_to_string(entry.mount_point.join("file")).unwrap(), "kept");
        assert!(mount::is_healthy(&entry, true) && !mount::is_healthy(&entry, false));
        unmount(&entry).await;
        assert!(disk.contents() == before, "a read-only mount of {fs_type} wrote");
    }
}

#[tokio::test]
async fn a_device_or_a_directory_that_is_taken_is_not_mounted_again() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = LoopDevice::new(64 * MIB) else { return };
    let Some(second) = LoopDevice::new(64 * MIB) else { return };
    let (fs, other_fs) = (make(&disk, FsType::Ext4).await, make(&second, FsType::Ext4).await);
    let entry = mount_at(&disk, &fs, &MountOptions::default()).await;
    let (exec, paths, options) = (exec(), Paths::default(), MountOptions::default());
    let elsewhere = disk.path("mount/other");
    for (device, fs, at) in
        [(disk.device(), &fs, &elsewhere), (second.device(), &other_fs, &entry.mount_point)]
    {
        let error = mount::mount(&exec, &paths, &device, fs, at, &options).await.unwrap_err();
        assert!(matches!(error, HostError::Busy { .. }), "{error}");
    }
    assert!(!elsewhere.exists());
    unmount(&entry).await;
}

#[tokio::test]
async fn a_mount_that_fails_leaves_nothing_behind() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = LoopDevice::new(64 * MIB) else { return };
    let fs = make(&disk, FsType::Ext4).await;
    let (exec, paths, options) = (exec(), Paths::default(), MountOptions::default());
    let at = disk.path("mount/web");
    let wrong = Filesystem { mount_type: "xfs", ..fs.clone() };
    let device = disk.device();
    let error = mount::mount(&exec, &paths, &device, &wrong, &at, &options).await.unwrap_err();
    assert!(matches!(error, HostError::Tool { .. }), "{error}");
    assert!(!at.exists());

    // Data of the host below the mount point stays visible.
    fs::create_dir_all(&at).unwrap();
    fs::write(at.join("precious"), "").unwrap();
    let error = mount::mount(&exec, &paths, &device, &fs, &at, &options).await.unwrap_err();
    assert!(matches!(error, HostError::Refused { .. }), "{error}");
    assert!(at.join("precious").exists());
    assert_eq!(mountinfo::at(&paths, &at).unwrap(), None);
}

#[tokio::test]
async fn a_read_only_device_is_mounted_only_when_that_was_asked_for() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = LoopDevice::with_image(64 * MIB, &["--read-only"], |image| {
        run("mkfs.ext4", &["-q", image.to_str().unwrap()]);
    }) else {
        return;
    };
    let device = disk.device();
    let fs = filesystem(&device).await;
    let (exec, paths, at) = (exec(), Paths::default(), disk.path("mount/web"));
    // Also when the kernel made it read-only after it was attached.
    for device in [device.clone(), Device { read_only: false, ..device }] {
        let options = MountOptions::default();
        assert!(mount::mount(&exec, &paths, &device, &fs, &at, &options).await.is_err());
        assert_eq!(mountinfo::at(&paths, &at).unwrap(), None);
    }
    let options = MountOptions { read_only: true, extra: Vec::new() };
    unmount(&mount_at(&disk, &fs, &options).await).await;
}

#[tokio::test]
async fn a_busy_filesystem_stays_mounted_and_its_user_is_named() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = LoopDevice::new(64 * MIB) else { return };
    let fs = make(&disk, FsType::Ext4).await;
    let entry = mount_at(&disk, &fs, &MountOptions::default()).await;
    let user = Running::start(Command::new("sleep").arg("1000").current_dir(&entry.mount_point));
    let (exec, paths) = (exec(), Paths::default());
    let error = mount::unmount(&exec, &paths, &entry.mount_point).await.unwrap_err();
    let HostError::Busy { what } = &error else { panic!("{error:?}") };
    assert!(what.contains(&format!("process {} (sleep)", user.pid())), "{what}");
    assert!(mountinfo::at(&paths, &entry.mount_point).unwrap().is_some());
    drop(user);
    unmount(&entry).await;
}

#[tokio::test]
async fn who_is_gone_in_a_moment_does_not_keep_it_busy() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = LoopDevice::new(64 * MIB) else { return };
    let fs = make(&disk, FsType::Ext4).await;
    let entry = mount_at(&disk, &fs, &MountOptions::default()).await;
    // Held by the kernel, so that nobody can be named.
    let image = entry.mount_point.join("image");
    File::create(&image).unwrap().set_len(MIB).unwrap();
    let held = run("losetup", &["--find", "--show", image.to_str().unwrap()]);
    let (exec, paths) = (exec(), Paths::default());
    let let_go = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        run("losetup", &["--detach", held.trim()]);
    };
    let (unmounted, ()) = tokio::join!(mount::unmount(&exec, &paths, &entry.mount_point), let_go);
    unmounted.unwrap();
    assert!(mountinfo::at(&paths, &entry.mount_point).unwrap().is_none());
}

#[tokio::test]
async fn a_mount_below_keeps_it_busy_and_is_named() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = LoopDevice::new(64 * MIB) else { return };
    let fs = make(&disk, FsType::Ext4).await;
    let entry = mount_at(&disk, &fs, &MountOptions::default()).await;
    let below = entry.mount_point.join("below");
    fs::create_dir(&below).unwrap();
    run("mount", &["-t", "tmpfs", "none", below.to_str().unwrap()]);
    let error = mount::unmount(&exec(), &Paths::default(), &entry.mount_point).await.unwrap_err();
    assert!(error.to_string().contains("a mount at"), "{error}");
    run("umount", &[&below]);
    unmount(&entry).await;
}

#[tokio::test]
async fn a_filesystem_that_stopped_itself_is_not_healthy() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = LoopDevice::new(64 * MIB) else { return };
    let fs = make(&disk, FsType::Ext4).await;
    let entry = mount_at(&disk, &fs, &MountOptions::default()).await;
    let name = disk.node().file_name().unwrap().to_str().unwrap();
    let trigger = format!("/sys/fs/ext4/{name}/trigger_fs_error");
    fs::write(&trigger, "made by a test").unwrap();
    let now = mountinfo::at(&Paths::default(), &entry.mount_point).unwrap().unwrap();
    assert!(!mount::is_healthy(&now, false), "{now:?}");
    unmount(&entry).await;

    // The superblock asks for a check, and gets it.
    let fs = filesystem(&disk.device()).await;
    assert!(fs.needs_check);
    mount::check(&exec(), &disk.device(), &fs).await.unwrap();
    assert!(!filesystem(&disk.device()).await.needs_check);
}

#[tokio::test]
async fn errors_that_cannot_be_repaired_alone_are_a_refusal() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = LoopDevice::new(64 * MIB) else { return };
    make(&disk, FsType::Ext4).await;
    let debugfs = |request: &str| {
        run("debugfs", &["-w", "-R", request, disk.node().to_str().unwrap()]);
    };
    debugfs("clri <2>");
    debugfs("set_super_value state 2");
    let fs = filesystem(&disk.device()).await;
    let error = mount::check(&exec(), &disk.device(), &fs).await.unwrap_err();
    assert!(matches!(error, HostError::Refused { .. }), "{error:?}");
}

#[tokio::test]
async fn a_copy_of_a_mounted_xfs_is_mounted_and_the_same_volume_twice_is_not() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = LoopDevice::new(size_for(FsType::Xfs)) else { return };
    let fs = make(&disk, FsType::Xfs).await;
    let copy = disk.copy();
    let entry = mount_at(&disk, &fs, &MountOptions::default()).await;

    let same = disk.again();
    let (exec, paths, options) = (exec(), Paths::default(), MountOptions::default());
    let at = same.path("mount/web");
    let error = mount::mount(&exec, &paths, &same.device(), &fs, &at, &options).await.unwrap_err();
    assert!(matches!(error, HostError::Refused { .. }), "{error:?}");

    let second = mount_at(&copy, &fs, &MountOptions::default()).await;
    assert!(second.super_options.contains("nouuid"), "{second:?}");
    unmount(&second).await;
    unmount(&entry).await;
}

/// The kernel has an answer of its own to a copy beside its original from 6.7 on.
#[tokio::test]
async fn a_copy_of_a_mounted_btrfs_is_mounted_where_the_kernel_can_and_the_volume_twice_is_not() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = LoopDevice::new(size_for(FsType::Btrfs)) else { return };
    let fs = make(&disk, FsType::Btrfs).await;
    let copy = disk.copy();
    let entry = mount_at(&disk, &fs, &MountOptions::default()).await;
    fs::write(entry.mount_point.join("file"), "only here").unwrap();

    let same = disk.again();
    let (exec, paths, options) = (exec(), Paths::default(), MountOptions::default());
    let at = same.path("mount/web");
    let error = mount::mount(&exec, &paths, &same.device(), &fs, &at, &options).await.unwrap_err();
    assert!(matches!(error, HostError::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains("may be the same volume"), "{error}");

    // A kernel that lacks it, as far as can be seen.
    let older = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/sys/dev", older.path().join("dev")).unwrap();
    let older = Paths { sys: older.path().into(), ..Paths::default() };
    let at = copy.path("mount/web");
    let error = mount::mount(&exec, &older, &copy.device(), &fs, &at, &options).await.unwrap_err();
    assert!(error.to_string().contains("before 6.7"), "{error}");
    assert!(error.to_string().contains("on another host"), "{error}");
    assert_eq!(mountinfo::at(&paths, &at).unwrap(), None);

    if Path::new("/sys/fs/btrfs/features/temp_fsid").exists() {
        let second = mount_at(&copy, &fs, &MountOptions::default()).await;
        assert!(!second.mount_point.join("file").exists(), "it is the copy");
        unmount(&second).await;
    }
    unmount(&entry).await;
}

#[tokio::test]
async fn a_frozen_filesystem_is_thawed_by_all_that_can_end_a_freeze() {
    let _alone = NAMESPACES.read().await;
    let program = env!("CARGO_BIN_EXE_cinder-docker-driver").into();
    let paths = Paths { program, ..Paths::default() };
    for fs_type in ALL {
        let Some(disk) = LoopDevice::new(size_for(fs_type)) else { return };
        let fs = make(&disk, fs_type).await;
        let entry = mount_at(&disk, &fs, &MountOptions::default()).await;
        let (at, device) = (&entry.mount_point, entry.device);
        let long = Duration::from_secs(60);

        let frozen = freeze::freeze(&paths, at, device, long).await.unwrap();
        let writer = Writer::of(at.join("told"));
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!writer.is_done(), "{fs_type}: it is not frozen");
        let theirs = freeze::freeze(&paths, at, device, long).await.unwrap_err();
        assert!(matches!(theirs, HostError::Busy { .. }), "{theirs:?}");
        assert!(!writer.is_done(), "{fs_type}: another's freeze was ended");
        let thawed = frozen.thaw().await.unwrap();
        assert!(!thawed.too_late && thawed.frozen_for >= Duration::from_millis(300), "{thawed:?}");
        until("the writer", || writer.is_done()).await;

        let frozen = freeze::freeze(&paths, at, device, long).await.unwrap();
        drop(frozen);
        let writer = Writer::of(at.join("dropped"));
        until("the writer", || writer.is_done()).await;

        let frozen = freeze::freeze(&paths, at, device, Duration::from_millis(500)).await.unwrap();
        let writer = Writer::of(at.join("late"));
        until("the writer", || writer.is_done()).await;
        assert!(frozen.thaw().await.unwrap().too_late, "{fs_type}");

        // What a process left that was killed.
        run("fsfreeze", &["-f", at.to_str().unwrap()]);
        let writer = Writer::of(at.join("left"));
        assert!(freeze::thaw(&paths, at, device).await.unwrap(), "{fs_type}");
        until("the writer", || writer.is_done()).await;
        assert!(
            !freeze::thaw(&paths, at, device).await.unwrap(),
            "{fs_type}: it was thawed before"
        );

        unmount(&entry).await;
        let other = freeze::freeze(&paths, &disk.path("."), device, long).await.unwrap_err();
        assert!(!matches!(other, HostError::Busy { .. }), "{other:?}");
    }
}

/// A loop device does not notice by itself that its file has grown.
#[tokio::test]
async fn a_rescan_shows_the_new_size_of_a_loop_device() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = LoopDevice::new(64 * MIB) else { return };
    let record = local::LocalRecord { device_path: disk.node().into(), taken: true };
    File::options().write(true).open(disk.image()).unwrap().set_len(96 * MIB).unwrap();
    let paths = Paths::default();
    let before = local::find(&paths, &record).await.unwrap().unwrap();
    let after = local::rescan(&paths, &record).await.unwrap().unwrap();
    assert_eq!((before.size, after.size), (64 * MIB, 96 * MIB));
}

/// Somebody who writes, and waits as long as the filesystem is frozen.
struct Writer(std::thread::JoinHandle<()>);

impl Writer {
    fn of(file: PathBuf) -> Self {
        Self(std::thread::spawn(move || fs::write(file, "written").unwrap()))
    }

    fn is_done(&self) -> bool {
        self.0.is_finished()
    }
}

#[tokio::test]
async fn each_filesystem_grows_with_its_device_while_mounted() {
    let _alone = NAMESPACES.read().await;
    for fs_type in ALL {
        if fs_type == FsType::Ext4 && !has_sys_resource() {
            eprintln!("skipped for ext4: needs CAP_SYS_RESOURCE");
            continue;
        }
        let Some(disk) = LoopDevice::new(size_for(fs_type)) else { return };
        let fs = make(&disk, fs_type).await;
        assert!(!grow::is_needed(&disk.device(), &fs));
        disk.enlarge(2 * size_for(fs_type));
        let device = disk.device();
        assert!(grow::is_needed(&device, &fs));
        let entry = mount_at(&disk, &fs, &MountOptions::default()).await;
        let (at, limit) = (&entry.mount_point, grow::MOUNT_LIMIT);
        grow::grow(&exec(), &device, fs_type, at, limit).await.unwrap();
        let size = grow::size_of(&device, fs_type, at).await.unwrap();
        assert!(!grow::leaves_space(&device, size), "{fs_type}: {size} of {}", device.size);
        assert!(size > fs.size && size <= device.size, "{fs_type}: {size} of {}", device.size);
        // Once more is nothing.
        grow::grow(&exec(), &device, fs_type, at, limit).await.unwrap();
        unmount(&entry).await;
        let grown = filesystem(&device).await;
        assert!(grown.size > fs.size && !grow::is_needed(&device, &grown), "{grown:?}");
    }
}

/// Root in a container or in a sandbox may lack it.
fn has_sys_resource() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(set.trim(), 16).unwrap() >> CAP_SYS_RESOURCE & 1 == 1
}

// ---------------------------------------------------------------------------------------------
// Other mount namespaces.

/// A process in a mount namespace of its own.
async fn in_new_namespace(propagation: &str) -> Running {
    let process = Running::start(Command::new("unshare").args([
        "--mount",
        "--propagation",
        propagation,
        "sleep",
        "1000",
    ]));
    let comm = PathBuf::from(format!("/proc/{}/comm", process.pid()));
    until("the new namespace", || fs::read_to_string(&comm).is_ok_and(|name| name == "sleep\n"))
        .await;
    process
}

#[tokio::test]
async fn a_copy_in_another_namespace_is_a_holder_and_a_slave_copy_is_not() {
    let _alone = NAMESPACES.write().await;
    let Some(disk) = LoopDevice::new(64 * MIB) else { return };
    let fs = make(&disk, FsType::Ext4).await;
    // On a systemd host all mounts are shared; here at least this one is.
    let shared = disk.path("mount");
    fs::create_dir(&shared).unwrap();
    run("mount", &["-t", "tmpfs", "none", shared.to_str().unwrap()]);
    run("mount", &["--make-shared", shared.to_str().unwrap()]);
    let _tmpfs = TmpfsMount(&shared);
    let entry = mount_at(&disk, &fs, &MountOptions::default()).await;
    assert!(entry.shared.is_some());
    let holders = || process::mount_holders(&Paths::default(), entry.device, &entry.mount_point);
    let device = disk.device();
    let is_gone = || mount::is_gone_everywhere(&device.path, device.number);

    let slave = in_new_namespace("slave").await;
    assert_eq!(holders(), []);

    let private = in_new_namespace("private").await;
    let found = holders();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].pid, private.pid());
    assert_eq!(Path::new(&found[0].mount_point), entry.mount_point);

    // Our own umount is not kept from working, the slave copy goes, and the holder stays: the
    // directory is not removed below it.
    unmount(&entry).await;
    let slave_mounts = fs::read(format!("/proc/{}/mountinfo", slave.pid())).unwrap();
    assert!(mountinfo::parse(&slave_mounts).iter().all(|other| other.device != entry.device));
    assert_eq!(holders().len(), 1);
    assert!(!is_gone().await);
    assert!(entry.mount_point.exists());
    drop(private);
    assert_eq!(holders(), []);
    assert!(is_gone().await);
    let another = DeviceNumber { minor: device.number.minor + 1, ..device.number };
    assert!(!mount::is_gone_everywhere(&device.path, another).await);
}

/// Unmounted even when the test fails.
struct TmpfsMount<'a>(&'a Path);

impl Drop for TmpfsMount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--recursive").arg(self.0).status();
    }
}

// ---------------------------------------------------------------------------------------------
// Connection type `local`.

#[tokio::test]
async fn a_local_device_is_connected_found_and_flushed() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = LoopDevice::new(64 * MIB) else { return };
    let paths = Paths::default();
    let mut record = local::LocalRecord { device_path: disk.node().into(), taken: false };
    let error = local::connect(&paths, &mut record, 64 * MIB + 1).await.unwrap_err();
    assert!(matches!(error, HostError::Refused { .. }), "{error}");
    assert_eq!(local::find(&paths, &record).await.unwrap(), None);
    let device = local::connect(&paths, &mut record, 64 * MIB).await.unwrap();
    assert_eq!(device, disk.device());
    assert_eq!(local::find(&paths, &record).await.unwrap(), Some(device));
    local::disconnect(&paths, &record).await.unwrap();
}

#[tokio::test]
async fn a_local_device_in_use_is_neither_connected_nor_disconnected() {
    let _alone = NAMESPACES.read().await;
    let Some(disk) = LoopDevice::new(64 * MIB) else { return };
    let paths = Paths::default();
    let mut record = local::LocalRecord { device_path: disk.node().into(), taken: false };
    local::connect(&paths, &mut record, 64 * MIB).await.unwrap();
    let fs = make(&disk, FsType::Ext4).await;
    let entry = mount_at(&disk, &fs, &MountOptions::default()).await;
    let error = local::disconnect(&paths, &record).await.unwrap_err();
    assert!(matches!(&error, HostError::Busy { what } if what.contains("mounted at")), "{error}");
    assert!(matches!(local::connect(&paths, &mut record, 0).await, Err(HostError::Busy { .. })));
    unmount(&entry).await;
    local::disconnect(&paths, &record).await.unwrap();
}
