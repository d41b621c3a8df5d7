//! A real block device for a test: a sparse image behind a loop device. Goes away with the value,
//! mounts included.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cinder_docker_driver::host::attach::{Device, DeviceState};
use cinder_docker_driver::host::filesystem::mountinfo::DeviceNumber;

/// One MiB in bytes.
pub const MIB: u64 = 1024 * 1024;

/// Runs a tool of the test's own.
pub fn run<S: AsRef<OsStr>>(tool: &str, args: &[S]) -> String {
    let output = Command::new(tool)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("cannot run {tool} (is its package installed?): {e}"));
    assert!(
        output.status.success(),
        "{tool} {:?}: {}",
        args.iter().map(AsRef::as_ref).collect::<Vec<_>>(),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A loop device over an image of its own.
pub struct LoopDevice {
    node: PathBuf,
    image: PathBuf,
    directory: tempfile::TempDir,
}

impl LoopDevice {
    /// A blank device. `None`, said on stderr, where there is no root or no loop driver.
    pub fn new(size: u64) -> Option<Self> {
        Self::with_image(size, &[], |_| {})
    }

    /// A device whose image is prepared first; `options` go to losetup.
    pub fn with_image(size: u64, options: &[&str], prepare: impl FnOnce(&Path)) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            eprintln!("skipped: needs root and loop devices");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        File::create(&image).unwrap().set_len(size).unwrap();
        prepare(&image);
        let node = Self::attach(&image, options);
        Some(Self { node, image, directory })
    }

    fn attach(image: &Path, options: &[&str]) -> PathBuf {
        // losetup asks for a free number and then claims it; one that comes second claims the
        // device of the first for a moment, which then looks busy.
        let lock = File::create(std::env::temp_dir().join("loop-devices-of-tests.lock")).unwrap();
        lock.lock().unwrap();
        let mut args: Vec<&OsStr> = vec!["--find".as_ref(), "--show".as_ref()];
        args.extend(options.iter().map(OsStr::new));
        args.push(image.as_os_str());
        run("losetup", &args).into()
    }

    /// A second device over the same image.
    pub fn again(&self) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let node = Self::attach(&self.image, &[]);
        Self { node, image: self.image.clone(), directory }
    }

    /// A device over a copy of the image.
    pub fn copy(&self) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        run("cp", &[OsStr::new("--sparse=always"), self.image.as_ref(), image.as_ref()]);
        let node = Self::attach(&image, &[]);
        Self { node, image, directory }
    }

    /// `/dev/loopN`
    pub fn node(&self) -> &Path {
        &self.node
    }

    /// The file behind it.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// A path below a directory of this device's own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join(name)
    }

    /// The device as the driver sees it.
    pub fn device(&self) -> Device {
        let number = DeviceNumber::from_raw(fs::metadata(&self.node).unwrap().rdev());
        let attribute = |name: &str| {
            let text = fs::read_to_string(format!("/sys/dev/block/{number}/{name}")).unwrap();
            text.trim().parse::<u64>().unwrap()
        };
        Device {
            path: self.node.clone(),
            number,
            size: attribute("size") * 512,
            read_only: attribute("ro") == 1,
            state: DeviceState::Running,
            wwid: None,
        }
    }

    /// Writes through the device.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        let device = File::options().write(true).open(&self.node).unwrap();
        device.write_all_at(bytes, at).unwrap();
        device.sync_all().unwrap();
    }

    /// Makes the image, and with it the device, larger.
    pub fn enlarge(&self, size: u64) {
        File::options().write(true).open(&self.image).unwrap().set_len(size).unwrap();
        run("losetup", &[OsStr::new("--set-capacity"), self.node.as_ref()]);
    }

    /// Everything that the device holds.
    pub fn contents(&self) -> Vec<u8> {
        run("sync", &[&self.node]);
        fs::read(&self.image).unwrap()
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // A test that failed may have left it mounted; nothing to do about failures here.
        let quiet = |tool: &str, args: &[&OsStr]| {
            let _ = Command::new(tool).args(args).stderr(Stdio::null()).status();
        };
        quiet("umount", &["--all-targets".as_ref(), "--quiet".as_ref(), self.node.as_ref()]);
        quiet("losetup", &["--detach".as_ref(), self.node.as_ref()]);
    }
}
